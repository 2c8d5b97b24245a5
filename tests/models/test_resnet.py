import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models
from jaxbp.models import layers
from jaxbp.models.resnet import NORMS, ResNet
from tests.helpers.networks import convolve, drawn, inputs_of, num_parameters, shapes_of

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2  # of each stage of ResNet-18


# Parameter counts


def convolutions(*, projected):
    """Kernel entries of ResNet-18's convolutions on 3 channels, those before the head."""
    first = 9 * 3 * 64
    blocks = sum(9 * a * b + (2 * BLOCKS - 1) * 9 * b * b for a, b in zip((64, *WIDTHS), WIDTHS, strict=False))
    shortcuts = sum(a * b for a, b in itertools.pairwise(WIDTHS))
    return first + blocks + shortcuts * projected


def channels(*, projected):
    """Outputs of those convolutions."""
    return 64 + sum(2 * BLOCKS * width for width in WIDTHS) + sum(WIDTHS[1:]) * projected


HEAD = 513 * 10


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
def test_parameter_counts_of_resnet18(skip):
    count = functools.partial(num_parameters, input_shape=(32, 32, 3))
    kernels, outputs = convolutions(projected=skip), channels(projected=skip)
    assert count(models.create("resnet18", num_classes=10, width=64, skip=skip)) == kernels + 2 * outputs + HEAD
    for norm in ("none", "layer"):
        net = models.create("resnet18", num_classes=10, width=64, norm=norm, skip=skip)
        assert count(net) == kernels + outputs + HEAD
    if skip:
        assert kernels + 2 * outputs + HEAD == 11_173_962  # as PyTorch counts
        fixup = models.create("resnet18", num_classes=10, width=64, norm="fixup")
        assert count(fixup) == kernels + 2 + 8 * 5 + HEAD  # stem and head; four biases and a multiplier a block


def test_projections_in_every_block():
    free, projected = (
        models.create("resnet18", num_classes=10, width=64, norm="none", shortcut=shortcut) for shortcut in ("identity", "projection")
    )
    more = sum((width + 1) * width for width in (64, *WIDTHS))  # one in each second block, and in the first of all
    assert num_parameters(projected, (32, 32, 3)) - num_parameters(free, (32, 32, 3)) == more


def test_a_wideresnet_is_wide_from_its_second_stage_on():
    net = models.create("wideresnet", num_classes=10, width=16, widening=4)
    assert [channels for channels, _ in net.module.blocks()[::2]] == [16, 2 * 64, 4 * 64, 8 * 64]
    kernel_shapes = [shapes_of(net, (8, 8, 3))[name]["Conv_0"]["kernel"].shape for name in ("BasicBlock_0", "BasicBlock_2", "BasicBlock_4")]
    assert kernel_shapes == [(3, 3, 16, 16), (3, 3, 16, 128), (3, 3, 128, 256)]
    assert shapes_of(net, (8, 8, 3))["Dense_0"]["kernel"].shape == (512, 10)


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("input_shape", [(32, 32, 3), (7, 5, 1), (40, 1, 1)], ids=["CIFAR", "odd", "signals"])
def test_logits_of_every_shape(norm, input_shape):
    net = models.create("resnet", num_classes=10, width=2, depth=1, norm=norm)
    params, state = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    inputs = jnp.zeros((3, *input_shape))
    for logits in (jax.eval_shape(net.apply, params, inputs, state), jax.eval_shape(net.update, params, inputs, state)[0]):
        assert (logits.shape, logits.dtype) == ((3, 10), jnp.float32)


# Against a plain spelling


def spelled_out(params, state, inputs, net, train):
    """A ResNet of two stages of one block, stems and blocks written one by one."""
    stored = state.get("batch_stats", {})

    def norm(x, owner, stats, name):
        if net.module.norm == "layer":
            return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        if net.module.norm == "none":
            return x
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats[name]["mean"], stats[name]["var"])
        return (x - mean) / jnp.sqrt(var + 1e-5) * owner[name]["scale"] + owner[name]["bias"]

    x = jax.nn.relu(norm(convolve(inputs, params["Conv_0"]), params, stored, "BatchNorm_0"))
    for index in range(2):
        owner, stats = params[f"BasicBlock_{index}"], stored.get(f"BasicBlock_{index}")
        y = jax.nn.relu(norm(convolve(x, owner["Conv_0"], 1 + index), owner, stats, "BatchNorm_0"))
        y = norm(convolve(y, owner["Conv_1"]), owner, stats, "BatchNorm_1")
        if net.module.skip:
            y += norm(convolve(x, owner["Conv_2"], 1 + index), owner, stats, "BatchNorm_2") if "Conv_2" in owner else x
        x = jax.nn.relu(y)
    return x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_resnet_is_the_formula(norm, skip, x64):
    net = models.from_linen(ResNet(3, 4, (1, 1), norm=norm, skip=skip))
    (params, state), inputs = drawn(net, (5, 4, 2)), inputs_of(3, 5, 4, 2)
    for train in (False, True) if norm == "batch" else (False,):
        found = jax.jit(net.update if train else net.apply)(params, inputs, state)
        expected = jax.jit(spelled_out, static_argnums=(3, 4))(params, state, inputs, net, train)
        # Layers of some ten terms; normalising divides by what may be small, hence the room above 1e-16.
        np.testing.assert_allclose(found[0] if train else found, expected, rtol=1e-10, atol=1e-11)


