import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import losses, metrics

LOGITS = np.random.default_rng(0).normal(size=(7, 4))
LABELS = np.array([0, 3, 1, 1, 2, 0, 3])


def numpy_cross_entropy(logits, labels):
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def numpy_squared_error(logits, labels):
    return ((logits - np.eye(logits.shape[1])[labels]) ** 2).sum(1) / 2


def numpy_accuracy(logits, labels):
    return np.array([list(row).index(max(row)) == label for row, label in zip(logits, labels, strict=True)], float)


REFERENCES = {
    losses.cross_entropy: numpy_cross_entropy,
    losses.squared_error: numpy_squared_error,
    metrics.accuracy: numpy_accuracy,
}
named = pytest.mark.parametrize("function", REFERENCES, ids=lambda function: function.__name__)


@named
def test_one_value_an_example(function, x64):
    found = function(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, REFERENCES[function](LOGITS, LABELS), rtol=1e-14)
    assert found.dtype == jnp.float64


@named
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.first_cases(2)
def test_the_dtype_is_that_of_the_logits(function, dtype):
    found = function(jnp.asarray(LOGITS, dtype), jnp.asarray(LABELS, "int8"))
    assert (found.shape, found.dtype) == ((7,), jnp.dtype(dtype))


@named
def test_shapes_that_would_broadcast_are_refused(function):
    for logits, labels in [(LOGITS, LABELS[:, None]), (LOGITS, LOGITS), (LOGITS[0], LABELS), (LOGITS[None], LABELS)]:
        with pytest.raises(ValueError, match=r"logits must be .*\(N, C\), got|labels must be class indices \(7,\)|got shape"):
            function(jnp.asarray(logits), jnp.asarray(labels))


def test_gradients_by_hand(x64):
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    one_hot = np.eye(4)[LABELS]
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    for loss, expected in (
        (losses.cross_entropy, softmax - one_hot),
        (losses.squared_error, LOGITS - one_hot),
    ):
        found = jax.grad(lambda logits, loss=loss: loss(logits, labels).sum())(logits)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1e4, 0.0], [1e30, 0.0]])
    np.testing.assert_array_equal(losses.cross_entropy(logits, jnp.array([0, 0])), [0.0, 0.0])
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([1, 1])), [1e4, 1e30], rtol=1e-6)


def test_accuracy_of_ties_and_of_what_is_not_a_number():
    logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0], [0.0, jnp.nan], [jnp.inf, 0.0], [-jnp.inf, 0.0]])
    np.testing.assert_array_equal(metrics.accuracy(logits, jnp.array([0, 1, 0, 1, 0, 1])), [1, 0, 0, 0, 1, 1])


def test_losses_by_name():
    assert {loss: name for name, loss in losses.LOSSES.items()} == {
        losses.cross_entropy: "cross_entropy",
        losses.squared_error: "squared_error",
    }
