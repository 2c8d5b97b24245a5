"""The shared checks of arguments: what passes, and each message."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import checks

KEYS = jax.random.split(jax.random.key(0))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "holds none"),
        ({}, "holds none"),
        ({"a": "x"}, r"got str 'x' at \['a'\]"),
        ({"step": jnp.int32(7)}, r"got int32 at \['step'\]: pass it as state"),
        ({"mask": np.ones(2, bool)}, "got bool"),
        ({"a": jnp.ones(2, jnp.bfloat16)}, "got bfloat16 .*: cast it"),
        ({"a": np.ones(2, complex)}, "got complex128 .*: split real"),
        ({"a": KEYS}, "got key<fry>"),
        (
            {"params": {"a": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}},
            r"must be parameters alone, got .* 'batch_stats' beside 'params': pass variables\['params'\]",
        ),
    ],
)
def test_parameters_refuses(params, message):
    with pytest.raises(ValueError, match=message):
        checks.parameters(params)


def test_parameters_passes():
    tree = checks.parameters({"a": np.ones(2, np.float32), "b": [1.0, None]})
    assert isinstance(tree["a"], jax.Array)
    assert tree["b"][1] is None
    assert checks.parameters(jnp.ones(2, jnp.float16), half=True).dtype == jnp.float16
    for tree in ({"params": {"a": jnp.ones(2)}}, {"params": jnp.ones(2), "state": {"mean": jnp.ones(2)}}):
        assert jax.tree.structure(checks.parameters(tree)) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 1, 3], 3, "from 0 to 2, one of 3 logits each, got 3"),
        ([0, -1, 1], 3, "got -1"),
        (np.eye(3), 3, r"\.argmax\(-1\)"),
        ([0.0, 1.0, 2.0], 3, r"must be integers, got float.*astype\(int\)"),
        (np.array([True, False, True]), 3, "must be integers, got bool"),
        ([0, 1], 3, r"\(3,\), one per example, got shape \(2,\)"),
        ([0, 0, 0], 1, "at least two classes"),
        (None, 3, "must be one array, got NoneType"),
    ],
)
def test_labels_refuses(labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        checks.labels(labels, num_classes, 3)


def test_labels_passes():
    assert checks.labels(np.array([0, 2, 1], np.uint8), 3, 3).dtype == jnp.int32
    assert jax.jit(lambda y: checks.labels(y, 3, 3))(jnp.array([0, 9, 1])).tolist() == [0, 9, 1]  # values are not known under jit


@pytest.mark.parametrize("inputs", [None, {"x": 1.0}, (np.ones(2),), "x", [[1], [2, 3]], KEYS, np.ones(2, complex), np.ones((0, 3)), 1.0])
def test_examples_refuses(inputs):
    with pytest.raises(ValueError, match="inputs must"):
        checks.examples(inputs)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: (x, x), "take the first entry"),
        (lambda x: x[:, 0], r"logits\[:, None\]"),
        (lambda x: x.astype(int), "got int32"),
        (None, "must be a function"),
    ],
)
def test_logits_shape_refuses(fn, message):
    with pytest.raises(ValueError, match=message):
        checks.logits_shape(fn, jnp.ones((2, 3)))


def test_logits_shape():
    assert checks.logits_shape(lambda x: x @ jnp.ones((3, 4)), jnp.ones((2, 3))) == (2, 4)


@pytest.mark.parametrize("value", ["8/255", None, True, np.array([0.1, 0.2]), jnp.float32(-0.1), float("nan"), 1j])
def test_number_refuses(value):
    with pytest.raises(ValueError, match="epsilon must be one finite number, at least 0, got"):
        checks.number(value, "epsilon", least=0)


def test_number_passes():
    assert checks.number(jnp.bfloat16(2), "epsilon") == 2.0
    assert jax.jit(lambda e: checks.number(e, "epsilon", least=0))(-1.0) == -1.0


def test_prng_key():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert checks.prng_key(key) is key
    for key in (0, KEYS, None, np.zeros(2, np.uint32)):
        with pytest.raises(ValueError, match=r"such as jax.random.key\(0\)"):
            checks.prng_key(key)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"a": 1}, {}, "must be one array, got dict"),
        (KEYS, {}, "must be one array"),
        (np.ones(2, complex), {}, "must be real numbers"),
        ((1.0, 2.0), {"shape": (3,)}, r"x must have shape \(3\), got \(2,\)"),
        (np.ones((2, 3)), {"shape": (None,)}, r"must have shape \(any\)"),
        (np.ones((2, 3)), {"shape": (4, ...)}, r"must have shape \(4, \.\.\.\), got \(2, 3\)"),
        ([1.0, np.nan], {"finite": True}, "must be finite numbers"),
    ],
)
def test_host_array_refuses(values, options, message):
    with pytest.raises(ValueError, match=message):
        checks.host_array(values, "x", **options)


def test_host_array_passes_in_its_own_dtype():
    assert checks.host_array((1, 2), "x", shape=(2,)).tolist() == [1, 2]
    assert checks.host_array(np.ones((2, 3), np.float16), "x", shape=(2, ...)).dtype == np.float16
    assert checks.host_values(np.float32(0.5), "x", shape=()).dtype == np.float64
    assert checks.host_labels([0, 2, 1], 3).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda value: checks.host_array(value, "x"),
        lambda value: checks.count(value, "x"),
        lambda value: checks.number(value, "x", known=True),
        lambda value: checks.prng_key(value, known=True),
    ],
)
def test_known_values_are_not_traced(call):
    with pytest.raises(ValueError, match="outside of jit and vmap"):
        jax.eval_shape(call, jnp.ones(()))


@pytest.mark.parametrize(("value", "message"), [(0, "at least 1, got 0"), (2.0, "whole number"), (True, "whole number"), ("2", "got str")])
def test_count_refuses(value, message):
    assert checks.count(np.int64(2), "n") == checks.count(jnp.asarray(2), "n") == 2
    with pytest.raises(ValueError, match=message):
        checks.count(value, "n")


@pytest.mark.parametrize(("dtype", "share", "is_refused"), [("bfloat16", 0.01, False), ("bfloat16", 0.2, True), ("float32", 0.01, True)])
def test_rounding_is_no_coupling(dtype, share, is_refused):
    """A batch of two is summed in another order than one example: in bfloat16 that changes an output by the share of a percent."""

    def outputs_fn(fn, context, x):
        return jax.jit(lambda z: z.astype(dtype))(x) * (1 + share * (len(x) - 1)) * context

    arguments = outputs_fn, None, jnp.ones(()), [(jnp.arange(1.0, 7.0).reshape(3, 2),)]
    if is_refused:
        with pytest.raises(checks.BatchCouplingError, match=r"relative change 0\.\d+\)\. Do this"):
            checks.independent_examples(*arguments, "Do this")
    else:
        checks.independent_examples(*arguments, "Do this")


def test_two_examples_are_compared_without_promotion_of_ranks():
    def outputs_fn(fn, context, x):
        return x - share * x.mean(0, keepdims=True)

    with jax.numpy_rank_promotion("raise"):
        for share in (0.0, 0.5):
            arguments = outputs_fn, share, jnp.ones(()), [(jnp.arange(6.0).reshape(3, 2),)], "Do this"
            if share:
                with pytest.raises(checks.BatchCouplingError):
                    checks.independent_examples(*arguments)
            else:
                checks.independent_examples(*arguments)
