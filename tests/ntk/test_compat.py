"""neural-tangents on today's JAX: loaded without TensorFlow, leaving no trace, and computing what it should."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import ntk

nt = ntk.compat.load()


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_tensorflow_stays_out_jax_is_left_as_it_was_and_no_filter_is_left_behind():
    """In one process, after JAX was refused as unknown."""
    code = """
import sys, warnings, jax, jax.core, jax.random, numpy
from jaxbp.ntk import compat
names, compat._names = compat._names, lambda: iter(())
try:
    compat.load()
except ImportError as error:
    print(type(error).__name__, error)
compat._names = names
changed = (jax.core, jax.random, jax.interpreters.ad)
before = {m: set(dir(m)) for m in changed}
nt = compat.load()
print("tensorflow" in sys.modules, {n for m in changed for n in set(dir(m)) - before[m]}, "jax.util" in sys.modules)
branches = nt.stax.parallel(nt.stax.Dense(1), nt.stax.Dense(1))
_, _, kernel_fn = nt.stax.serial(nt.stax.FanOut(2), branches, nt.stax.FanInSum())
print(kernel_fn(numpy.ones((2, 3)), None, "ntk").shape, not any("FanIn" in str(f) for f in warnings.filters))
"""
    *said, imported, branched = run(code).splitlines()
    assert imported.split() == ["False", "set()", "False"]
    assert branched == "(2, 2) True"
    said = "\n".join(said)
    assert said.startswith("IncompatibleJaxError neural-tangents 0.6.5 does not load on JAX")
    assert "known to work: 0.10 to 0.12" in said


def network(width):
    layers = [nt.stax.Dense(width), nt.stax.Relu(), nt.stax.Dense(2)]
    return nt.stax.serial(*layers)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (6, 5))


@pytest.mark.slow
def test_exact_kernels_in_batches_and_against_monte_carlo(x):
    init_fn, apply_fn, kernel_fn = network(256)
    # Of an NNGP entry two logits of a sample tell the square of a Gaussian: sigma is sqrt(2 / 800) = 5 %.
    for get, num_samples, tolerance in (("ntk", 100, 0.05), ("nngp", 400, 0.2)):
        exact = kernel_fn(x, None, get)
        # The angle of an input with itself comes from a cosine of 1, so it is known to the root of epsilon only.
        rtol = np.sqrt(np.finfo(np.float32).eps)
        np.testing.assert_allclose(nt.batch(kernel_fn, batch_size=3)(x, None, get), exact, rtol=rtol, atol=1e-6)
        sampled_fn = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(1), num_samples, trace_axes=(-1,), implementation=1)
        assert jnp.linalg.norm(sampled_fn(x, None, get) - exact) < tolerance * jnp.linalg.norm(exact)


@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.first_cases(1)
def test_empirical_kernels_agree_with_ours(x, implementation):
    init_fn, apply_fn, _ = network(64)
    _, params = init_fn(jax.random.PRNGKey(0), x.shape)
    theirs = nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=implementation)(x, None, params)
    np.testing.assert_allclose(ntk.empirical_ntk(apply_fn, params, x), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_predictions_interpolate(x):
    kernel_fn = network(1)[2]
    targets = jnp.sin(x[:, :1])
    mean = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, targets)(x_test=x, get="ntk")
    np.testing.assert_allclose(mean, targets, atol=1e-3)
    _, apply_fn, _ = network(8)
    _, params = network(8)[0](jax.random.PRNGKey(0), x.shape)
    np.testing.assert_allclose(nt.linearize(apply_fn, params)(params, x), apply_fn(params, x), rtol=1e-6)


STRUCTURED = {
    "dense": (lambda s: [s.Dense(7), s.Erf(), s.LayerNorm(), s.Dense(2)], (5,)),
    "skip": (lambda s: [s.Dense(4), s.FanOut(2), s.parallel(s.serial(s.Relu(), s.Dense(4)), s.Identity()), s.FanInSum(), s.Dense(2)], (5,)),
    "convolution": (lambda s: [s.Conv(3, (3, 3), (2, 2), padding="SAME"), s.Relu(), s.Flatten(), s.Dense(2)], (4, 4, 2)),
    "circular, pooled": (lambda s: [s.Conv(3, (3, 3), padding="CIRCULAR"), s.Gelu(), s.GlobalAvgPool(), s.Dense(2)], (4, 4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ("skip", "convolution") else pytest.mark.slow) for n in STRUCTURED])
def test_structured_derivatives_are_jacobian_contractions(x64, name):
    layers_fn, shape = STRUCTURED[name]
    init_fn, apply_fn, _ = nt.stax.serial(*layers_fn(nt.stax))
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, *shape)))
    params = jax.tree.map(lambda leaf: leaf.astype(float), init_fn(jax.random.PRNGKey(0), inputs.shape)[1])
    for trace_axes in ((), (-1,)):
        kernel_fn = [nt.empirical_ntk_fn(apply_fn, trace_axes, vmap_axes=0, implementation=number) for number in (1, 3)]
        expected = jax.jit(kernel_fn[0])(inputs, inputs[:2] / 2, params)
        np.testing.assert_allclose(jax.jit(kernel_fn[1])(inputs, inputs[:2] / 2, params), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_implementations_are_chosen_by_counted_operations(x):
    init_fn, apply_fn, _ = network(8)
    _, params = init_fn(jax.random.PRNGKey(0), x.shape)
    chosen = nt.empirical_ntk_fn(apply_fn, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.AUTO)(x, None, params)
    np.testing.assert_allclose(chosen, ntk.empirical_ntk(apply_fn, params, x), rtol=1e-4, atol=1e-4)


def test_the_largest_learning_rate_is_that_of_the_largest_eigenvalue():
    kernel = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    for learning_rate_fn in (nt.predict.max_learning_rate, jax.jit(nt.predict.max_learning_rate)):
        assert float(learning_rate_fn(kernel)) == pytest.approx(2 * 3 / 4)
    assert float(nt.predict.max_learning_rate(kernel, momentum=0.5)) == pytest.approx(1.5 * 2 * 3 / 4)


@pytest.mark.parametrize("time", [2.0, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_predictions_from_a_traced_kernel(x64, time):
    """Gradient flow of squared error / N for time t: f(t) = (I - exp(-K t / N)) y from f(0) = 0."""
    rng = np.random.default_rng(0)
    root, targets = rng.normal(size=(3, 3)), jnp.asarray(rng.normal(size=(3, 1)))
    kernel = jnp.asarray(root @ root.T + np.eye(3))

    def predicted(kernel):
        return nt.predict.gradient_descent_mse(kernel, targets)(time, jnp.zeros((3, 1)), jnp.zeros((3, 1)), kernel)[1]

    values, vectors = np.linalg.eigh(kernel)
    decay = np.zeros(3) if time is None else np.exp(-values * time / 3)
    expected = vectors @ np.diag(1 - decay) @ vectors.T @ targets
    predict_fn = nt.predict.gradient_descent_mse(kernel, targets)
    for result in (
        predicted(kernel),
        jax.jit(predicted)(kernel),
        jax.vmap(predicted)(jnp.stack([2 * kernel, kernel]))[1],
        jax.jit(lambda k: predict_fn(time, jnp.zeros((3, 1)), jnp.zeros((3, 1)), k)[1])(kernel),
        predict_fn(time, jnp.zeros((3, 1)), jnp.zeros((3, 1)), kernel)[1],  # nothing leaked from the compiled call before
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-8)
