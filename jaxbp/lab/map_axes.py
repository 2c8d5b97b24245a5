"""The axes of a map: which settings vary, which points of their grid are tried, and the study's settings at a point.

A study's `jaxbp.lab.Arguments` may change several fields for one option (epochs also change when kernels are measured), so an axis that
is an option goes through them. Any other axis is a field of the settings or, where they have none of the name, of their cases;
``options.norm`` is an entry of a field that holds pairs of names and values; ``+options.norm`` adds one that the cases lack.
"""

import ast
import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy

from jaxbp.claims import Axis
from jaxbp.lab.settings import NO_SETTINGS, OPTION_FIELDS, Arguments, SettingsError, changed

Sampling = Literal["sobol", "random"]
_FIXED = (
    "preset",
    "num_seeds",
    "first_seed",
    "looks",
    "cases",
    "data_dir",
    "name",
)  # what is no setting to vary, or has options of its own
_SPECIAL = {"true": True, "false": False, "none": None}
_WORDS = re.compile(r"""('[^']*'|"[^"]*")|(?<![\w.])([A-Za-z_]\w*)""")  # quoted text, or a bare word, within brackets
_MOST_DRAWS = 50  # points drawn for each cell that is wanted, before the grid counts as exhausted


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Axes from texts such as "num_epochs=5,20", "widths=(4,8),(8,16)" or, where another axis has a value, "decay[loss=mse]=0,0.1".

    Raises:
      SettingsError: a text is no axis.
    """
    axes = []
    for text in texts:
        match = re.fullmatch(r"(\+?[\w.]+)(?:\[([\w.]+)=([^\]]+)\])?=(.+)", text, re.DOTALL)
        if not match:
            raise SettingsError(f"an axis is NAME=VALUE,VALUE or NAME[OTHER=VALUE]=VALUE,VALUE, got {text!r}")
        name, other, there, values = match.groups()
        axes.append(_axis(name, parse_values(values), {other: _value(there)} if other else {}))
    return check_axes(axes)


def as_axes(axes: Mapping[str, Sequence[Any]] | Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes from a mapping of names to values, or as they are."""
    if isinstance(axes, Mapping):
        return check_axes([_axis(name, tuple(values)) for name, values in axes.items()])
    return check_axes([_axis(axis.name, axis.values, axis.when) for axis in axes])


def _axis(name: str, values: tuple[Any, ...], when: Mapping[str, Any] | None = None) -> Axis:
    try:
        axis = Axis(name, values, when or {})
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return Axis(name, tuple(sorted(values)), axis.when) if axis.is_numeric else axis


def check_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes, each after those that it depends on.

    Raises:
      SettingsError: there is none, two have one name, or a condition names what no earlier axis has.
    """
    if not axes:
        raise SettingsError("a map needs an axis: name a setting and its values, such as num_epochs=5,20")
    earlier: dict[str, Axis] = {}
    for axis in axes:
        if axis.name in earlier:
            raise SettingsError(f"the axis {axis.name} is given twice: put all its values into one")
        for name, value in axis.when.items():
            if name not in earlier or value not in earlier[name].values:
                known = "; ".join(f"{other.name} {list(other.values)}" for other in earlier.values()) or "no axis"
                raise SettingsError(f"the axis {axis.name} needs {name} = {value!r}, and before it stands {known}")
        earlier[axis.name] = axis
    return tuple(axes)


def parse_values(text: str) -> tuple[Any, ...]:
    """Values with commas between; those within brackets or quotes belong to a value."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return tuple(_value(part) for part in [*parts, text[start:]])


def _value(text: str) -> Any:
    text = text.strip()
    if text.lower() in _SPECIAL:
        return _SPECIAL[text.lower()]
    literal = _WORDS.sub(lambda word: word[1] or repr(_plain(word[2])), text) if text[:1] in ("(", "[") else text
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(literal)
    return text


def _plain(word: str) -> Any:
    return _SPECIAL.get(word.lower(), word)


def points(axes: Sequence[Axis], num_cells: int | None = None, sampling: Sampling = "sobol", seed: int = 0) -> list[dict[str, Any]]:
    """The points of the grid, each with the axes that apply there; all, or ``num_cells`` different ones that are drawn.

    The points of a smaller number are the first of those of a larger one.

    Raises:
      SettingsError: ``num_cells`` is below 1.
    """
    if num_cells is None or num_cells >= math.prod(len(axis.values) for axis in axes):
        return _different(_point(axes, numbers) for numbers in itertools.product(*(range(len(axis.values)) for axis in axes)))
    if num_cells < 1:
        raise SettingsError(f"a map needs at least 1 cell, got {num_cells}")
    num_draws = 2 ** math.ceil(math.log2(_MOST_DRAWS * num_cells))
    if sampling == "sobol":
        drawn = scipy.stats.qmc.Sobol(len(axes), rng=np.random.default_rng(seed)).random(num_draws)
    else:
        drawn = np.random.default_rng(seed).random((num_draws, len(axes)))
    sizes = np.array([len(axis.values) for axis in axes])
    return _different(_point(axes, row) for row in np.minimum((drawn * sizes).astype(int), sizes - 1))[:num_cells]


