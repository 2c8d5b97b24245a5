"""Grids and seeds of any kind make a sweep or an error of this project, in bounded memory and time; so do command lines."""

import contextlib
import io

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import train
from experiments.__main__ import choose
from jaxbp import lab
from jaxbp.sweep import grid as grids
from jaxbp.sweep.spec import SweepSpec
from tests.helpers.errors import error_of, outcome

QUICK = settings(max_examples=200, derandomize=True, deadline=2000, database=None)
NAMES = st.text(max_size=4) | st.sampled_from(["lr", "width", "seed", "key"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=2),
    st.complex_numbers(),
    st.sampled_from([10**400, np.float32(0.1), np.int64(2**40), np.array([0.1, np.inf]), np.array(["a"]), object(), len, {1}]),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=4)
SETTINGS = st.dictionaries(NAMES, VALUES, max_size=3)
GRIDS = st.one_of(SETTINGS, st.lists(SETTINGS | VALUES, max_size=3), VALUES)
SEEDS = st.one_of(st.integers(-3, 5), st.sampled_from([10**30, range(10**12), "3", None, 2.5]), st.lists(st.integers(), max_size=3), VALUES)


def train_fn(key, *, lr=0.1):
    return {"r": lr}


@QUICK
@given(GRIDS, SEEDS, st.lists(NAMES, max_size=2) | st.none() | st.integers())
def test_a_grid_of_anything(grid, seeds, static):
    error = error_of(lambda: SweepSpec.create(train_fn, grid, seeds=seeds, static=static))
    assert outcome(error) in ("none", "own"), f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("grid", [{f"x{i}": list(range(1000)) for i in range(4)}, [{"x": 1.0}] * 3])
def test_too_many_settings_and_equal_ones_are_told_at_once(grid):
    with pytest.raises(ValueError, match=r"more than 1000000|settings must differ"):
        grids.expand(grid)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(
    ["--width", "--learning-rate", "--seeds", "--memory-mib", "--dataset", "1", "-1", "1e400", "nan", "0x5", "--", "None", "9" * 5000]
)


@settings(QUICK, max_examples=60)
@given(st.lists(WORDS, max_size=5))
def test_a_command_line_of_anything(words):
    def parse():
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            arguments = tyro.cli(train.Arguments, args=words)
        arguments.validate()
        lab.looks_of(arguments.seeds, arguments.most_seeds)

    with contextlib.suppress(SystemExit):  # the parser's own refusal, or --help
        error = error_of(parse)
        assert outcome(error) in ("none", "own"), f"{type(error).__name__}: {error}"


@QUICK
@given(st.text() | st.sampled_from(["S1", "s2,S3", ",", "S1,,S2", "S1\x1b[31m"]))
def test_a_choice_of_studies_of_anything(only):
    error = error_of(lambda: choose(only))
    assert outcome(error) in ("none", "own")
