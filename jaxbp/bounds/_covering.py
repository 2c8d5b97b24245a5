"""Bounds by covering numbers: by the number of parameters, and by the ranks of the layers.

Let A = ||X||_F prod ||W_i||_2. To cover all networks to the accuracy eps A it is enough to cover each layer to the relative accuracy
eps / L. A ball of N_i parameters in its own norm takes N_i log(1 + 2 L / eps); matrices U S V of rank r_i take
r_i (h_{i-1} + h_i + 1) log(1 + 6 L / eps). With log K their sum,

    one_scale:  N R <= A min over eps of (eps sqrt(N C) + sqrt(2 log K))            (Massart)
    dudley:     N R <= 12 A sqrt(sum_i r_i (h_{i-1} + h_i + 1) (1 + log(1 + 6 L)))

With few examples all of them exceed A sqrt(C / N), which needs no cover: there parameters and ranks have no say, and the note says so.
"chain" is the bound of Pinto, Rangamani and Poggio (ALT 2025) as rebuilt from its public abstract and from Maurer's chain rule (2016),

    N G <= A (C1^(L-1) sqrt(r_1 h_1) + 2 C2 sum_{i >= 2} C1^(L-i) sqrt(r_i h_i)),

whose universal constants C1, C2 >= 1 are not known as numbers: with (1, 1) it is less than what the paper states.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar

from jaxbp import checks
from jaxbp.bounds._anatomy import Anatomy
from jaxbp.bounds._bound import PROVEN, PUBLISHED, Bound, log, note_on

_LOG_ACCURACIES = (-23.0, 0.0)  # of eps


def counting(anatomy: Anatomy, inputs: Any) -> Bound:
    """Bound the Rademacher complexity by the numbers of parameters and the spectral norms of the operators.

    Raises:
      ValueError: inputs that do not fit.
    """
    inputs = checks.host_examples(inputs)
    sizes = [[(float(layer.kernel.size), 2.0)] for layer in anatomy.layers]
    return _bound("counting", anatomy, inputs, {"covering": _one_scale(sizes, len(inputs), anatomy)})


def low_rank(
    anatomy: Anatomy,
    inputs: Any,
    *,
    form: Literal["one_scale", "dudley", "chain"] = "one_scale",
    chain_constants: tuple[float, float] = (1.0, 1.0),
    ranks: Sequence[int] | None = None,
) -> Bound:
    """Bound the complexity of all networks of this shape whose layers have the spectral norms and ranks of ``anatomy``'s operators.

    Args:
      anatomy: the network.
      inputs: (N, ...).
      form: see the module; "chain" bounds the Gaussian complexity, the others the Rademacher complexity.
      chain_constants: C1 and C2, at least 1.
      ranks: of the layers, where the caller knows them, for instance from factors; default what float64 shows. A layer of small
        singular values is no layer of low rank: truncate the network, and judge the truncated one.

    Raises:
      ValueError: another form, constants below 1, ranks below those of the layers, or inputs that do not fit.
    """
    if form not in ("one_scale", "dudley", "chain"):
        raise ValueError(f"form must be one_scale, dudley or chain, got {form!r}")
    if min(chain_constants) < 1:
        raise ValueError(f"chain_constants must be at least 1 (a scaled identity needs C1 >= 1), got {chain_constants}")
    inputs, ranks = checks.host_examples(inputs), _checked_ranks(anatomy, ranks)
    shapes = [layer.geometry.shape for layer in anatomy.layers]  # (outputs, inputs)
    factored = [float(rank * (rows + columns + 1)) for rank, (rows, columns) in zip(ranks, shapes, strict=True)]
    choices = sum(math.log(min(shape)) for shape in shapes)
    if form == "one_scale":
        sizes = [[(size, 6.0), (float(layer.kernel.size), 2.0)] for size, layer in zip(factored, anatomy.layers, strict=True)]
        return _bound("low rank, one scale", anatomy, inputs, {"covering": _one_scale(sizes, len(inputs), anatomy)}, choices)
    if form == "dudley":
        entropy = sum(factored) * (1 + math.log1p(6 * anatomy.depth))
        return _bound("low rank, dudley", anatomy, inputs, {"covering": log(12.0) + log(entropy) / 2}, choices)
    terms = [math.sqrt(rank * rows) for rank, (rows, _) in zip(ranks, shapes, strict=True)]
    lipschitz, diameter = chain_constants
    weights = [(1.0 if i == 0 else 2 * diameter) * lipschitz ** (anatomy.depth - 1 - i) for i in range(anatomy.depth)]
    return _bound("low rank, chain", anatomy, inputs, {"ranks": log(float(np.dot(weights, terms)))}, choices, chain=True)


def _bound(name: str, anatomy: Anatomy, inputs: Any, more: dict[str, float], choices: float = 0.0, *, chain: bool = False) -> Bound:
    norms = anatomy.log_norms("spectral")
    factors = {
        "norms": norms,
        "pooling": anatomy.log_pooling,
        "data": log(float(anatomy.energies(inputs).sum())) / 2,
        **more,
        "examples": -math.log(len(inputs)),
    }
    status = PUBLISHED if chain else PROVEN
    trivial = math.log(len(inputs) * anatomy.num_outputs) / 2
    note = note_on(norms) or ("" if chain or more["covering"] < trivial else "above ||X|| prod ||W|| sqrt(C / N), which needs no cover")
    return Bound(name, factors, len(inputs), status, "gaussian" if chain else "rademacher", choices, note)


def _checked_ranks(anatomy: Anatomy, ranks: Sequence[int] | None) -> list[int]:
    of_layers = [layer.rank for layer in anatomy.layers]
    if ranks is None:
        return of_layers
    if len(ranks) != anatomy.depth:
        raise ValueError(f"ranks must be one for each of {anatomy.depth} layers, got {list(ranks)}")
    for layer, given, rank in zip(anatomy.layers, ranks, of_layers, strict=True):
        if given < rank and not np.isnan(layer.values).any():
            raise ValueError(f"ranks must not be below those of the layers, got {given} for {layer.name} of rank {rank}: truncate it")
    return list(ranks)


def _one_scale(sizes: Sequence[Sequence[tuple[float, float]]], num_examples: int, anatomy: Anatomy) -> float:
    """Logarithm of min over eps of eps sqrt(N C) + sqrt(2 log K); of each layer's pairs (size, factor) the cheapest counts."""
    scatter = math.sqrt(num_examples * anatomy.num_outputs)

    def width(log_eps: float) -> float:
        eps = math.exp(log_eps)
        log_cover = sum(min(size * math.log1p(factor * anatomy.depth / eps) for size, factor in layer) for layer in sizes)
        return eps * scatter + math.sqrt(2 * log_cover)

    best = minimize_scalar(width, bounds=_LOG_ACCURACIES, method="bounded").fun
    return log(float(best))
