"""A folder belongs to one function: what other code, bound values or numbers computed is refused, not passed on."""

import functools

import numpy as np
import pytest

from jaxbp import sweep
from jaxbp.runtime.store import StoreError


def train(key, *, lr, depth=1):
    return {"r": depth * lr}


def make(scale):
    def scaled(key, *, lr):
        return {"r": scale * lr}

    return scaled


class Trainer:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, key, *, lr):
        return {"r": self.scale * lr}

    def method(self, key, *, lr):
        return {"r": self.scale * lr}


def in_segments(scale):
    return sweep.Segments(lambda key, *, lr: lr, lambda state, index, *, lr: (state, {"r": scale * state}), 1)


@pytest.mark.first_cases(3)
@pytest.mark.parametrize(
    ("make_fn", "changed"),
    [
        (lambda scale: functools.partial(train, depth=scale), "depth"),
        (make, "scale: 2 then, 3 now"),
        (Trainer, "scale: 2 then, 3 now"),
        (lambda scale: Trainer(scale).method, "scale: 2 then, 3 now"),
        (in_segments, "scale: 2 then, 3 now"),
        (lambda scale: (lambda key, *, lr: {"r": lr}) if scale == 2 else (lambda key, *, lr: {"r": 3 * lr}), "lambda"),
    ],
)
def test_another_function_is_refused_by_what_changed(make_fn, changed, tmp_path):
    options = {"seeds": 1, "out": tmp_path, "quiet": True}
    first = sweep.run(make_fn(2), {"lr": [1.0]}, **options).stack("r")
    with pytest.raises(StoreError, match=changed):
        sweep.run(make_fn(3), {"lr": [1.0]}, **options)
    assert sweep.run(make_fn(2), {"lr": [1.0]}, **options).stack("r").tolist() == first.tolist()
    assert sweep.run(make_fn(3), {"lr": [1.0]}, mixed=True, **options).stack("r").tolist() == first.tolist()


@pytest.mark.parametrize(
    ("fn", "grid", "shared", "message"),
    [
        (lambda key, *, n: {"r": n}, {"n": np.array([2**33 + 5, 5])}, (), "the setting n holds"),
        (lambda key, data: {"r": data}, None, (np.array(2**40),), "array 0 of shared holds"),
        (lambda key: {"r": np.int64(2**40)}, None, (), "the result 'r' holds"),
        (lambda key: {"r": np.float64(1e-300)}, None, (), "the result 'r' holds"),
    ],
)
def test_numbers_that_a_device_would_change_are_refused(fn, grid, shared, message):
    with pytest.raises(OverflowError, match=message):
        sweep.run(fn, grid, seeds=1, shared=shared, quiet=True)


def test_mistakes_name_what_is_wrong():
    with pytest.raises(ValueError, match="seeds must be a number of them"):
        sweep.run(train, {"lr": [1.0]}, seeds="3")
    with pytest.raises(ValueError, match="for 'path'"):
        sweep.run(train, {"path": [{1}]}, seeds=1)
    with pytest.raises(ValueError, match=r"identity\['data'\]"):
        sweep.run(train, {"lr": [1.0]}, seeds=1, identity={"data": {1}})
    with pytest.raises(Exception) as caught:
        sweep.run(lambda key, *, rate: rate if rate > 0 else 0, {"rate": [1.0]}, seeds=1, quiet=True)
    assert any("static=" in note for note in caught.value.__notes__)