def _point(axes: Sequence[Axis], numbers: Sequence[int]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for axis, number in zip(axes, numbers, strict=True):
        if axis.applies(point):
            point[axis.name] = axis.values[number]
    return point


def _different(drawn: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({repr(point): point for point in drawn}.values())


def settings_at(base: Any, point: Mapping[str, Any]) -> Any:
    """The settings of ``base`` (`jaxbp.lab.Arguments` or `jaxbp.lab.Settings`) at a point, validated.

    Raises:
      SettingsError: the study cannot run so, or a value is of the wrong kind.
    """
    known = varying(base)
    values = {name: _fitting(name, value, known.get(name, ())) for name, value in point.items()}
    settings = base
    if isinstance(base, Arguments):
        options = _options(base)
        through = {options[name]: value for name, value in values.items() if name in options}
        settings = dataclasses.replace(base, **through).unvalidated_settings()
        values = {name: value for name, value in values.items() if name not in options}
    for name, value in values.items():
        settings = _with_entry(settings, name, value) if "." in name else changed(settings, {name: value})
    settings.validate()
    return settings


def check_known(base: Any, axes: Sequence[Axis]) -> None:
    """Raise `SettingsError` for axes that the study does not have, which lists those that it has."""
    known = varying(base)
    if unknown := [axis.name for axis in axes if axis.name not in known and not _adds(axis.name, known)]:
        have = "\n  ".join(f"{name}: {_shown(values)}" for name, values in known.items())
        raise SettingsError(f"this study has no setting {', '.join(unknown)} to vary. It has, with the present values:\n  {have}")


def _adds(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a name such as "+options.norm" adds an entry to a field that holds pairs."""
    field, dot, entry = name.removeprefix("+").partition(".")
    return name.startswith("+") and bool(dot and entry) and any(other.startswith(f"{field}.") for other in known)


def _shown(values: Sequence[Any]) -> str:
    texts = list(dict.fromkeys(repr(value) for value in values))
    return ", ".join(text if len(text) <= 60 else f"{text[:57]}..." for text in texts[:4]) + ", ..." * (len(texts) > 4)


def varying(base: Any) -> dict[str, list[Any]]:
    """What can be varied, with the values that it has at present: fields of the settings, of the cases, and entries of options."""
    settings = base.settings() if isinstance(base, Arguments) else base
    known: dict[str, list[Any]] = {}
    for owner in (settings, *settings.cases):
        own = {field.name: getattr(owner, field.name) for field in dataclasses.fields(owner) if field.init and field.name not in _FIXED}
        for name, value in own.items():
            if owner is settings or not hasattr(settings, name):
                known.setdefault(name, []).append(value)
            for entry, inner in _entries(value).items():
                known.setdefault(f"{name}.{entry}", []).append(inner)
    for name, option in _options(base).items():
        known.setdefault(name, [getattr(base, option)])
    return known


def _options(base: Any) -> dict[str, str]:
    """Options of the command line by the name of the field that they change, and by their own name."""
    if not isinstance(base, Arguments):
        return {}
    options = [field.name for field in dataclasses.fields(base) if field.name not in (*NO_SETTINGS, "seeds", "first_seed")]
    return {name: option for option in options for name in (option, OPTION_FIELDS.get(option, option))}


def _entries(value: Any) -> dict[str, Any]:
    """The entries of a value that holds pairs of names and values."""
    if (
        isinstance(value, tuple)
        and value
        and all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    ):
        return dict(value)
    return {}


def _with_entry(settings: Any, name: str, value: Any) -> Any:
    """The settings with an entry of a field of pairs replaced or added, in the settings or in each case that has it, or the field."""
    adds = name.startswith("+")
    field, _, entry = name.removeprefix("+").partition(".")

    def replaced(owner: Any) -> Any:
        pairs = _entries(getattr(owner, field, None))
        if not (entry in pairs or (adds and hasattr(owner, field))):
            return owner
        return dataclasses.replace(owner, **{field: tuple((pairs | {entry: value}).items())})

    if hasattr(settings, field):
        return replaced(settings)
    return dataclasses.replace(settings, cases=tuple(replaced(case) for case in settings.cases))


def _fitting(name: str, value: Any, present: Sequence[Any]) -> Any:
    """The value as the field holds it.

    Raises:
      SettingsError: it is of another kind than all present values.
    """
    kinds = {type(there) for there in present if there is not None}
    if value is None or not kinds or type(value) in kinds:
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if tuple in kinds and isinstance(value, int | float | str):
        return (value,)
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", tuple: "values in brackets"}
    wanted = " or ".join(words.get(kind, kind.__name__) for kind in kinds)
    raise SettingsError(f"{name} takes {wanted}, such as {next(there for there in present if there is not None)!r}, got {value!r}")
