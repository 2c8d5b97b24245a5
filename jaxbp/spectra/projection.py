"""RankMin and RankMax: cut or cap the singular values of a network's layers, as a pure function of the parameters.

*RankMin* ("Truth or Backpropaganda?", Goldblum et al., ICLR 2020, section 5) sets small singular values of each layer to 0; *RankMax*
lowers large singular values to a ceiling. The kernel of the new operator is larger than the window, so a second projection cuts it back to
the window, which undoes a part of the change. The paper makes one such pair of projections. `num_projections` > 1 repeats them until the
next one would remove less than ``tolerance`` times the layer's norm. Both projections shorten the operator and are orthogonal, so the
squares of all removed parts add up to at most ||W||_F^2, and the loop ends. For RankMax, whose ceiling is a convex set, it ends in a
kernel that satisfies both conditions (von Neumann; Bauschke and Borwein, SIAM Review 38, 1996). RankMin may end far below its start; the
report gives the ranks and norms reached.

No SVD is needed. Let V be the eigenvectors of the smaller Gram matrix of a symbol H; then sigma_i = ||H v_i||, and the change is
H V (f(sigma) / sigma - 1) V*. It is exactly 0 where no value changes, so a layer that already satisfies its rule keeps its bits. Layers of
equal geometry are stacked. Zero-padded layers are treated on the torus that contains them, so their values are those of the circular
convolution, as in the paper, but with the network's map sizes and strides.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import spectra
>>> params = {"kernel": jax.random.normal(jax.random.key(0), (12, 8))}
>>> cut = spectra.rank_min(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 12)), threshold=2.5, pattern="kernel")
>>> smaller, report = jax.jit(cut)(params)
>>> bool(report["kernel"].rank_after < report["kernel"].rank_before), smaller["kernel"].shape
(True, (12, 8))
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp.linalg import scaling
from jaxbp.spectra import rules
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.network import Layer, Pattern, as_circular, grouped, inner_convolutions, layers_of
from jaxbp.spectra.ranks import nuclear_rank, numerical_rank
from jaxbp.spectra.spectrum import of_geometry, real_kernel
from jaxbp.spectra.symbol import Transform
from jaxbp.spectra.values import decompose_sequentially

Projection = Callable[[Any], tuple[Any, dict[str, "LayerReport"]]]
Target = float | Mapping[str, float]


class LayerReport(NamedTuple):
    """Effect of a projection on one layer; all fields are scalars.

    "Before" refers to the kernel at the start, "after" to the kernel at the end.

    Attributes:
      rank_before, rank_after: nuclear ranks.
      numerical_rank_before, numerical_rank_after: numerical ranks.
      norm_before, norm_after: Frobenius norms of the operator.
      largest, smallest: extreme singular values after the projection.
      removed_before, removed_after: part that the next projection would remove, relative to the Frobenius norm. It is positive after a
        projection if the cut to the window restored values.
      num_projections: number of projections; 0 if the layer already satisfied its rule.
    """

    rank_before: jax.Array
    rank_after: jax.Array
    numerical_rank_before: jax.Array
    numerical_rank_after: jax.Array
    norm_before: jax.Array
    norm_after: jax.Array
    largest: jax.Array
    smallest: jax.Array
    removed_before: jax.Array
    removed_after: jax.Array
    num_projections: jax.Array

    def scaled(self, factor: jax.Array) -> "LayerReport":
        """The report on a layer that is ``factor`` times as large."""
        sizes = {name: factor * getattr(self, name) for name in ("norm_before", "norm_after", "largest", "smallest")}
        return self._replace(**sizes)


def rank_min(
    fn: Callable,
    params: Any,
    inputs: Any,
    *,
    threshold: Target | None = None,
    energy: Target | None = None,
    target_rank: Target | None = None,
    relative_rank: Target | None = None,
    pattern: Pattern = inner_convolutions,
    num_projections: int = 1,
    tolerance: float = 1e-3,
) -> Projection:
    """Return ``params -> (params, report by layer name)`` that sets small singular values to 0.

    The projection is pure and jittable, also inside `lax.cond`, `lax.scan` and vmap over seeds. Exactly one of the four rules is given: a
    number for all layers of the pattern, or a mapping from layer names to numbers (other layers do not change).

    Args:
      fn, params, inputs: the network, see `spectra.layers_of`; only shapes matter.
      threshold: values below it become 0 (paper: 0.5).
      energy: keep the largest values that hold this share of the squared Frobenius norm; in (0, 1].
      target_rank: keep the largest values whose nuclear rank is at most this.
      relative_rank: as ``target_rank``, relative to the layer's nuclear rank at the start; in (0, 1].
      pattern: selects the layers, see `spectra.layers_of`; the default is the paper's selection.
      num_projections: largest number of projections; 1 cuts back to the window once, as the paper does.
      tolerance: stop when the next projection would remove less than this share of the norm.

    Raises:
      ValueError: for no rule or several, a value out of range, a name that is no layer, a parameter used in two geometries, or a selected
        layer whose kernel is a function of its parameters (weight normalisation, masks); as `spectra.layers_of`.
    """
    choices = {"threshold": threshold, "energy": energy, "target_rank": target_rank, "relative_rank": relative_rank}
    return _projection("rank_min", choices, fn, params, inputs, pattern, num_projections, tolerance)


def rank_max(
    fn: Callable,
    params: Any,
    inputs: Any,
    *,
    ceiling: Target | None = None,
    target_rank: Target | None = None,
    relative_rank: Target | None = None,
    pattern: Pattern = inner_convolutions,
    num_projections: int = 1,
    tolerance: float = 1e-3,
) -> Projection:
    """Return ``params -> (params, report by layer name)`` that lowers large singular values to a ceiling.

    The arguments are those of `rank_min`, with these rules. If a target exceeds the root of the numerical rank, no ceiling reaches it, and
    the layer does not change.

    Args:
      fn, params, inputs, pattern, num_projections, tolerance: as in `rank_min`.
      ceiling: values above it are lowered to it (paper: 1.5).
      target_rank: use the highest ceiling that gives at least this nuclear rank.
      relative_rank: as ``target_rank``, as a multiple (at least 1) of the layer's nuclear rank at the start.

    Raises:
      ValueError: as `rank_min`.
    """
    choices = {"ceiling": ceiling, "target_rank": target_rank, "relative_rank": relative_rank}
    return _projection("rank_max", choices, fn, params, inputs, pattern, num_projections, tolerance)


def _projection(
    name: str,
    choices: dict[str, Target | None],
    fn: Callable,
    params: Any,
    inputs: Any,
    pattern: Pattern,
    num_projections: int,
    tolerance: float,
) -> Projection:
    given = {rule: value for rule, value in choices.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"{name} takes exactly one of {', '.join(choices)}, got {', '.join(given) or 'none'}")
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, got {num_projections}")
    ((rule, target),) = given.items()
    layers = layers_of(fn, params, inputs, pattern=pattern)
    if isinstance(target, Mapping):
        names = [layer.name for layer in layers]
        if unknown := sorted(set(target) - set(names)):
            raise ValueError(f"{rule} names {unknown[0]!r}, which is none of the layers {', '.join(names)}")
        layers = tuple(layer for layer in layers if layer.name in target)
    targets = {layer.name: target[layer.name] if isinstance(target, Mapping) else target for layer in layers}
    for value in targets.values():
        rules.check_target(name, rule, value)
    parameters = jax.tree.leaves(params)
    for layer in layers:
        _check_projectable(layer, layers, parameters)
    groups = grouped(layers, parameters, key=lambda layer: as_circular(layer.geometry))

    def project(params: Any) -> tuple[Any, dict[str, LayerReport]]:
        leaves, tree = jax.tree.flatten(params)
        reports: dict[str, LayerReport] = {}
        for members in groups:
            stack = real_kernel(jnp.stack([layer.kernel(leaves) for layer in members]))
            stack_targets = jnp.asarray([targets[layer.name] for layer in members], stack.dtype)
            scale = scaling.power_of_two(stack, tuple(range(1, stack.ndim)))  # squares of 1e30 would overflow in float32
            scales = scale.reshape(-1)
            rule_fn = functools.partial(rules.RULES[name, rule], stack_targets / scales if rule in rules.ABSOLUTE else stack_targets)
            changes, scaled_report = _project(stack / scale, as_circular(members[0].geometry), rule_fn, num_projections, tolerance)
            changes, stack_report = changes * scale, scaled_report.scaled(scales)
            for index, layer in enumerate(members):
                report = jax.tree.map(lambda a, index=index: a[index], stack_report)
                leaf = leaves[layer.leaf]
                moved = layer.changed(leaf, changes[index])
                leaves[layer.leaf] = jnp.where(report.num_projections > 0, moved, leaf)  # keeps the bits: -0. + 0. is 0.
                reports[layer.name] = report
        return jax.tree.unflatten(tree, leaves), {layer.name: reports[layer.name] for layer in layers}

    return project


def _check_projectable(layer: Layer, layers: Sequence[Layer], parameters: Sequence[Any]) -> None:
    """Raise ValueError unless a change of the layer's kernel is a change of one parameter that no other layer shares."""
    if layer.part is None:
        raise ValueError(
            f"{layer.name} has a kernel that is a function of its parameters (a norm, a mask, a sum): leave it out by a pattern"
        )
    dtype = jnp.result_type(parameters[layer.leaf])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{layer.name} must be an array of real floating-point numbers, got {dtype}: leave it out by a pattern")
    parts = [other.part or () for other in layers if layer.leaf in other.leaves]
    length = min(len(part) for part in parts)
    if len({part[:length] for part in parts}) < len(parts):
        raise ValueError(f"{layer.name} is used in two geometries: leave it out by a pattern")


