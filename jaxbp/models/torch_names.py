"""Weights of a PyTorch model in a network of this package: a table says which layer is which; nothing of PyTorch is needed or run.

The weights come from a safetensors file (``safetensors.torch.save_file(model.state_dict(), path)``), which holds numbers and names
only, so that reading one executes nothing, unlike PyTorch's own pickled files. A table maps the path of each layer of the Flax module
to the prefix of its names in PyTorch, ``"BasicBlock_0/Conv_0": "layer1.0.conv1"``. Layouts differ: kernels are (O, I, H, W) and
(O, I) there, (H, W, I, O) and (I, O) here. A linear layer that reads a flattened map of more than one pixel reads its pixels in another
order there (C, H, W), which a table of names cannot mend.

>>> from jaxbp import models
>>> table = models.resnet_torch_names(models.create("resnet18", num_classes=10, width=64).module)
>>> table["Conv_0"], table["BasicBlock_2/Conv_2"], table["Dense_0"]
('conv1', 'layer2.0.downsample.0', 'fc')
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.models.network import Network, State
from jaxbp.models.resnet import ResNet

_NAMES = {  # of a leaf: the name of its tensor
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # of a tensor there, in the order in which they stand here
_COUNTER = "num_batches_tracked"  # of BatchNorm, which has no use for it here


def from_torch_names(
    net: Network, path: str | os.PathLike, input_shape: Sequence[int], *, names: Mapping[str, str] | None = None
) -> tuple[Any, State]:
    """The parameters and the state of ``net`` from a safetensors file with the names of a PyTorch model.

    Args:
      net: of the same layers, in the "standard" parametrisation.
      path: the file; takes the package safetensors.
      input_shape: of one example, (H, W, C).
      names: path of each layer that has parameters, joined by "/", to the prefix of its tensors; by default that of `resnet_torch_names`,
        by the names "shortcut" and "linear" where the file has these.

    Returns:
      ``(params, state)`` for ``net.apply(params, inputs, state)``, float32, whatever floating-point numbers the file holds.

    Raises:
      ValueError: no such file, a file of another kind, tensors that are missing, left over, of another shape or no floating-point
        numbers, or a network for which there is no table.
    """
    if getattr(net.module, "parametrisation", "standard") != "standard":
        raise ValueError(f"PyTorch's kernels are used as they are, got parametrisation={net.module.parametrisation!r}: choose 'standard'")
    tensors = {name: tensor for name, tensor in _read(Path(path)).items() if not name.endswith(_COUNTER)}
    table = _default_names(net.module, tensors) if names is None else names
    wanted = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    used: dict[str, str] = {}

    def carried(leaf_path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        *layer, kind = (key.key for key in leaf_path)
        name = _tensor_name("/".join(layer), kind, table)
        used[name] = jax.tree_util.keystr(leaf_path)
        return _as_leaf(tensors, name, leaf)

    params, state = wanted
    params = jax.tree_util.tree_map_with_path(carried, params)
    state = {collection: jax.tree_util.tree_map_with_path(carried, tree) for collection, tree in state.items()}
    if unused := sorted(tensors.keys() - used.keys()):
        raise ValueError(
            f"{path} holds tensors that no layer of the network takes, {_some(unused)}: name their layers, or choose the network"
        )
    return params, state


def resnet_torch_names(module: ResNet, *, shortcut: str = "downsample", head: str = "fc") -> dict[str, str]:
    """The table of a ResNet of basic blocks with BatchNorm, by the names that torchvision gives to its layers.

    Args:
      module: of the network.
      shortcut, head: the names of a block's projection and of the linear layer; "shortcut" and "linear" in many CIFAR models.

    Raises:
      ValueError: another network, or one without BatchNorm or with pre-activation.
    """
    if not isinstance(module, ResNet) or module.norm != "batch" or module.pre_activation:
        raise ValueError(f"there is no table of names for {module!r}, only for a ResNet of basic blocks with norm='batch': give names")
    table = {"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": head}
    for index, prefix in enumerate(_block_prefixes(module)):
        for layer, (conv, norm) in enumerate((("conv1", "bn1"), ("conv2", "bn2"), (f"{shortcut}.0", f"{shortcut}.1"))):
            table |= {f"BasicBlock_{index}/Conv_{layer}": prefix + conv, f"BasicBlock_{index}/BatchNorm_{layer}": prefix + norm}
    return table


def _block_prefixes(module: ResNet) -> Iterator[str]:
    for stage, num_blocks in enumerate(module.stage_sizes, start=1):
        yield from (f"layer{stage}.{block}." for block in range(num_blocks))


def _default_names(module: Any, tensors: Mapping[str, Any]) -> dict[str, str]:
    shortcut = "shortcut" if any(".shortcut." in name for name in tensors) else "downsample"
    return resnet_torch_names(module, shortcut=shortcut, head="linear" if "linear.weight" in tensors else "fc")


def _read(path: Path) -> dict[str, jax.Array]:
    try:
        import safetensors
        import safetensors.flax
    except ImportError as error:
        raise ValueError("weights of PyTorch take the package safetensors: pip install 'jaxbp[weights]'") from error
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return safetensors.flax.load_file(str(path))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}): write one in PyTorch by safetensors.torch.save_file(model.state_dict(), path)"
        ) from error


def _tensor_name(layer: str, kind: str, table: Mapping[str, str]) -> str:
    if layer not in table or kind not in _NAMES:
        raise ValueError(f"names has no entry for the layer {layer!r} with its {kind!r}: give {{{layer!r}: 'prefix in PyTorch'}}")
    return f"{table[layer]}.{_NAMES[kind]}"


def _as_leaf(tensors: Mapping[str, jax.Array], name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if name not in tensors:
        raise ValueError(f"the file has no tensor {name!r}, only {_some(sorted(tensors))}: correct names, or choose the network")
    tensor = tensors[name]
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"the tensor {name!r} must be floating-point numbers, got {tensor.dtype}")
    array = jnp.asarray(np.transpose(tensor, _AXES[tensor.ndim]) if tensor.ndim in _AXES else tensor, jnp.float32)
    if array.shape != leaf.shape:
        raise ValueError(f"the tensor {name!r} must give shape {leaf.shape}, got {array.shape}: the networks differ, in width for instance")
    return array


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
