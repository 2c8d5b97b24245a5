"""Check the shapes that public signatures and records announce (jaxtyping), with beartype; library code itself runs unchecked.

A package's test wraps its public functions by `typechecked`, calls them with right shapes, and sees wrong ones refused by
`refuses_shapes`. `check_fields` does the same for the fields of a NamedTuple or dataclass.
"""

import functools
import typing

import pytest
from beartype import beartype
from beartype.door import is_bearable
from jaxtyping import TypeCheckError, jaxtyped


def typechecked(fn):
    """``fn``, perhaps compiled, with its annotations checked at each call: shapes of arguments and results must agree."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return fn(*args, **kwargs)

    return jaxtyped(call, typechecker=beartype)


def refuses_shapes():
    """A context in which a `typechecked` function must refuse its arguments or its result."""
    return pytest.raises(TypeCheckError)


def check_fields(record):
    """Assert that each field of a NamedTuple or dataclass is what its annotation says, with equal letters for equal sizes; returns it."""
    with jaxtyped("context"):
        for name, hint in typing.get_type_hints(type(record), include_extras=True).items():
            value = getattr(record, name)
            assert is_bearable(value, hint), f"{type(record).__name__}.{name} is no {hint}: {value!r}"
    return record
