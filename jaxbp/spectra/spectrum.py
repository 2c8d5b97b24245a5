"""All singular values of a linear layer as an operator; each spectrum states its accuracy in the field ``how``.

- ``exact``     circular padding and dense layers, by the symbol (`jaxbp.spectra.symbol`); zero padding by the dense matrix while it is
                small;
- ``extremes``  zero padding, the ends of the spectrum by Golub and Kahan, each with a residual;
- ``circular``  zero padding approximated by a circular convolution that contains the layer, with proven bounds.

The bounds. Extended by zeros, the zero-padded operator T is the circular one C without some entries, E = C - T, those of taps outside the
map. Both ||C||_F and ||T||_F follow from the kernel's taps, and ||E||_F^2 = ||C||_F^2 - ||T||_F^2. Then

- sum_i (sigma_i(C) - sigma_i(T))^2 <= ||E||_F^2 (Mirsky);
- sigma_{i+r}(C) <= sigma_i(T) <= sigma_{i-r}(C) with r >= rank E, counted by rows or columns (Weyl);
- sigma_i(T) <= ||T||_F / sqrt(i);
- sigma_1(T) <= sigma_1(C) / prod cos(pi q / 2M), as the symbol is a trigonometric polynomial known at M points and q is the reach of the
  taps (Ehlich and Zeller, Math. Z. 86, 1964): within 1 % for 3x3 on 32x32;
- the nuclear norms differ by at most sqrt(r) ||E||_F.

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
from jaxtyping import Float, Num

from jaxbp import checks
from jaxbp.linalg import scaling
from jaxbp.linalg.golub_kahan import golub_kahan
from jaxbp.runtime.short_repr import short_repr
from jaxbp.spectra.geometry import Geometry, Padding
from jaxbp.spectra.symbol import Transform
from jaxbp.spectra.values import matrix_values

METHODS = ("auto", "circular", "dense", "extremes")

_DENSE_LIMIT = 1024  # largest min(rows, columns) of a dense matrix: half a second on one core
_DENSE_ENTRIES = 2**22  # largest number of entries of a dense matrix


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "lower", "upper", "frobenius", "gap", "nuclear_gap"),
    meta_fields=("how", "shape"),
)
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of an operator of ``shape`` (outputs, inputs), each field with the kernel's leading axes (...).

    Attributes:
      values: (..., count), descending: all min(shape) values; of "extremes" the largest and then the smallest values asked for.
      lower: (..., count) lower bounds of the true values.
      upper: (..., count) upper bounds. Of "extremes" each interval [lower, upper] contains a true value, and the largest true value is at
        least the largest entry of ``values``. Of "exact" both bounds are the values, which hold up to rounding.
      frobenius: (...), the operator's Frobenius norm, exact for every method.
      gap: (...), of "circular" ||E||_F, an upper bound of the root of the sum of squared errors of the values; else 0.
      nuclear_gap: (...), of "circular" an upper bound of the error of the nuclear norm; else 0.
      how: "exact", "extremes" or "circular".
      shape: (outputs, inputs) of the operator.
    """

    values: Float[jax.Array, "*batch count"]
    lower: Float[jax.Array, "*batch count"]
    upper: Float[jax.Array, "*batch count"]
    frobenius: Float[jax.Array, "..."]
    gap: Float[jax.Array, "..."]
    nuclear_gap: Float[jax.Array, "..."]
    how: str
    shape: tuple[int, int]

    def __repr__(self) -> str:
        return short_repr(self)


