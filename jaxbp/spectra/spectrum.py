"""All singular values of a linear layer as an operator, and a plain word on how they were got.

- ``exact``     circular padding and dense layers, by the symbol (`jaxbp.spectra.symbol`); zero padding by the dense matrix while
                that is small;
- ``extremes``  zero padding, the ends of the spectrum by Golub and Kahan, with a residual each;
- ``circular``  zero padding taken for the circular convolution out of which it is cut, with proven bounds.

The bounds. Filled up with zeros the zero-padded operator T is the circular one C without some entries, E = C - T, those of taps that
fall off the map. So ||E||_F^2 = ||C||_F^2 - ||T||_F^2, both from the kernel's taps; sum_i (sigma_i(C) - sigma_i(T))^2 <= ||E||_F^2
(Mirsky); sigma_{i+r}(C) <= sigma_i(T) <= sigma_{i-r}(C) with r >= rank E, counted by rows or columns (Weyl); sigma_i(T) <=
||T||_F / sqrt(i); sigma_1(T) <= sigma_1(C) / prod cos(pi q / 2M), the symbol being a trigonometric polynomial known at M points
(Ehlich and Zeller, Math. Z. 86, 1964), q the taps' reach: within 1 % for 3x3 on 32x32. The nuclear norms differ by at most sqrt(r) ||E||_F.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import spectra
>>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 16))
>>> spectra.singular_values(kernel, (32, 32), strides=2).values.shape      # min(16 * 16 * 16, 32 * 32 * 8)
(4096,)
>>> zero = spectra.singular_values(kernel, (32, 32), strides=2, padding="zero")
>>> zero.how, bool((zero.lower <= zero.upper).all())
('circular', True)
>>> ends = spectra.singular_values(kernel, (32, 32), strides=2, padding="zero", method="extremes", num_smallest=0)
>>> ends.how, bool(ends.values[0] <= zero.upper[0])
('extremes', True)
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.linalg.golub_kahan import golub_kahan
from jaxbp.spectra.geometry import Geometry, Padding
from jaxbp.spectra.symbol import Transform
from jaxbp.spectra.values import matrix_values

METHODS = ("auto", "circular", "dense", "extremes")

_DENSE_LIMIT = 1024  # rows or columns of a matrix, whichever are fewer: half a second on one core
_DENSE_ENTRIES = 2**22  # of a matrix


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "lower", "upper", "frobenius", "gap", "nuclear_gap"),
    meta_fields=("how", "shape"),
)
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of an operator of ``shape`` (outputs, inputs), each field with the kernel's leading axes (...).

    Attributes:
      values: (..., count), descending: all min(shape) of them, or of "extremes" the largest and then the smallest asked for.
      lower, upper: (..., count) between which the true values lie; of "extremes" an interval that contains a true value (the
        largest one lies at or above its value). Of "exact" the values themselves: they hold to rounding.
      frobenius: (...), the operator's Frobenius norm, exact in every case.
      gap: (...), of "circular" ||E||_F, which bounds the root of the sum of squared errors of the values; else 0.
      nuclear_gap: (...), of "circular" a bound on the error of the nuclear norm; else 0.
      how: "exact", "extremes" or "circular".
      shape: (outputs, inputs) of the operator.
    """

    values: jax.Array
    lower: jax.Array
    upper: jax.Array
    frobenius: jax.Array
    gap: jax.Array
    nuclear_gap: jax.Array
    how: str
    shape: tuple[int, int]


def singular_values(
    kernel: jax.Array,
    spatial: Sequence[int] = (),
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "circular",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    method: str = "auto",
    route: str = "auto",
    num_largest: int = 1,
    num_smallest: int = 1,
    num_steps: int = 64,
    key: jax.Array | None = None,
) -> Spectrum:
    """Singular values of a convolution, or with ``spatial`` () of a dense layer, as an operator.

    Jitted, differentiable once with respect to the kernel, and batched over its leading axes (or by vmap).

    Args:
      kernel: (..., \\*window, inputs / groups, outputs), as Flax keeps it; float32 or float64.
      spatial, strides, padding, dilation, groups: see `Geometry.of`.
      method: of zero padding; "auto" takes "dense" while a group's matrix is small, then "circular". "extremes" must be asked for.
      route: of `jaxbp.spectra.values`: "svd", "gram", or "auto" by backend.
      num_largest, num_smallest, num_steps: of "extremes".
      key: for the start vector of "extremes"; `jax.random.key(0)` if left out.

    Raises:
      ValueError: a geometry that does not fit, an unknown method or route, a dense matrix beyond all bounds.
    """
    kernel = jnp.asarray(kernel)
    shape = kernel.shape[max(kernel.ndim - len(spatial) - 2, 0) :]
    geometry = Geometry.of(shape, spatial, strides=strides, padding=padding, dilation=dilation, groups=groups)
    ends = (num_largest, num_smallest, num_steps)
    return of_geometry(kernel, geometry, method=method, route=route, ends=ends, key=key)


