"""Weights of PyTorch models: the same logits, against PyTorch where it is installed and a forward pass in NumPy; files that are none."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxbp import models
from tests.helpers.networks import inputs_of

SHAPE = (5, 4, 2)
NET = models.create("resnet", num_classes=3, width=2, depth=1, stages=2)


def tensors_of(net, input_shape, names, rng):
    """Random tensors under the names and in the layout of PyTorch."""
    sizes = {"conv1": (2, 2, 3, 3), "layer1.0.conv1": (2, 2, 3, 3), "layer1.0.conv2": (2, 2, 3, 3)}
    sizes |= {"layer2.0.conv1": (4, 2, 3, 3), "layer2.0.conv2": (4, 4, 3, 3), f"layer2.0.{names[0]}.0": (4, 2, 1, 1)}
    tensors = {f"{name}.weight": rng.normal(size=size) for name, size in sizes.items()}
    norms = {"bn1": 2, "layer1.0.bn1": 2, "layer1.0.bn2": 2, "layer2.0.bn1": 4, "layer2.0.bn2": 4, f"layer2.0.{names[0]}.1": 4}
    for name, channels in norms.items():
        tensors |= {f"{name}.{kind}": rng.uniform(0.5, 1.5, size=channels) for kind in ("weight", "bias", "running_mean", "running_var")}
        tensors[f"{name}.num_batches_tracked"] = np.array(7)
    tensors |= {f"{names[1]}.weight": rng.normal(size=(3, 4)), f"{names[1]}.bias": rng.normal(size=3)}
    return {name: np.asarray(tensor, np.int64 if tensor.ndim == 0 else np.float32) for name, tensor in tensors.items()}


def numpy_logits(tensors, images, shortcut, head):
    """The network in PyTorch's layout, (N, C, H, W), pixel by pixel."""

    def conv(x, name, stride=1):
        kernel, (num, _, rows, columns) = tensors[f"{name}.weight"].astype(float), x.shape
        reach = kernel.shape[2] // 2
        padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        out = np.zeros((num, len(kernel), -(-rows // stride), -(-columns // stride)))
        for r in range(out.shape[2]):
            for c in range(out.shape[3]):
                patch = padded[:, :, r * stride : r * stride + kernel.shape[2], c * stride : c * stride + kernel.shape[3]]
                out[:, :, r, c] = np.einsum("nihw,oihw->no", patch, kernel)
        return out

    def norm(x, name):
        scale, bias, mean, var = (tensors[f"{name}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm(conv(images.transpose(0, 3, 1, 2), "conv1"), "bn1"), 0)
    y = np.maximum(norm(conv(x, "layer1.0.conv1"), "layer1.0.bn1"), 0)
    x = np.maximum(norm(conv(y, "layer1.0.conv2"), "layer1.0.bn2") + x, 0)
    y = np.maximum(norm(conv(x, "layer2.0.conv1", 2), "layer2.0.bn1"), 0)
    y = norm(conv(y, "layer2.0.conv2"), "layer2.0.bn2") + norm(conv(x, f"layer2.0.{shortcut}.0", 2), f"layer2.0.{shortcut}.1")
    return np.maximum(y, 0).mean((2, 3)) @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"]


@pytest.fixture
def saved(tmp_path):
    """``(tensors) -> path`` of a file that holds them."""

    def save(tensors):
        safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return save


@pytest.mark.parametrize("names", [("downsample", "fc"), ("shortcut", "linear")], ids="-".join)
def test_a_small_net_has_the_logits_of_numpy(names, saved):
    tensors, images = tensors_of(NET, SHAPE, names, np.random.default_rng(0)), np.asarray(inputs_of(3, *SHAPE))
    params, state = models.from_torch_names(NET, saved(tensors), SHAPE)
    np.testing.assert_allclose(NET.apply(params, images, state), numpy_logits(tensors, images, *names), rtol=1e-5, atol=1e-5)
    assert {leaf.dtype for leaf in (params["Conv_0"]["kernel"], state["batch_stats"]["BatchNorm_0"]["var"])} == {jnp.dtype("float32")}


def changed(**changes):
    tensors = tensors_of(NET, SHAPE, ("downsample", "fc"), np.random.default_rng(0))
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(**{"fc.bias": None}), r"no tensor 'fc.bias', only bn1.bias, .* more: correct names, or choose the network"),
        (changed(**{"fc2.bias": np.ones(3, np.float32)}), "tensors that no layer of the network takes, fc2.bias"),
        (changed(**{"fc.bias": np.ones(4, np.float32)}), r"'fc.bias' must give shape \(3,\), got \(4,\)"),
        (changed(**{"fc.bias": np.ones((1, 1, 3), np.float32)}), r"'fc.bias' must give shape \(3,\), got \(1, 1, 3\)"),
        (changed(**{"fc.bias": np.ones(3, np.int32)}), "'fc.bias' must be floating-point numbers, got int32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors, message, saved):
    with pytest.raises(ValueError, match=message):
        models.from_torch_names(NET, saved(tensors), SHAPE)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        models.from_torch_names(NET, tmp_path / "missing", SHAPE)
    for content in (b"", b"\x80\x02}q\x00.", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match=r"is no safetensors file .*safetensors.torch.save_file"):
            models.from_torch_names(NET, tmp_path / "other", SHAPE)


def test_networks_without_a_table(saved):
    path = saved(changed())
    for net in (models.create("mlp", num_classes=3, width=2), models.create("resnet18", num_classes=3, width=2, norm="none")):
        with pytest.raises(ValueError, match="there is no table of names"):
            models.from_torch_names(net, path, SHAPE)
    with pytest.raises(ValueError, match="no entry for the layer 'Dense_0' with its 'bias'"):
        models.from_torch_names(models.create("mlp", num_classes=3, width=2), path, SHAPE, names={})
    with pytest.raises(ValueError, match="choose 'standard'"):
        models.from_torch_names(models.create("resnet18", num_classes=3, width=2, parametrisation="ntk"), path, SHAPE)


# Against PyTorch


def torch_resnet18(torch, num_classes, width, *, large):
    """ResNet-18 in PyTorch, by the names of torchvision: the CIFAR network, or with the stem for large images."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, before, channels, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.downsample = None
            if stride > 1 or before != channels:
                self.downsample = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if large else nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
            before = width
            for stage in range(4):
                channels = width * 2**stage
                blocks = nn.Sequential(Block(before, channels, 2 if stage else 1), Block(channels, channels, 1))
                setattr(self, f"layer{stage + 1}", blocks)
                before = channels
            self.fc = nn.Linear(before, num_classes)

        def forward(self, x):
            x = self.pool(torch.relu(self.bn1(self.conv1(x))))
            for stage in range(4):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return Net()


@pytest.mark.parametrize(("stem", "pixels", "width"), [("small", 32, 64), ("large", 45, 16)])
def test_resnet18_has_the_logits_of_pytorch(stem, pixels, width, saved):
    torch = pytest.importorskip("torch", reason="takes the extra bench")
    torch.manual_seed(0)
    peer = torch_resnet18(torch, 10, width, large=stem == "large")
    images = np.asarray(inputs_of(2, pixels, pixels, 3))
    data = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        peer(data * 2 + 1)  # stored statistics of their own
        expected = peer.eval()(data).numpy()
    net = models.create("resnet18", num_classes=10, width=width, stem=stem)
    path = saved({name: tensor.numpy() for name, tensor in peer.state_dict().items()})
    logits = net.apply(*_placed(models.from_torch_names(net, path, (pixels, pixels, 3)), images))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def _placed(weights, images):
    return weights[0], images, weights[1]
