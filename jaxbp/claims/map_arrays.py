"""A map of a claim as labelled arrays."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxbp.claims.claim_map import Axis, ClaimMap, Specification, value_text

_MOST_POINTS = 200_000  # of the array over the axes


def to_dataset(found: ClaimMap) -> xr.Dataset:
    """The map as labelled arrays.

    ``effect``, ``low``, ``high``, ``num_seeds`` and ``outcome`` have all axes, and so has ``cell`` (its number, -1 where none was tried).
    ``value`` is the measure of each seed, and has the axis ``seed`` besides, where the seeds are known.
    Where an axis does not apply, a cell's values stand at every point of the axis: the study is the same there. With more than 200,000
    points the only axis is ``specification``, and the settings are coordinates of it.
    """
    axes, specifications = found.all_axes, found.specifications
    coordinates: dict[str, Any] = {axis.name: _coordinates(axis) for axis in axes}
    shape = tuple(len(axis.values) for axis in axes)
    seeds = sorted({seed for spec in specifications for seed, _ in spec.by_seed})
    dense = math.prod(shape) * max(len(seeds), 1) <= _MOST_POINTS
    names = list(coordinates) if dense else ["specification"]
    arrays = _blank(shape if dense else (len(specifications),), seeds)
    for number, spec in enumerate(specifications):
        for place in _places(axes, spec.point) if dense else [(number,)]:
            _fill(arrays, place, spec, seeds)
    if not dense:
        texts = {a.name: [value_text(s.point[a.name]) if a.name in s.point else "" for s in specifications] for a in axes}
        coordinates = {name: ("specification", values) for name, values in texts.items()}
    claim = {"claim": found.claim.id, "statement": found.claim.statement, "holds_if": found.claim.rule.text(found.claim.measure)}
    arrays["outcome"] = arrays["outcome"].astype(str)
    if seeds:
        coordinates["seed"] = seeds
    variables = {name: ([*names, "seed"] if name == "value" else names, array) for name, array in arrays.items()}
    return xr.Dataset(variables, coordinates, attrs={**claim, "headline": found.headline})


def _coordinates(axis: Axis) -> list[Any]:
    alike = axis.is_numeric or all(isinstance(value, str) for value in axis.values)
    return list(axis.values) if alike else [value_text(value) for value in axis.values]


def _blank(shape: tuple[int, ...], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    numbers = {name: np.full(shape, np.nan) for name in ("effect", "low", "high")}
    numbers |= {"value": np.full((*shape, len(seeds)), np.nan)} if seeds else {}
    return {**numbers, "num_seeds": np.zeros(shape, int), "cell": np.full(shape, -1), "outcome": np.full(shape, "", dtype=object)}


def _fill(arrays: Mapping[str, np.ndarray], place: tuple[int, ...], spec: Specification, seeds: Sequence[int]) -> None:
    if spec.by_seed:
        by_seed = dict(spec.by_seed)
        arrays["value"][place] = [math.nan if (value := by_seed.get(seed)) is None else value for seed in seeds]
    if spec.interval:
        for name, value in (("effect", spec.interval.estimate), ("low", spec.interval.low), ("high", spec.interval.high)):
            arrays[name][place] = value
    arrays["num_seeds"][place], arrays["cell"][place], arrays["outcome"][place] = spec.num_seeds, spec.cell, spec.outcome


def _places(axes: Sequence[Axis], point: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """All places of the array at which a specification stands; a failed cell stands for every case."""
    each = [[axis.values.index(point[axis.name])] if axis.name in point else range(len(axis.values)) for axis in axes]
    return itertools.product(*each)