def of_geometry(
    kernel: jax.Array,
    geometry: Geometry,
    *,
    method: str = "auto",
    route: str = "auto",
    ends: tuple[int, int, int] = (1, 1, 64),
    key: jax.Array | None = None,
) -> Spectrum:
    """`singular_values` for a geometry that is known; ``ends``: num_largest, num_smallest, num_steps."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    group = dataclasses.replace(geometry, groups=1, inputs=geometry.inputs // geometry.groups, outputs=geometry.outputs // geometry.groups)
    entries = math.prod(group.shape)
    if method == "auto":
        small = min(group.shape) <= _DENSE_LIMIT and entries <= _DENSE_ENTRIES
        method = "dense" if small and not geometry.circular else "circular"
    if method == "dense" and entries > 16 * _DENSE_ENTRIES:
        raise ValueError(
            f"the matrix would have shape {group.shape}: choose method 'extremes' for the ends of the spectrum, or 'circular' "
            "for all of it with bounds"
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating) or jnp.finfo(kernel.dtype).bits < 32:
        kernel = kernel.astype(jnp.float32)
    if method == "extremes":
        key = jax.random.key(0) if key is None else key
        return _extremes(kernel, key, geometry, ends)
    return _dense(kernel, geometry, group, route) if method == "dense" else _circular(kernel, geometry, route)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _circular(kernel: jax.Array, geometry: Geometry, route: str) -> Spectrum:
    own, paired = (matrix_values(part, route) for part in Transform(geometry).symbols(kernel))
    lead = own.shape[:-3]
    values = jnp.concatenate([part.reshape(*lead, math.prod(part.shape[-3:])) for part in (own, paired, paired)], -1)
    values = jnp.sort(values, axis=-1, descending=True)
    count, frobenius = min(geometry.shape), frobenius_norm(kernel, geometry)
    if geometry.circular:
        return _exact(_first(values, count), frobenius, geometry)
    fallen = math.prod(geometry.torus) - geometry.tap_counts()  # not ||C||^2 - ||T||^2, which cancels in float32
    gap = jnp.sqrt(jnp.sum(jnp.asarray(fallen[..., None, None], kernel.dtype) * kernel**2, axis=_kernel_axes(kernel, geometry)))
    rank = geometry.changed_rank()
    first = _first(values, count)
    lower = jnp.maximum(jnp.maximum(first - gap[..., None], 0), _first(values[..., rank:], count))
    before = jnp.concatenate([jnp.full((*lead, min(rank, count)), jnp.inf), _first(values, max(count - rank, 0))], -1)
    share = frobenius[..., None] / jnp.sqrt(jnp.arange(1, count + 1, dtype=values.dtype))
    upper = jnp.minimum(jnp.minimum(first + gap[..., None], before), share)
    upper = jnp.minimum(upper, first[..., :1] * geometry.overshoot()).astype(values.dtype)
    return Spectrum(first, lower, upper, frobenius, gap, math.sqrt(rank) * gap, "circular", geometry.shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dense(kernel: jax.Array, geometry: Geometry, group: Geometry, route: str) -> Spectrum:
    axes = len(geometry.window)
    *lead_and_window, inputs, _ = kernel.shape
    lead = lead_and_window[: len(lead_and_window) - axes]
    parts = kernel.reshape(*lead, math.prod(geometry.window), inputs, geometry.groups, group.outputs)
    meets = jnp.asarray(_meetings(group), kernel.dtype)  # (taps, outputs, inputs) of the map
    matrix = jnp.einsum("toi,...tchd->...hodic", meets, parts, precision="highest")
    values = matrix_values(matrix.reshape(*lead, geometry.groups, *group.shape), route)
    values = jnp.sort(values.reshape(*lead, -1), axis=-1, descending=True)
    return _exact(_first(values, min(geometry.shape)), frobenius_norm(kernel, geometry), geometry)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _extremes(kernel: jax.Array, key: jax.Array, geometry: Geometry, ends: tuple[int, int, int]) -> Spectrum:
    inputs = (*geometry.spatial, geometry.inputs)
    outputs = (*geometry.output_spatial, geometry.outputs)
    tall = math.prod(outputs) >= math.prod(inputs)  # else the adjoint, whose smallest value is not 0 for lack of outputs
    start = jax.random.normal(key, inputs if tall else outputs, kernel.dtype)
    steps = min(ends[2], start.size)

    def of_one(one: jax.Array) -> tuple[jax.Array, jax.Array]:
        frozen = jax.lax.stop_gradient(one)

        def forward(x: jax.Array) -> jax.Array:
            return geometry.apply(frozen, x)

        def adjoint(y: jax.Array) -> jax.Array:
            return jax.linear_transpose(forward, jnp.zeros(inputs, one.dtype))(y)[0]

        found = golub_kahan(forward if tall else adjoint, start, num_largest=ends[0], num_smallest=ends[1], num_steps=steps)
        left, right = (found.left, found.right) if tall else (found.right, found.left)
        # sigma = <u, A v> is stationary in both vectors, so held fast they leave the exact derivative.
        values = jnp.stack([jnp.vdot(u, geometry.apply(one, v)) for u, v in zip(left, right, strict=True)])
        return values, found.residuals

    lead = kernel.shape[: kernel.ndim - len(geometry.window) - 2]
    flat = kernel.reshape(-1, *kernel.shape[len(lead) :])
    values, residuals = (a.reshape(*lead, -1) for a in jax.lax.map(of_one, flat))
    none = jnp.zeros(lead, values.dtype)
    lower, upper = jnp.maximum(values - residuals, 0), values + residuals
    if ends[0]:
        lower = lower.at[..., 0].set(values[..., 0])
    return Spectrum(
        values, lower, upper, frobenius_norm(kernel, geometry), none, none, "extremes", geometry.shape
    )  # fmt: skip


def frobenius_norm(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """(...) the operator's Frobenius norm, from the squares of the taps and how many outputs each serves; gradient 0 at 0."""
    if geometry.circular and any(reach > n for reach, n in zip(geometry.reach, geometry.spatial, strict=True)):
        own, paired = Transform(geometry).symbols(kernel)  # taps meet on one pixel and add up before they are squared
        squares = jnp.sum(own**2, (-4, -3, -2, -1)) + 2 * jnp.sum(jnp.abs(paired) ** 2, (-4, -3, -2, -1))
        return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)
    counts = jnp.asarray(geometry.tap_counts()[..., None, None], kernel.dtype)
    squares = jnp.sum(counts * kernel**2, axis=_kernel_axes(kernel, geometry))
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)