def test_projection_shortcuts_are_the_formula(x64):
    net = models.from_linen(ResNet(3, 4, (1, 1), norm="none", shortcut="projection"))
    (params, _), inputs = drawn(net, (5, 4, 2)), inputs_of(3, 5, 4, 2)
    assert "Conv_2" in params["BasicBlock_0"]
    np.testing.assert_allclose(net.apply(params, inputs), spelled_out(params, {}, inputs, net, False), rtol=1e-10)


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.first_cases(1)
def test_pre_activation_is_the_formula(norm, skip, x64):
    """Stem - [norm - relu - conv - norm - relu - conv + shortcut] twice - norm - relu; a projection reads what the branch reads."""
    net = models.from_linen(ResNet(3, 4, (1, 1), norm=norm, skip=skip, pre_activation=True))
    (params, state), inputs = drawn(net, (5, 4, 2)), inputs_of(3, 5, 4, 2)
    stored = state.get("batch_stats", {})

    def rectified(x, owner, stats, name):
        if norm == "layer":
            return jax.nn.relu((x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5))
        x = (x - stats[name]["mean"]) / jnp.sqrt(stats[name]["var"] + 1e-5)
        return jax.nn.relu(x * owner[name]["scale"] + owner[name]["bias"])

    x = convolve(inputs, params["Conv_0"])
    for index in range(2):
        owner, stats = params[f"PreActivationBlock_{index}"], stored.get(f"PreActivationBlock_{index}")
        read = rectified(x, owner, stats, "BatchNorm_0")
        y = convolve(rectified(convolve(read, owner["Conv_0"], 1 + index), owner, stats, "BatchNorm_1"), owner["Conv_1"])
        x = y + (convolve(read, owner["Conv_2"], 2) if "Conv_2" in owner else x) if skip else y
    x = rectified(x, params, stored, "BatchNorm_0").mean((1, 2))
    expected = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, inputs, state), expected, rtol=1e-10, atol=1e-11)


def test_a_branch_and_its_shortcut_read_the_same_pixels(x64):
    """One bright pixel at an even place: of a kernel that is 1 at its centre and of a 1x1 kernel the maps are the same."""
    image = jnp.zeros((1, 6, 6, 1)).at[0, 2, 4, 0].set(1.0)
    for size in (3, 1, 7):
        conv = layers.conv(1, (6, 6), kernel_size=size, stride=2, use_bias=False)
        kernel = jnp.zeros((size, size, 1, 1)).at[size // 2, size // 2].set(1.0)
        np.testing.assert_array_equal(conv.apply({"params": {"kernel": kernel}}, image), image[:, ::2, ::2])


@pytest.mark.parametrize("change", [{"skip": False}, {"norm": "layer"}], ids=str)
def test_skip_and_norm_make_a_difference(change, x64):
    net = models.from_linen(ResNet(3, 4, (1,), norm="none"))
    params, inputs = drawn(net, (4, 4, 2))[0], inputs_of(3, 4, 4, 2)  # the same for both networks
    first, second = (each.apply(params, inputs) for each in (net, models.from_linen(net.module.clone(**change))))
    assert float(jnp.abs(first - second).max()) > 0.1 * float(jnp.abs(first).max())


# BatchNorm


@functools.cache
def trained_once():
    net = models.create("resnet", num_classes=3, width=4, depth=1, stages=2)
    (params, state), inputs = drawn(net, (5, 4, 2)), inputs_of(6, 5, 4, 2)
    logits, new = jax.jit(net.update)(params, inputs, state)
    return net, params, state, inputs, logits, new


def test_stored_statistics_change_in_training_only():
    net, params, state, inputs, logits, new = trained_once()
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(bool((a != b).all()) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True))
    stem = convolve(inputs, params["Conv_0"])
    for name, value in (("mean", stem.mean((0, 1, 2))), ("var", stem.var((0, 1, 2)))):
        old = state["batch_stats"]["BatchNorm_0"][name]
        # float32 sums of 120 terms
        np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"][name], 0.9 * old + 0.1 * value, rtol=1e-4)
    evaluated = net.module.apply({"params": params, **state}, inputs, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, evaluated[1], state)
    assert float(jnp.abs(evaluated[0] - logits).max()) > 0.1


