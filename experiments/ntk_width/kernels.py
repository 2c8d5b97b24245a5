"""Kernels of the study's networks: the networks and images, the kernels with each kind of statistics, and what compares two of them.

A kernel is (N, N, C, C) over images and logits. Trained networks are drawn and trained in the standard parametrisation, of which the
paper's kernels are. `in_ntk_parametrisation` gives the same function in the NTK parametrisation, whose kernel at initialisation has a
limit; so has one and the same trained network a kernel to compare with itself before training, and one to compare with that limit.
"""

import functools
import math
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.ntk_width.settings import BATCH, Case, Settings
from jaxbp import data, lab, models, ntk
from jaxbp.ntk import measures
from jaxbp.runtime import device_memory

SALT = zlib.crc32(b"ntk_width, three widths, kernels after training against limits")  # random numbers that no earlier run has used
KERNELS = ("all logits", "pairs of images")
BEFORE, TARGET, END = "before training", "at the target loss", "at the end"


def load(settings: Settings, seed: int) -> data.Dataset:
    """The seed's own data, normalised by its training statistics."""
    return _load(settings.dataset, settings.num_train, settings.data_dir, seed)


@functools.lru_cache(maxsize=16)
def _load(dataset: str, num_train: int | None, data_dir: Path | None, seed: int) -> data.Dataset:
    return data.load(dataset, seed=seed + SALT % 2**31, num_train=num_train, normalise=True, data_dir=data_dir)


def probe_images(settings: Settings, seed: int, num_probes: int) -> jax.Array:
    """Class-balanced training images (N, H, W, C)."""
    return jnp.asarray(data.balanced_subset(load(settings, seed).train, num_probes, seed=seed).inputs)


def create(case: Case, settings: Settings, width: int, **changes: Any) -> models.Network:
    """The network of a width; ``changes`` replace some of its options."""
    return models.create(case.model, num_classes=load(settings, 0).num_classes, width=width, **dict(case.options) | changes)


def random_key(seed: int, *purpose: Any) -> jax.Array:
    """A random key of its own for each purpose."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(repr(purpose).encode()) ^ SALT)


def memory_of(settings: Settings) -> float:
    """Bytes that a kernel's temporaries may take: the bound of the settings, or what the job's device has to give, if that is less."""
    return min(settings.memory, _memory_of(lab.device()))


@functools.cache  # what is free changes, and with it would the blocks, and the last digits, of a kernel
def _memory_of(device: Any) -> int:
    return device_memory.default_bound(device, jax.local_device_count())


def kernel_of(net: models.Network, settings: Settings, params: Any, state: Any, probes: jax.Array, statistics: str) -> jax.Array:
    """The full kernel (N, N, C, C) of the images ``probes`` with one kind of statistics."""
    fn = models.with_batch_statistics(net) if statistics == BATCH else net.apply
    options = {"coupled": statistics == BATCH, "memory": memory_of(settings), "compiler_options": ntk.FAST_COMPILE_OPTIONS}
    return ntk.empirical_ntk(fn, params, probes, state=state, **options)


def trace(kernel: jax.Array) -> jax.Array:
    """Mean over the logits of a full kernel, (N, N)."""
    return jnp.einsum("ijkk->ij", kernel) / kernel.shape[-1]


@jax.jit
def correlations(before: jax.Array, after: jax.Array) -> jax.Array:
    """Correlations of `KERNELS`, (2,): of all entries, and of the trace kernel's entries for different images."""
    above = jnp.triu_indices(before.shape[0], 1)
    return jnp.stack(
        [measures.correlation(before, after), measures.correlation(*(trace(kernel)[above][None] for kernel in (before, after)))]
    )


@jax.jit
def comparison(before: jax.Array, after: jax.Array) -> dict[str, jax.Array]:
    """How a kernel has changed, by the name of the measure."""
    change = measures.relative_change(before, after)
    rescaled = measures.rescaled_change(before, after)
    norms = jnp.linalg.norm(before), jnp.linalg.norm(after)
    return {
        "relative_change": change,
        "share_of_rescaling": 1 - (rescaled.change * norms[1] / (change * norms[0])) ** 2,
        "correlation": correlations(before, after),
        "cosine": measures.cosine(before, after),
        "centred_alignment": measures.centred_alignment(before, after),
    }


@functools.partial(jax.jit, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def movement(before: Any, after: Any) -> jax.Array:
    """The l2 norm of the change of all parameters over that of the parameters before."""
    return measures.parameter_movement(before, after)["relative_l2"]


@functools.partial(jax.jit, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def at(tree: Any, row: int) -> Any:
    """A row of every array."""
    return jax.tree.map(lambda leaf: leaf[row], tree)


@functools.partial(jax.jit, static_argnums=0, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def initialised(net: models.Network, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    """Fresh parameters and state."""
    return net.init(key, inputs)


def in_ntk_parametrisation(params: Any) -> Any:
    """The parameters with which a network in the NTK parametrisation is the function that ``params`` make of one in the standard one.

    Kernels (..., inputs, outputs) are divided by the factor sqrt(2 / fan_in) that the NTK parametrisation multiplies them by.
    """

    def rescaled(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf / math.sqrt(2 * leaf.shape[-1] / leaf.size) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(rescaled, params)