def _exact(values: jax.Array, frobenius: jax.Array, geometry: Geometry) -> Spectrum:
    none = jnp.zeros_like(frobenius)
    return Spectrum(values, values, values, frobenius, none, none, "exact", geometry.shape)


def _first(values: jax.Array, count: int) -> jax.Array:
    """The first ``count`` along the last axis, filled up with zeros."""
    missing = max(count - values.shape[-1], 0)
    return jnp.pad(values[..., :count], [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def _kernel_axes(kernel: jax.Array, geometry: Geometry) -> tuple[int, ...]:
    return tuple(range(kernel.ndim - len(geometry.window) - 2, kernel.ndim))


def _meetings(geometry: Geometry) -> np.ndarray:
    """(taps, outputs, inputs): whether a pixel of the output sees one of the input through a tap."""
    axes = []
    for sight, n in zip(geometry.sights(), geometry.spatial, strict=True):
        seen = sight % n if geometry.padding == "circular" else sight
        axes.append((seen.T[:, :, None] == np.arange(n)).astype(np.int8))  # (taps, outputs, inputs)
    taps = itertools.product(*(range(len(axis)) for axis in axes))
    one = np.ones((1, 1), np.int8)
    return np.stack([functools.reduce(np.kron, [a[t] for a, t in zip(axes, tap, strict=True)], one) for tap in taps])