def test_only_batch_statistics_couple_examples():
    net, params, state, inputs, logits, _ = trained_once()
    evaluate, update = jax.jit(net.apply), jax.jit(net.update)
    alone = evaluate(params, inputs[:2], state)
    np.testing.assert_allclose(alone, evaluate(params, inputs, state)[:2], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(update(params, inputs[:2], state)[0] - logits[:2]).max()) > 0.01


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_invariance_to_the_scale_of_convolutions(norm, x64):
    net = models.from_linen(ResNet(3, 4, (1,), norm=norm))
    (params, state), inputs = drawn(net, (4, 4, 2)), inputs_of(5, 4, 4, 2)

    def logits(scale):
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * scale if any("Conv" in key.key for key in path) else leaf, params
        )
        return net.update(scaled, inputs, state)[0]

    # Exact but for epsilon = 1e-5 beside variances; scaled by 1e3 already, what is left of it is 1e-11 of variances
    # of order 1, and with LayerNorm of some that are smaller.
    change = jnp.abs(logits(4e3) - logits(1e3)).max() / jnp.abs(logits(1e3)).max()
    assert float(change) > 1 if norm == "none" else float(change) < 1e-7


# Fixup


def test_fixup_starts_at_zero_and_with_open_shortcuts():
    net = models.from_linen(ResNet(3, 4, (2, 1), norm="fixup"))
    inputs, key = inputs_of(3, 4, 4, 2), jax.random.key(0, impl="rbg")  # the generator that compiles fastest
    params = jax.jit(net.init)(key, inputs)[0]
    assert not jax.jit(net.apply)(params, inputs).any()
    bound = math.sqrt(6 / (9 * 4)) * 3**-0.5  # uniform He, times num_blocks^(-1/2)
    for index in range(3):
        block = params[f"FixupBlock_{index}"]
        # The largest of n >= 144 uniform entries falls short of the bound by 8 % once in e^12.
        assert 0.92 * bound < float(jnp.abs(block["Conv_0"]["kernel"]).max()) <= bound * (1 + 1e-6)
        assert not block["Conv_1"]["kernel"].any()
        assert (float(block["multiplier"]), [float(block[f"bias_{place}"]) for place in range(4)]) == (1, [0] * 4)
    # Each block is its shortcut: the features are the stem's, through the one projection.
    stem = jax.nn.relu(convolve(inputs, params["Conv_0"]))
    last = jax.nn.relu(convolve(stem, params["FixupBlock_2"]["Conv_2"], 2))
    np.testing.assert_allclose(jax.jit(net.features)(params, inputs, {}), last.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_fixup_is_the_formula(shortcut, x64):
    net = models.from_linen(ResNet(3, 4, (1,), norm="fixup", shortcut=shortcut))
    (params, _), inputs = drawn(net, (4, 4, 2)), inputs_of(3, 4, 4, 2)
    block, head = params["FixupBlock_0"], params["Dense_0"]
    x = jax.nn.relu(convolve(inputs, params["Conv_0"]) + params["stem_bias"])
    y = jax.nn.relu(convolve(x + block["bias_0"], block["Conv_0"]) + block["bias_1"])
    y = convolve(y + block["bias_2"], block["Conv_1"]) * block["multiplier"] + block["bias_3"]
    past = x if shortcut == "identity" else convolve(x + block["bias_0"], block["Conv_2"])
    features = jax.nn.relu(y + past).mean((1, 2)) + params["head_bias"]
    np.testing.assert_allclose(net.apply(params, inputs), features @ head["kernel"] + head["bias"], rtol=1e-10)


# Construction


def test_equal_resnets_share_one_trace():
    first, second = (models.create("resnet", num_classes=3, width=4, stage_sizes=[1, 2]) for _ in range(2))
    assert first.update is second.update
    assert models.create("resnet", num_classes=3, width=4) == models.create("resnet18", num_classes=3, width=4)
    assert [shape[1:] for shape in first.module.blocks()] == [(1,), (2,), (1,)]
    assert [shape[0] for shape in first.module.blocks()] == [4, 8, 8]


def test_parametrisations_have_the_same_shapes():
    nets = [models.from_linen(ResNet(3, 4, (1, 1), parametrisation=each)) for each in ("standard", "ntk")]
    assert shapes_of(nets[0], (4, 4, 1)) == shapes_of(nets[1], (4, 4, 1))


@pytest.mark.parametrize(
    "message,options",
    [
        (r"norm must be one of \('batch', 'none', 'layer', 'fixup'\), got 'group'", {"norm": "group"}),
        (r"shortcut must be one of \('identity', 'projection'\), got 'pad'", {"shortcut": "pad"}),
        ("fixup starts each block as its shortcut, so it needs skip=True", {"norm": "fixup", "skip": False}),
        (r"at least one stage, each of at least 1 block, got \(\)", {"stages": 0}),
        (r"at least one stage, each of at least 1 block, got \(1, 0\)", {"stage_sizes": (1, 0)}),
        ("resnet has no option batch_norm: choose from stage_sizes, norm, skip", {"batch_norm": True}),
        (r"the resnet takes one width, of its first convolution, got \(4, 3\)", {"width": (4, 3)}),
        (
            r"depth \(blocks of every stage\) and stages .* or stage_sizes, not both",
            {"depth": 2, "stage_sizes": (1, 2)},
        ),
        (r"stages \(their number\) or stage_sizes, not both", {"stages": 2, "stage_sizes": (1, 2)}),
    ],
)
def test_errors(message, options):
    with pytest.raises(ValueError, match=message):
        models.create("resnet", **{"num_classes": 3, "width": 4} | options)
