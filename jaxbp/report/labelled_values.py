"""What declared figures and tables read from a finished run: labelled arrays, case by case.

A run has ``settings`` and ``cases``. Each case result ``m`` has ``case`` (its settings), ``name``, ``settings``, and the dataset of each
stage under the name of the stage: ``m.compare.test_accuracy`` is a DataArray. A stage that a case does not have raises AttributeError.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from xarray import DataArray

Values = str | Callable[[Any], Any]  # "stage.variable", or m -> DataArray, mapping of labels to arrays, or None
Labels = Mapping[Any, str] | Callable[[Any], str] | None
Text = str | Callable[[Any], str]  # the text itself, or a function of the case result (per_case=True) or of the run


def selected_cases(run: Any, where: Callable[[Any], bool] | None) -> list[Any]:
    """The results of the cases for which ``where(case)`` is true."""
    return [m for m in run.cases if where is None or where(m.case)]


def call_if_measured(function: Callable, owner: Any, *arguments: Any) -> Any:
    """Call ``function(owner, *arguments)``; None where ``owner`` lacks a stage that the function reads."""
    try:
        return function(owner, *arguments)
    except AttributeError as error:
        if error.obj is owner:
            return None
        raise


def read_values(values: Values, m: Any) -> Any:
    """The values of one case; None where the case lacks the stage.

    Raises:
      ValueError: the stage has no such variable.
    """
    if callable(values):
        return call_if_measured(values, m)
    stage, _, variable = values.partition(".")
    dataset = call_if_measured(lambda results: getattr(results, stage), m)
    if dataset is None:
        return None
    if variable not in dataset:
        raise ValueError(f"{values!r} names no variable of the stage {stage!r}, which has {sorted(map(str, dataset))}")
    return dataset[variable]


def coordinates(array: "DataArray", dim: str) -> list[Any]:
    """The labels of a dimension as Python objects: its coordinate, else 0, 1, ..."""
    return array[dim].values.tolist()


def coordinate_text(coordinate: Any) -> str:
    """A label as text; floats in short form."""
    return f"{coordinate:g}" if isinstance(coordinate, float) else str(coordinate)


def split(array: "DataArray", dim: str, *, show: Sequence[Any] | None = None, labels: Labels = None) -> "dict[str, DataArray]":
    """The slices of ``array`` along ``dim`` by label, e.g. ``split(m.compare.norm, "arm")``.

    Args:
      array: any labelled array with the dimension ``dim``.
      dim: the dimension to split.
      show: coordinates to keep, in this order; those that the array lacks are left out. Default: all.
      labels: texts in place of coordinates: a mapping, which may lack some, or a function.
    """
    present = coordinates(array, dim)
    kept = present if show is None else [coordinate for coordinate in show if coordinate in present]
    return {label_of(coordinate, labels): array.isel({dim: present.index(coordinate)}) for coordinate in kept}


def label_of(coordinate: Any, labels: Labels) -> str:
    """The text that stands for a coordinate."""
    if callable(labels):
        return labels(coordinate)
    return (labels or {}).get(coordinate, coordinate_text(coordinate))


def labelled_arrays(content: Any, by: str | None, show: Sequence[Any] | None, labels: Labels) -> dict[str, Any]:
    """Arrays by label: the items of a mapping, or the slices of one array along ``by``; a lone array has the label ""."""
    if isinstance(content, Mapping):
        kept = content if show is None else {key: content[key] for key in show if key in content}
        return {label_of(key, labels): value for key, value in kept.items()}
    if by is None or not has_dim(content, by):
        return {"": content}
    return split(content, by, show=show, labels=labels)


def has_dim(value: Any, dim: str | None) -> bool:
    """Whether ``value`` is a labelled array with this dimension."""
    return dim is not None and dim in getattr(value, "dims", ())


def split_all(arrays: Mapping[str, Any], dim: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each coordinate of ``dim`` its text and the slices of all arrays; once, with the text "", if no array has ``dim``."""
    labelled = [array for array in arrays.values() if has_dim(array, dim)]
    if dim is None or not labelled:
        yield "", dict(arrays)
        return
    present = dict.fromkeys(coordinate for array in labelled for coordinate in coordinates(array, dim))
    for coordinate in present:
        yield coordinate_text(coordinate), {label: at(array, {dim: coordinate}) for label, array in arrays.items()}


def at(value: Any, place: Mapping[str, Any]) -> Any:
    """The slice of ``value`` at coordinates, as far as it has these dimensions; None where it lacks a coordinate."""
    for dim, coordinate in place.items():
        if has_dim(value, dim):
            present = coordinates(value, dim)
            if coordinate not in present:
                return None
            value = value.isel({dim: present.index(coordinate)})
    return value


def quantity(values: Values, arrays: Iterable[Any]) -> str:
    """The name of what is shown, for an axis: an array's ``long_name`` and ``units`` (CF conventions), else the variable's name."""
    named = (array.attrs for array in arrays if "long_name" in getattr(array, "attrs", {}))
    attributes: Mapping[str, str] = next(named, {})
    name = attributes.get("long_name", "" if callable(values) else values.rpartition(".")[2].replace("_", " "))
    return f"{name}, {attributes['units']}" if attributes.get("units") else name


def seed_vector(value: Any, label: str) -> np.ndarray:
    """One number a seed, (num_seeds,), as float64.

    Raises:
      ValueError: the array has another shape.
    """
    array = np.asarray(value, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{label or 'the values'}: one number a seed is needed, got {_shape(value)}; reduce the array or name `by`")
    return array


def seed_matrix(value: Any, x: str, label: str) -> np.ndarray:
    """One curve a seed, (num_seeds, num_points), as float64: ``x`` is put last, and an array over ``x`` alone is one curve.

    Raises:
      ValueError: the array lacks ``x`` or has too many dimensions.
    """
    if dims := getattr(value, "dims", ()):
        if x not in dims or len(dims) > 2:
            raise ValueError(f"{label or 'the values'}: dimensions seed and {x!r} are needed, got {_shape(value)}; reduce it or name `by`")
        value = value.transpose(..., x)
    array = np.asarray(value, np.float64)
    return array if array.ndim == 2 else array[None]


def _shape(value: Any) -> str:
    return f"dimensions {tuple(value.dims)}" if hasattr(value, "dims") else f"shape {np.shape(value)}"