def singular_values(
    kernel: Num[jax.Array | np.ndarray, "..."],
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

    The function is compiled, differentiable once with respect to the kernel, and batched over the kernel's leading axes (or by vmap).

    Args:
      kernel: (..., \\*window, inputs / groups, outputs), the layout of Flax; float32 or float64.
      spatial, strides, padding, dilation, groups: see `Geometry.of`.
      method: of zero padding, one of `METHODS`; "auto" selects "dense" if the matrix of a group is small, else "circular".
      route: of `jaxbp.spectra.values`: "svd", "gram", or "auto" by backend.
      num_largest, num_smallest, num_steps: of "extremes", as in `jaxbp.linalg.golub_kahan`.
      key: for the start vector of "extremes"; default `jax.random.key(0)`.

    Raises:
      ValueError: for a complex kernel, a geometry that does not fit, an unknown method or route, or a dense matrix that is too large.
    """
    kernel = jnp.asarray(checks.numbers(kernel, "kernel"))
    shape = kernel.shape[max(kernel.ndim - len(spatial) - 2, 0) :]
    geometry = Geometry.of(shape, spatial, strides=strides, padding=padding, dilation=dilation, groups=groups)
    ends = (num_largest, num_smallest, num_steps)
    return of_geometry(kernel, geometry, method=method, route=route, ends=ends, key=key)


def of_geometry(
    kernel: Num[jax.Array, "..."],
    geometry: Geometry,
    *,
    method: str = "auto",
    route: str = "auto",
    ends: tuple[int, int, int] = (1, 1, 64),
    key: jax.Array | None = None,
) -> Spectrum:
    """`singular_values` of a layer with this geometry; ``ends`` are (num_largest, num_smallest, num_steps)."""
    kernel = real_kernel(kernel)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    group = dataclasses.replace(geometry, groups=1, inputs=geometry.inputs // geometry.groups, outputs=geometry.outputs // geometry.groups)
    entries = math.prod(group.shape)
    if method == "auto":
        small = min(group.shape) <= _DENSE_LIMIT and entries <= _DENSE_ENTRIES
        method = "dense" if small and not geometry.circular else "circular"
    if method == "circular" and geometry.pixels is not None:
        raise ValueError(
            f"a layer of shape {group.shape} whose map is padded by copies of its pixels has no circular bounds: choose method 'extremes' "
            "for the ends of the spectrum, 'dense' for all of it, or in of_network padding='circular' for that of the circular convolution"
        )
    if method == "dense" and entries > 16 * _DENSE_ENTRIES:
        raise ValueError(
            f"the matrix would have shape {group.shape}: choose method 'extremes' for the ends of the spectrum, or 'circular' "
            "for all of it with bounds"
        )
    scale = scaling.power_of_two(kernel, _kernel_axes(kernel, geometry))  # squares of 1e30 would overflow in float32
    kernel, scale = kernel / scale, scale.reshape(kernel.shape[: -len(_kernel_axes(kernel, geometry))])
    if method == "extremes":
        key = jax.random.key(0) if key is None else key
        spectrum = _extremes(kernel, key, geometry, ends)
    else:
        spectrum = _dense(kernel, geometry, group, route) if method == "dense" else _circular(kernel, geometry, route)
    return jax.tree.map(lambda field: field * scale.reshape(*scale.shape, *[1] * (field.ndim - scale.ndim)), spectrum)


def real_kernel(kernel: Num[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """The kernel in float32 or float64; integers and short floats in float32.

    Raises:
      ValueError: complex numbers, or no numbers.
    """
    if jnp.issubdtype(kernel.dtype, jnp.complexfloating) or not jnp.issubdtype(kernel.dtype, jnp.number):
        raise ValueError(f"kernels must be real numbers, got {kernel.dtype}: convert them, or take values of matrices by numpy.linalg.svd")
    if not jnp.issubdtype(kernel.dtype, jnp.floating) or jnp.finfo(kernel.dtype).bits < 32:
        return kernel.astype(jnp.float32)
    return kernel


@functools.partial(jax.jit, static_argnums=(1, 2))
def _circular(kernel: jax.Array, geometry: Geometry, route: str) -> Spectrum:
    own, paired = (matrix_values(part, route) for part in Transform(geometry).symbols(kernel))
    lead = own.shape[:-3]
    values = jnp.concatenate([part.reshape(*lead, math.prod(part.shape[-3:])) for part in (own, paired, paired)], -1)
    values = jnp.sort(values, axis=-1, descending=True)
    count, frobenius = min(geometry.shape), frobenius_norm(kernel, geometry)
    if geometry.circular:
        return _exact(_first(values, count), frobenius, geometry)
    num_dropped = math.prod(geometry.torus) - geometry.tap_counts()  # ||C||^2 - ||T||^2 would cancel in float32
    gap = jnp.sqrt(jnp.sum(jnp.asarray(num_dropped[..., None, None], kernel.dtype) * kernel**2, axis=_kernel_axes(kernel, geometry)))
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
    incidence = jnp.asarray(_incidence(group), kernel.dtype)  # (taps, outputs, inputs) of the map
    matrix = jnp.einsum("toi,...tchd->...hodic", incidence, parts, precision="highest")
    values = matrix_values(matrix.reshape(*lead, geometry.groups, *group.shape), route)
    values = jnp.sort(values.reshape(*lead, -1), axis=-1, descending=True)
    return _exact(_first(values, min(geometry.shape)), frobenius_norm(kernel, geometry), geometry)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _extremes(kernel: jax.Array, key: jax.Array, geometry: Geometry, ends: tuple[int, int, int]) -> Spectrum:
    inputs = (*geometry.spatial, geometry.inputs)
    outputs = (*geometry.output_spatial, geometry.outputs)
    tall = math.prod(outputs) >= math.prod(inputs)  # a wide operator has trivial zeros: use its adjoint
    start = jax.random.normal(key, inputs if tall else outputs, kernel.dtype)
    steps = min(ends[2], start.size)

    def ends_of(single: jax.Array) -> tuple[jax.Array, jax.Array]:
        frozen = jax.lax.stop_gradient(single)

        def forward(x: jax.Array) -> jax.Array:
            return geometry.apply(frozen, x)

        def adjoint(y: jax.Array) -> jax.Array:
            return jax.linear_transpose(forward, jnp.zeros(inputs, single.dtype))(y)[0]

        triplets = golub_kahan(forward if tall else adjoint, start, num_largest=ends[0], num_smallest=ends[1], num_steps=steps)
        left, right = (triplets.left, triplets.right) if tall else (triplets.right, triplets.left)
        # sigma = <u, A v> is stationary in both vectors, so constant vectors give the exact derivative.
        values = jnp.stack([jnp.vdot(u, geometry.apply(single, v)) for u, v in zip(left, right, strict=True)])
        return values, triplets.residuals

    lead = kernel.shape[: kernel.ndim - len(geometry.window) - 2]
    flat = kernel.reshape(-1, *kernel.shape[len(lead) :])
    values, residuals = (a.reshape(*lead, -1) for a in jax.lax.map(ends_of, flat))
    zero = jnp.zeros(lead, values.dtype)
    lower, upper = jnp.maximum(values - residuals, 0), values + residuals
    if ends[0]:
        lower = lower.at[..., 0].set(values[..., 0])
    frobenius = frobenius_norm(kernel, geometry)
    return Spectrum(values, lower, upper, frobenius, zero, zero, "extremes", geometry.shape)


def frobenius_norm(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """(...) the operator's Frobenius norm, from the squared taps and the number of outputs of each tap; the gradient at 0 is 0."""
    if geometry.circular and any(reach > n for reach, n in zip(geometry.reach, geometry.spatial, strict=True)):
        own, paired = Transform(geometry).symbols(kernel)  # taps at the same pixel add up before the square
        squares = jnp.sum(own**2, (-4, -3, -2, -1)) + 2 * jnp.sum(jnp.abs(paired) ** 2, (-4, -3, -2, -1))
        return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)
    if geometry.pixels is not None:  # an output may see a pixel through several taps, which add up before the square
        taps = kernel.reshape(*kernel.shape[: kernel.ndim - len(geometry.window) - 2], -1, *kernel.shape[-2:])
        pairs = jnp.asarray(geometry.shared_sights(), kernel.dtype)
        squares = jnp.einsum("...tio,tu,...uio->...", taps, pairs, taps, precision="highest")
        return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)
    counts = jnp.asarray(geometry.tap_counts()[..., None, None], kernel.dtype)
    squares = jnp.sum(counts * kernel**2, axis=_kernel_axes(kernel, geometry))
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)


