"""Bounds for sparse networks: the norm of a filter counts once, however many pixels share it.

Galanti, Xu, Galanti and Poggio (NeurIPS 2023) bound the Rademacher complexity of convolutional networks by the filters' Frobenius norms.
The formula as their public code has it lacks the number of nodes that the last layer reads, and lies below the complexity itself
where that layer reads many; it is here as the form "published". The forms that are proven: with E_j the energy of input node j over
all examples, M_j the sum of E over the window of node j of the first layer, P_l the numbers of nodes that nodes of layer l read, and
rho the product of the norms,

    path:   N R <= rho sqrt(C) 2^((L-1)/2) sqrt(sum over paths from the output to first-layer nodes j of M_j)
    union:  N R <= rho sqrt(C) (1 + sqrt(2 ((L-1) log 2 + sum_{l=2}^L log max P_l + log C)))
                   sqrt(max over such paths of M_j prod_{l=2}^L P_l).

Path: peel squares (Golowich et al. 2018, Lemma 1, with g(z) = z^2), so that the sum over the nodes read stays a sum. Union: peel
exponentials, take the largest node read and a union over paths; bounded differences with variance M_j.
"""

import math
from typing import Any, Literal

import numpy as np

from jaxbp.bounds._anatomy import Anatomy
from jaxbp.bounds._bound import PROVEN, PUBLISHED, Bound, log, note_on


def sparse(anatomy: Anatomy, inputs: Any, *, form: Literal["best", "path", "union", "published"] = "best") -> Bound:
    """Bound the Rademacher complexity of all networks of this shape whose filters have ``anatomy``'s Frobenius norms.

    Args:
      anatomy: the network.
      inputs: (N, ...).
      form: "path", "union", "best" of both, or "published", which is no bound unless the last layer reads one node.

    Raises:
      ValueError: another form, or inputs that do not fit.
    """
    forms = {"path": _path, "union": _union, "published": _published}
    if form not in ("best", *forms):
        raise ValueError(f"form must be best, path, union or published, got {form!r}")
    energies, norms = anatomy.energies(inputs), anatomy.log_norms("frobenius")
    candidates = {name: forms[name](anatomy, energies) for name in (("path", "union") if form == "best" else (form,))}
    chosen = min(candidates, key=lambda name: sum(candidates[name].values()))
    factors = {"norms": norms, **candidates[chosen], "examples": -math.log(len(inputs))}
    status = PUBLISHED if chosen == "published" else PROVEN
    return Bound(f"sparse, {chosen}", factors, len(inputs), status, note=note_on(norms))


def _path(anatomy: Anatomy, energies: np.ndarray) -> dict[str, float]:
    nodes = energies
    for layer in anatomy.layers:
        nodes = layer.window_sum(nodes)
    return {
        "paths and data": log(float(nodes.sum())) / 2,
        "outputs": math.log(anatomy.num_outputs) / 2,
        "depth": (anatomy.depth - 1) / 2 * math.log(2),
    }


def _union(anatomy: Anatomy, energies: np.ndarray) -> dict[str, float]:
    nodes, entropy = anatomy.layers[0].window_sum(energies), math.log(anatomy.num_outputs)
    for layer in anatomy.layers[1:]:
        nodes = layer.window_max(nodes) * (1.0 if layer.pooled else layer.in_degree)
        entropy += math.log(2) + math.log(layer.in_degree.max())
    return {
        "paths and data": log(float(nodes.max())) / 2,
        "outputs": math.log(anatomy.num_outputs) / 2,
        "depth": math.log1p(math.sqrt(2 * entropy)),
    }


def _published(anatomy: Anatomy, energies: np.ndarray) -> dict[str, float]:
    nodes, entropy = energies, anatomy.depth * math.log(2) + math.log(anatomy.num_outputs)
    for layer in anatomy.layers[:-1]:
        nodes = layer.window_max(nodes) * layer.in_degree
        entropy += math.log(layer.in_degree.max())
    return {"paths and data": log(float(nodes.max())) / 2, "depth": math.log1p(math.sqrt(2 * entropy))}