class _Parts(NamedTuple):
    """Eigendecomposition of the symbols of a stack of kernels; each tuple is of real symbols and of one symbol of each pair.

    Attributes:
      values: singular values (L, groups, R or C, min(rows, outputs)).
      images: H V, or U* H if ``by_rows``.
      vectors: V, or U if ``by_rows``.
      by_rows: whether the Gram matrix is H H*.
    """

    values: tuple[jax.Array, jax.Array]
    images: tuple[jax.Array, jax.Array]
    vectors: tuple[jax.Array, jax.Array]
    by_rows: bool

    def changed(self, factors: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
        """H(f) - H for ``factors`` = f(sigma) / sigma - 1."""
        changes = []
        for factor, image, vectors in zip(factors, self.images, self.vectors, strict=True):
            if self.by_rows:  # U diag(factor) U* H
                changes.append(_product(vectors, factor[..., None] * image))
            else:
                changes.append(_product(image * factor[..., None, :], vectors.conj().swapaxes(-1, -2)))
        return changes


def _joined(values: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Values of real symbols and of pairs as (L, count), unordered; values of pairs occur twice."""
    own, paired = (part.reshape(len(part), -1) for part in values)
    return jnp.concatenate([own, paired, paired], -1)


def _decompose(kernels: jax.Array, transform: Transform) -> _Parts:
    decompositions, by_rows = [], False
    for matrices in transform.symbols(kernels):
        by_rows = matrices.shape[-2] < matrices.shape[-1]
        adjoint = matrices.conj().swapaxes(-1, -2)
        if matrices.size == 0:
            side = min(matrices.shape[-2:])
            vectors = jnp.zeros((*matrices.shape[:-2], side, side), matrices.dtype)
        else:
            gram = _product(matrices, adjoint) if by_rows else _product(adjoint, matrices)
            _, vectors = decompose_sequentially(lambda matrix: tuple(jnp.linalg.eigh(matrix)), gram)
        image = _product(vectors.conj().swapaxes(-1, -2), matrices) if by_rows else _product(matrices, vectors)
        # Norms of images keep the small values; roots of eigenvalues would lose them.
        values = jnp.sqrt(jnp.sum(jnp.abs(image) ** 2, axis=-1 if by_rows else -2))
        decompositions.append((values, image, vectors))
    all_values, all_images, all_vectors = zip(*decompositions, strict=True)
    return _Parts(all_values, all_images, all_vectors, by_rows)


def _project(
    kernels: jax.Array, geometry: Geometry, rule_fn: Callable, num_projections: int, tolerance: float
) -> tuple[jax.Array, LayerReport]:
    """Changes (L, *kernel) of a stack of kernels, and the report with fields (L,)."""
    transform = Transform(geometry)
    first = _decompose(kernels, transform)
    goal = rule_fn(_sorted(_joined(first.values)))  # targets relative to the start are fixed here for all projections

    def step(parts: _Parts) -> tuple[jax.Array, jax.Array]:
        """The change of the kernels by one projection, and the share (L,) of their norm that it removes."""
        values = _joined(parts.values)
        bounds = goal(_sorted(values))
        factors = bounds.factor(parts.values[0]), bounds.factor(parts.values[1])
        removed = _joined((factors[0] * parts.values[0], factors[1] * parts.values[1]))
        share = _norm(removed) / jnp.maximum(_norm(values), jnp.finfo(removed.dtype).tiny)
        return transform.kernel(*parts.changed(factors)), share

    change, share = step(first)
    active = share > 0
    state = (change, active.astype(jnp.int32), active)

    def continues(state: tuple) -> jax.Array:
        return jnp.any(state[2]) & (jnp.max(state[1]) < num_projections)

    def project(state: tuple) -> tuple:
        change, count, active = state
        next_change, share = step(_decompose(kernels + change, transform))
        active = active & (share > tolerance)
        mask = active.reshape(-1, *[1] * (change.ndim - 1))
        return jnp.where(mask, change + next_change, change), count + active, active

    change, count, _ = state if num_projections == 1 else jax.lax.while_loop(continues, project, state)
    after = of_geometry(kernels + change, geometry).values
    before = _sorted(_joined(first.values))
    bounds = goal(after)
    removed_after = _norm(bounds.factor(after) * after) / jnp.maximum(_norm(after), jnp.finfo(after.dtype).tiny)
    report = LayerReport(
        rank_before=nuclear_rank(before),
        rank_after=nuclear_rank(after),
        numerical_rank_before=numerical_rank(before),
        numerical_rank_after=numerical_rank(after),
        norm_before=_norm(before),
        norm_after=_norm(after),
        largest=after[..., 0],
        smallest=after[..., -1],
        removed_before=share,
        removed_after=removed_after,
        num_projections=count,
    )
    return change, report


def _sorted(values: jax.Array) -> jax.Array:
    return jnp.sort(values, axis=-1, descending=True)


def _norm(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(values**2, -1))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision="highest")
