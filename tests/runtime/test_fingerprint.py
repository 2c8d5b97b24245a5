"""The identity of a function follows what it depends on, and nothing else."""

import functools
import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp.runtime.fingerprint import explain, fingerprint

HELPER = """
RATE = 0.5
TABLE = {"a": 1, "b": {"r", "s", "t", "u"}}

def scaled(x):
    return inner(x)

def inner(x):
    return x * RATE

def unused(x):
    return x
"""
STUDY = """
import dataclasses
import functools
import jax
import study_package.helper
from study_package import helper

MARGIN = 0.25

@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 3

    def apply(self, x):
        return x + 1

@jax.jit
def jitted(x):
    return deep(x)

@functools.cache
def cached(x):
    return deep(x)

def deep(x):
    return x - 7

@jax.custom_vjp
def custom(x):
    return x

def forward(x):
    return x, None

def backward(_, g):
    return (2 * g,)

custom.defvjp(forward, backward)

def odd(n):
    return n and even(n - 1)

def even(n):
    return not n or odd(n - 1)

def make(scale):
    return lambda x: x * scale

def compare(x, steps=10, *, tolerance=1e-3):
    return helper.scaled(x) + Model().apply(x) + MARGIN

def tables(x):
    return study_package.helper.TABLE["a"]

def inside(x):
    from study_package.helper import inner as imported
    from study_package import helper as other

    return imported(x) + other.unused(x)

def gradient(x):
    return custom(x)

nested = (lambda y: lambda x: x + y)
first, second = (lambda x: x + 1), (lambda x: x + 2)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes the package with some of its text replaced, imports it anew and returns its study."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "study_package").mkdir()

    def build(*changes):
        texts = {"__init__": "", "helper": HELPER, "study": STUDY}
        for old, new in changes:
            assert any(old in text for text in texts.values())
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name, text in texts.items():
            (tmp_path / "study_package" / f"{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.startswith("study_package")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("study_package.study")

    yield build
    for name in [name for name in sys.modules if name.startswith("study_package")]:
        del sys.modules[name]


def differences(write, name, *changes):
    before, after = fingerprint(getattr(write(), name)), fingerprint(getattr(write(*changes), name))
    lines = explain(before.parts, after.parts)
    assert (before.digest == after.digest) == (not lines)
    return lines


@pytest.mark.parametrize(
    "change",
    [
        ("def compare", "\n\n# a comment\ndef compare"),
        ("    return helper.scaled(x) +", '    """Compare."""\n    return  helper.scaled( x ) + \\\n       '),
        ("class Model:\n", 'class Model:\n    """A model."""\n\n'),
        ("def scaled(x):", "def scaled(x: float) -> float:"),
        ("def unused(x):\n    return x", "def unused(x):\n    return x + 1"),
        ("MARGIN = 0.25", "MARGIN = 1 / 4  # of all"),
    ],
)
def test_words_places_and_unused_functions_do_not_count(write, change):
    assert differences(write, "compare", change) == []


@pytest.mark.parametrize(
    "name, change, lines",
    [
        ("compare", ("+ MARGIN", "- MARGIN"), ["study_package.study.compare changed"]),
        ("compare", ("MARGIN = 0.25", "MARGIN = 0.5"), ["constant study_package.study.MARGIN: 0.25 then, 0.5 now"]),
        ("compare", ("RATE = 0.5", "RATE = 0.4"), ["constant study_package.helper.RATE: 0.5 then, 0.4 now"]),
        ("compare", ("x * RATE", "x / RATE"), ["study_package.helper.inner changed"]),
        ("compare", ("x + 1\n", "x + 2\n"), ["study_package.study.Model changed", "study_package.study.Model.apply changed"]),
        ("compare", ("width: int = 3", "width: int = 4"), ["study_package.study.Model changed"]),
        ("tables", ('"r", "s"', '"r", "v"'), ["constant study_package.helper.TABLE changed"]),
        ("inside", ("x * RATE", "x / RATE"), ["study_package.helper.inner changed"]),
        ("inside", ("def unused(x):\n    return x", "def unused(x):\n    return -x"), ["study_package.helper.unused changed"]),
        ("jitted", ("x - 7", "x - 8"), ["study_package.study.deep changed"]),
        ("cached", ("x - 7", "x - 8"), ["study_package.study.deep changed"]),
        ("gradient", ("2 * g", "3 * g"), ["study_package.study.backward changed"]),
        ("odd", ("not n or", "n == 0 or"), ["study_package.study.even changed"]),
    ],
)
def test_a_change_is_seen_and_named(write, name, change, lines):
    assert differences(write, name, change) == lines


def test_defaults(write):
    changed = differences(write, "compare", ("steps=10", "steps=20"), ("1e-3", "1e-4"))
    assert changed[:2] == [
        "default study_package.study.compare.steps: 10 then, 20 now",
        "default study_package.study.compare.tolerance: 0.001 then, 0.0001 now",
    ]


def test_a_function_that_is_no_longer_used_is_named(write):
    changed = differences(write, "compare", ("return helper.scaled(x) +", "return"))
    assert "study_package.helper.scaled is no longer used" in changed
    assert "study_package.study.compare changed" in changed


def test_closures_and_partial_arguments_count(write):
    study = write()
    one, other = fingerprint(study.make(1)), fingerprint(study.make(2))
    assert explain(one.parts, other.parts) == ["closure study_package.study.make.<locals>.<lambda>.scale: 1 then, 2 now"]
    assert one == fingerprint(study.make(1))
    one, other = (fingerprint(functools.partial(study.compare, steps=steps)) for steps in (5, 6))
    assert explain(one.parts, other.parts) == ["argument study_package.study.compare.steps: 5 then, 6 now"]
    functions = [fingerprint(functools.partial(study.compare, table=[study.make(a), study.make(b)])) for a, b in ((1, 2), (2, 1))]
    assert functions[0].digest != functions[1].digest
    assert fingerprint(functools.partial(study.Model(3).apply, 1)) == fingerprint(functools.partial(study.Model(3).apply, 1))
    assert fingerprint(study.Model(3).apply).digest != fingerprint(study.Model(4).apply).digest


@pytest.mark.parametrize(
    "one, other",
    [
        (np.zeros(3, np.int32), np.zeros(3, np.float32)),
        (np.arange(3), np.arange(3)[::-1]),
        (jnp.zeros(2), jnp.zeros((2, 1))),
        (1, 1.0),
        (1, True),
        (jax.random.key(0), jax.random.key(1)),
        (optax.sgd(0.1), optax.sgd(0.2)),
        (jnp.sin, jnp.cos),
        ([1], (1,)),
        (jax.jit(jnp.sin), jnp.cos),
    ],
)
def test_values_count_by_content(write, one, other):
    function = write().make
    assert fingerprint(function(one)).digest != fingerprint(function(other)).digest
    assert fingerprint(function(one)).digest == fingerprint(function(one)).digest


def test_lambdas_in_one_line_differ(write):
    study = write()
    assert fingerprint(study.first).digest != fingerprint(study.second).digest
    assert differences(write, "second", ("(lambda x: x + 1),", "(lambda x: x + 9),")) == []
    assert differences(write, "first", ("(lambda x: x + 1),", "(lambda x: x + 9),")) == ["study_package.study.<lambda> changed"]


def test_a_lambda_inside_a_lambda_is_told_from_it(write):
    study = write()
    inner, outer = fingerprint(study.nested(1)), fingerprint(study.nested)
    assert inner.parts["study_package.study.<lambda>.<locals>.<lambda>"] != outer.parts["study_package.study.<lambda>"]


def test_a_list_that_holds_itself_ends(write):
    loop = []
    loop.append(loop)
    other = []
    other.append(other)
    make = write().make
    assert fingerprint(make(loop)) == fingerprint(make(other))


def test_ignored_modules_and_other_packages_are_not_entered(write):
    study = write()
    parts = fingerprint(study.compare, ignore=["study_package.helper"]).parts
    assert not any("helper" in name for name in parts)
    assert fingerprint(study.jitted).parts["jax"] == jax.__version__


def test_without_source_the_bytecode_counts():
    def run(text):
        scope = {"__name__": "typed"}
        exec(text, scope)
        return fingerprint(scope["f"])

    base = run("def g(x): return x\ndef f(x): return g(x) + 1")
    assert base == run("\n\ndef g(x): return x\ndef f(x):\n    'Add.'\n    return g(x) + 1")
    assert explain(base.parts, run("def g(x): return -x\ndef f(x): return g(x) + 1").parts) == ["typed.g changed"]
    assert explain(base.parts, run("def g(x): return x\ndef f(x): return g(x) + 2").parts) == ["typed.f changed"]


@pytest.mark.slow
def test_processes_with_different_hash_seeds_agree(write, tmp_path):
    write()
    program = (
        "from jaxbp.runtime.fingerprint import fingerprint\nfrom jaxbp import attacks\nfrom study_package.study import tables, compare\n"
        "def both(x): return tables(x), compare(x), attacks.pgd\nprint(fingerprint(tables), fingerprint(attacks.pgd).digest)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}
        outputs.append(subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout)
    assert outputs[0] == outputs[1] != b""