def _exact(values: jax.Array, frobenius: jax.Array, geometry: Geometry) -> Spectrum:
    zero = jnp.zeros_like(frobenius)
    return Spectrum(values, values, values, frobenius, zero, zero, "exact", geometry.shape)


def _first(values: jax.Array, count: int) -> jax.Array:
    """The first ``count`` entries along the last axis, padded with zeros."""
    missing = max(count - values.shape[-1], 0)
    return jnp.pad(values[..., :count], [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def _kernel_axes(kernel: jax.Array, geometry: Geometry) -> tuple[int, ...]:
    return tuple(range(kernel.ndim - len(geometry.window) - 2, kernel.ndim))


def _incidence(geometry: Geometry) -> np.ndarray:
    """(taps, outputs, inputs): 1 where a pixel of the output sees a pixel of the input through a tap."""
    axes = []
    for sight, n in zip(geometry.sights(), geometry.spatial, strict=True):
        seen = sight % n if geometry.padding == "circular" else sight
        axes.append((seen.T[:, :, None] == np.arange(n)).astype(np.int8))  # (taps, outputs, inputs)
    taps = itertools.product(*(range(len(axis)) for axis in axes))
    unit = np.ones((1, 1), np.int8)
    return np.stack([functools.reduce(np.kron, [a[t] for a, t in zip(axes, tap, strict=True)], unit) for tap in taps])
