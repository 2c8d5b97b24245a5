"""RankMin and RankMax: cut or cap the singular values of a network's layers, as a pure function of its parameters.

*RankMin* (paper, Study 4) sets small singular values of each layer to 0, *RankMax* lowers large ones to a ceiling. The operator so
found no longer fits the window, so it is cut back to it, which undoes a part. The paper cuts once; `num_projections` > 1 goes on, value
by value and window by window in turn, until nothing more than ``tolerance`` times the layer's norm would be taken away. Both steps
shorten the operator and are orthogonal to what they leave, so all that is ever taken away has squares that add up to at most
||W||_F^2: the loop ends. For RankMax, a ceiling being a convex set, it ends in a kernel that fulfils both (von Neumann; Bauschke and
Borwein, SIAM Review 38, 1996); RankMin may come to rest far below where it started. So a report says what was reached.

No SVD is needed. With V the eigenvectors of the smaller Gram matrix of a symbol H, sigma_i = ||H v_i|| and the change is
H V (f(sigma) / sigma - 1) V*; it is exactly 0 where no value changes, and a layer of which nothing is asked keeps its bits. Layers of
equal geometry are stacked. Zero-padded layers are treated on the torus out of which they are cut, so values there are those of the
circular convolution, as in the paper, but at true map sizes and strides.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import spectra
>>> params = {"kernel": jax.random.normal(jax.random.key(0), (12, 8))}
>>> cut = spectra.rank_min(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 12)), threshold=2.5, pattern="kernel")
>>> smaller, report = jax.jit(cut)(params)
>>> bool(report["kernel"].rank_after < report["kernel"].rank_before), smaller["kernel"].shape
(True, (12, 8))
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp.spectra import rules
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.network import Pattern, as_circular, grouped, inner_convolutions, layers_of
from jaxbp.spectra.ranks import nuclear_rank, numerical_rank
from jaxbp.spectra.spectrum import of_geometry
from jaxbp.spectra.symbol import Transform
from jaxbp.spectra.values import one_by_one

Projection = Callable[[Any], tuple[Any, dict[str, "LayerReport"]]]
Target = float | Mapping[str, float]


class LayerReport(NamedTuple):
    """What a projection did to one layer, scalars: of the kernel before, and of the kernel that is left.

    ``removed_*`` is what the next projection would take away, relative to the Frobenius norm: what the cut to the window brought
    back. ``num_projections`` counts those made; 0 where nothing was asked.
    """

    rank_before: jax.Array  # effective ranks
    rank_after: jax.Array
    numerical_rank_before: jax.Array
    numerical_rank_after: jax.Array
    norm_before: jax.Array  # Frobenius norms of the operator
    norm_after: jax.Array
    largest: jax.Array  # singular values reached
    smallest: jax.Array
    removed_before: jax.Array
    removed_after: jax.Array
    num_projections: jax.Array


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

    Pure and jittable, also inside `lax.cond`, `lax.scan` and vmap over seeds. One of four rules is given, each a number or one
    by layer name (then the pattern's other layers are left alone):

    Args:
      fn, params, inputs: the network, see `spectra.layers_of`; only shapes are used here.
      threshold: values below it go (paper: 0.5).
      energy: the largest values that hold this share of the squared Frobenius norm stay; in (0, 1].
      target_rank: the largest values stay whose effective rank is at most this.
      relative_rank: the same, as a share of the layer's effective rank before; in (0, 1].
      pattern: which layers, see `spectra.layers_of`; default the paper's.
      num_projections: most projections; 1 cuts back to the window once, as the paper does.
      tolerance: further ones end when less than this share of the norm would be taken away.

    Raises:
      ValueError: no rule or several, a value out of range, a name that is no layer, a parameter used in two geometries.
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

    As `rank_min`, with the rules ``ceiling`` (paper: 1.5); ``target_rank``, the highest ceiling under which the effective rank
    is at least this; ``relative_rank``, the same as a multiple, at least 1, of the rank before. A target above the numerical rank's
    root cannot be reached, and the layer is left as it is.
    """
    choices = {"ceiling": ceiling, "target_rank": target_rank, "relative_rank": relative_rank}
    return _projection("rank_max", choices, fn, params, inputs, pattern, num_projections, tolerance)


def _projection(
    name: str, choices: dict[str, Target | None], fn: Callable, params: Any, inputs: Any, pattern: Pattern,
    num_projections: int, tolerance: float,
) -> Projection:  # fmt: skip
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
    leaves_used = [layer.leaf for layer in layers]
    for layer in layers:
        if leaves_used.count(layer.leaf) > 1:
            raise ValueError(f"{layer.name} is used in two geometries: leave it out by a pattern")
    groups = grouped(layers, jax.tree.leaves(params), key=lambda layer: as_circular(layer.geometry))

    def project(params: Any) -> tuple[Any, dict[str, LayerReport]]:
        leaves, tree = jax.tree.flatten(params)
        reports: dict[str, LayerReport] = {}
        for members in groups:
            stack = jnp.stack([layer.kernel_fn(leaves[layer.leaf]) for layer in members])
            wanted = jnp.asarray([targets[layer.name] for layer in members], stack.dtype)
            rule_fn = functools.partial(rules.RULES[name, rule], wanted)
            changes, report = _project(stack, as_circular(members[0].geometry), rule_fn, num_projections, tolerance)
            for index, layer in enumerate(members):
                one = jax.tree.map(lambda a, index=index: a[index], report)
                leaf = leaves[layer.leaf]
                moved = layer.changed(leaf, changes[index])
                leaves[layer.leaf] = jnp.where(one.num_projections > 0, moved, leaf)  # -0. + 0. would be 0.
                reports[layer.name] = one
        return jax.tree.unflatten(tree, leaves), {layer.name: reports[layer.name] for layer in layers}

    return project


