"""Results as a line of text: numbers and words as they are, arrays by dtype and shape, so that printing one does not fill the screen.

>>> import dataclasses
>>> import numpy as np
>>> from jaxbp.runtime.short_repr import short_repr
>>> @dataclasses.dataclass
... class Fit:
...     loss: float
...     weights: np.ndarray
...     __repr__ = short_repr
>>> Fit(0.25, np.ones((300, 4)))
Fit(loss=0.25, weights=float64[300, 4])
"""

import dataclasses
from typing import Any

import jax
import numpy as np


def short_repr(value: Any) -> str:
    """``repr`` with arrays of one axis or more by dtype and shape, also inside dataclasses, named tuples, tuples, lists and dicts."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}" if value.ndim or isinstance(value, jax.core.Tracer) else str(value)
    if fields := _fields(value):
        return f"{type(value).__name__}({', '.join(f'{name}={short_repr(getattr(value, name))}' for name in fields)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {short_repr(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(short_repr, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(short_repr, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _fields(value: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass or named tuple that a repr shows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(field.name for field in dataclasses.fields(value) if field.repr)
    return tuple(getattr(value, "_fields", ())) if isinstance(value, tuple) else ()
