"""Finite networks against their exact infinite-width kernels with BatchNorm: how far one is, and how that falls with width.

``python -m experiments.benchmarks batch_norm_networks [--quick] [--out FILE.json]``. Nothing is timed. For each network, at two widths,
tangent kernels of fresh networks in the NTK parametrisation, and the kernels of their last features, are compared with the exact tangent
kernel and NNGP kernel, in the Frobenius norm relative to these: the mean over networks of the wider ones beside what the standard errors
of that mean alone amount to, and the exponent of the distance of one network over width beside -1/2, that of the central limit theorem.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.settings import BatchNormNetworks
from jaxbp import data, lab, models, ntk, stats
from jaxbp.ntk.infinite_width import infinite_width_kernel
from jaxbp.runtime.files import write_atomically

_CHANNELS = 2**14  # of exact kernels at shortcuts
_NUM_LOGITS = 2
_LAST = "Dense_0"  # the last layer of a `jaxbp.models.ResNet`
KERNELS = ("nngp", "ntk")


@dataclass(frozen=True)
class Case:
    """A network at two widths.

    Attributes:
      options: of `jaxbp.models.ResNet`.
      statistics: of its BatchNorm.
      num_images: of 4x4 pixels.
      dense: whether pixels are channels of one pixel, so that all layers are dense.
    """

    name: str
    options: Mapping[str, Any]
    widths: tuple[int, int] = (16, 64)
    statistics: str = "batch"
    num_images: int = 5
    dense: bool = False


_CHAIN, _PROJECTIONS = {"skip": False}, {"shortcut": "projection"}
CASES = (
    Case("3 dense layers", {**_CHAIN, "stage_sizes": (1,)}, (64, 256), num_images=10, dense=True),
    Case("5 dense layers", {**_CHAIN, "stage_sizes": (2,)}, (64, 256), num_images=10, dense=True),
    Case("ResNet without skips, 1 block", {**_CHAIN, "stage_sizes": (1,)}),
    Case("ResNet, projections, 1 block", {**_PROJECTIONS, "stage_sizes": (1,)}),
    Case("ResNet, projections, 2 stages", {**_PROJECTIONS, "stage_sizes": (1, 1)}),
    Case("ResNet, identity shortcuts, 2 blocks", {"stage_sizes": (2,)}),
    Case("ResNet without skips, 2 stages, stored statistics", {**_CHAIN, "stage_sizes": (1, 1)}, statistics="stored"),
    Case("ResNet, projections, 2 stages, stored statistics", {**_PROJECTIONS, "stage_sizes": (1, 1)}, statistics="stored"),
)


def run(arguments: BatchNormNetworks) -> None:
    """Run all cases and print the table."""
    lab.start_jax()
    cases = (CASES[0], CASES[2]) if arguments.quick else CASES
    rows = [row for case in cases for row in compare(case, 8 if arguments.quick else arguments.copies)]
    _print(rows)
    if arguments.out is not None:
        write_atomically(arguments.out, (json.dumps(rows, indent=2) + "\n").encode())


def compare(case: Case, num_copies: int) -> list[dict[str, Any]]:
    """The rows of a case, one for each kernel; all distances are relative to the exact kernel.

    Returns:
      case, copies, kernel ("nngp" or "ntk"); widths and ``distance`` of one network at each, mean over the copies; ``difference`` of the
      mean over the wider copies, and its ``floor``; ``exponent`` of one network's distance, with the ends ``low`` and ``high`` of its
      95 % interval.
    """
    images = _images(case)
    exact = exact_kernels(case, images)
    finite = [finite_kernels(case, images, width, num_copies) for width in case.widths]
    return [
        {"case": case.name, "copies": num_copies, "kernel": name, "widths": case.widths}
        | _distances(case.widths, [kernels[name] for kernels in finite], exact[name])
        for name in KERNELS
    ]


def _distances(widths: tuple[int, int], samples: Sequence[np.ndarray], exact: np.ndarray) -> dict[str, Any]:
    distances = np.stack([_norm(kernels - exact) for kernels in samples], -1) / _norm(exact)  # (copies, widths)
    exponent = stats.trend(widths, distances, log_values=True)
    wider = samples[1]
    return {
        "distance": distances.mean(0).tolist(),
        "difference": float(_norm(wider.mean(0) - exact) / _norm(exact)),
        "floor": float(np.sqrt((wider.var(0, ddof=1) / len(wider)).sum()) / _norm(exact)),
        "exponent": exponent.estimate,
        "low": exponent.low,
        "high": exponent.high,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="kernels of finite networks against the exact ones", title_justify="left")
    figures = ("distance of one", "exponent", "mean of the wider to exact", "standard errors alone", "networks")
    for column in ("network", "kernel", "widths", *figures):
        table.add_column(column, overflow="fold")
    for row in rows:
        widths, distances = (", ".join(f"{number:.3g}" for number in row[name]) for name in ("widths", "distance"))
        exponent = f"{row['exponent']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        shares = (f"{100 * row[name]:.2g} %" for name in ("difference", "floor"))
        table.add_row(row["case"], row["kernel"].upper(), widths, distances, exponent, *shares, str(row["copies"]))
    Console(width=150).print(table)


def exact_kernels(case: Case, images: np.ndarray) -> dict[str, np.ndarray]:
    """The exact kernels of one logit, each (N, N)."""
    options = {"channels": _CHANNELS, "key": jax.random.key(0)}
    report = infinite_width_kernel(_net(case, 1).module, images.shape[1:], statistics=case.statistics, **options).report(images)
    return {name: np.asarray(getattr(report, name)) for name in KERNELS}


def finite_kernels(case: Case, images: np.ndarray, width: int, num_copies: int) -> dict[str, np.ndarray]:
    """Kernels of fresh networks, mean over logits, each (copies, N, N).

    The kernel of the last features is the tangent kernel of the last layer's weights, since logits are linear in them.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(width), zlib.crc32(case.name.encode())), num_copies)
    net, inputs, coupled = _net(case, width), jnp.asarray(images, jnp.float32), case.statistics == "batch"
    apply_fn = models.with_batch_statistics(net) if coupled else net.apply

    @jax.jit
    def kernels_of(key: jax.Array) -> dict[str, jax.Array]:
        params, state = net.init(key, inputs)

        def of_last_weights(weights: jax.Array, inputs: jax.Array, state: Any) -> jax.Array:
            return apply_fn(params | {_LAST: params[_LAST] | {"kernel": weights}}, inputs, state)

        def tangent_kernel(fn: Callable, params: Any) -> jax.Array:
            return ntk.empirical_ntk(fn, params, inputs, state=state, logits="trace", coupled=coupled) / _NUM_LOGITS

        return {"nngp": tangent_kernel(of_last_weights, params[_LAST]["kernel"]), "ntk": tangent_kernel(apply_fn, params)}

    copies = [jax.device_get(kernels_of(key)) for key in keys]
    return {name: np.stack([np.asarray(kernels[name], float) for kernels in copies]) for name in KERNELS}


def _net(case: Case, width: int) -> Any:
    return models.from_linen(models.ResNet(_NUM_LOGITS, width, parametrisation="ntk", **case.options))


def _images(case: Case) -> np.ndarray:
    images = np.asarray(data.load("digits@4", num_train=200, normalise=True).train.inputs[: case.num_images], float)
    return images.reshape(len(images), 1, 1, -1) if case.dense else images


def _norm(kernels: np.ndarray) -> np.ndarray:
    """Frobenius norms of (..., N, N)."""
    return np.linalg.norm(kernels.reshape(*kernels.shape[:-2], math.prod(kernels.shape[-2:])), axis=-1)