class _Parts(NamedTuple):
    """The eigen-decomposition of the symbols of a stack of kernels: of the real ones and of one of each pair."""

    values: tuple[jax.Array, jax.Array]  # (L, groups, R or C, min(rows, outputs))
    images: tuple[jax.Array, jax.Array]  # H V, or U* H
    vectors: tuple[jax.Array, jax.Array]  # V, or U
    by_rows: bool

    def changed(self, factors: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
        """H(f) - H, ``factors`` being f(sigma) / sigma - 1."""
        found = []
        for factor, image, vectors in zip(factors, self.images, self.vectors, strict=True):
            if self.by_rows:  # U diag(factor) U* H
                found.append(_product(vectors, factor[..., None] * image))
            else:
                found.append(_product(image * factor[..., None, :], vectors.conj().swapaxes(-1, -2)))
        return found


def _joined(values: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Values of real symbols and of pairs as (L, count) in no order, those of pairs twice."""
    own, paired = (part.reshape(len(part), -1) for part in values)
    return jnp.concatenate([own, paired, paired], -1)


def _decompose(kernels: jax.Array, transform: Transform) -> _Parts:
    found, by_rows = [], False
    for matrices in transform.symbols(kernels):
        by_rows = matrices.shape[-2] < matrices.shape[-1]
        adjoint = matrices.conj().swapaxes(-1, -2)
        if matrices.size == 0:
            side = min(matrices.shape[-2:])
            vectors = jnp.zeros((*matrices.shape[:-2], side, side), matrices.dtype)
        else:
            gram = _product(matrices, adjoint) if by_rows else _product(adjoint, matrices)
            _, vectors = one_by_one(lambda matrix: tuple(jnp.linalg.eigh(matrix)), gram)
        image = _product(vectors.conj().swapaxes(-1, -2), matrices) if by_rows else _product(matrices, vectors)
        # Lengths of images, not roots of eigenvalues: these lose the small values.
        values = jnp.sqrt(jnp.sum(jnp.abs(image) ** 2, axis=-1 if by_rows else -2))
        found.append((values, image, vectors))
    all_values, all_images, all_vectors = zip(*found, strict=True)
    return _Parts(all_values, all_images, all_vectors, by_rows)


def _project(
    kernels: jax.Array, geometry: Geometry, rule_fn: Callable, num_projections: int, tolerance: float
) -> tuple[jax.Array, LayerReport]:
    """Changes (L, *kernel) of a stack of kernels, and the report with fields (L,)."""
    transform = Transform(geometry)
    first = _decompose(kernels, transform)
    goal = rule_fn(_sorted(_joined(first.values)))  # of targets relative to the start: fixed here for all projections

    def step(parts: _Parts) -> tuple[jax.Array, jax.Array]:
        """The change of the kernels by one projection, and the share (L,) of their norm that is taken away."""
        values = _joined(parts.values)
        bounds = goal(_sorted(values))
        factors = bounds.factor(parts.values[0]), bounds.factor(parts.values[1])
        lost = _joined((factors[0] * parts.values[0], factors[1] * parts.values[1]))
        share = _norm(lost) / jnp.maximum(_norm(values), jnp.finfo(lost.dtype).tiny)
        return transform.kernel(*parts.changed(factors)), share

    change, share = step(first)
    asked = share > 0
    state = (change, asked.astype(jnp.int32), asked)

    def again(state: tuple) -> jax.Array:
        return jnp.any(state[2]) & (jnp.max(state[1]) < num_projections)

    def project(state: tuple) -> tuple:
        change, count, going = state
        further, share = step(_decompose(kernels + change, transform))
        going = going & (share > tolerance)
        wide = going.reshape(-1, *[1] * (change.ndim - 1))
        return jnp.where(wide, change + further, change), count + going, going

    change, count, _ = state if num_projections == 1 else jax.lax.while_loop(again, project, state)
    left = kernels + change
    after = of_geometry(left, geometry).values
    before = _sorted(_joined(first.values))
    bounds = goal(after)
    lost_after = _norm(bounds.factor(after) * after) / jnp.maximum(_norm(after), jnp.finfo(after.dtype).tiny)
    report = LayerReport(
        nuclear_rank(before), nuclear_rank(after), numerical_rank(before), numerical_rank(after),
        _norm(before), _norm(after), after[..., 0], after[..., -1], share, lost_after, count,
    )  # fmt: skip
    return change, report


def _sorted(values: jax.Array) -> jax.Array:
    return jnp.sort(values, axis=-1, descending=True)


def _norm(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(values**2, -1))


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision="highest")
