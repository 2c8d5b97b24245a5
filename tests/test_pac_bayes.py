"""Bounds by simulation, codes by the sum of their probabilities, certificates by decoding."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import pac_bayes


@pytest.mark.parametrize("q, p", [(0.0, 0.3), (0.1, 0.2), (0.5, 0.9), (0.3, 0.3)])
def test_kl_inverse_inverts(q, p):
    assert pac_bayes.kl_inverse(q, pac_bayes.kl(q, p)) == pytest.approx(p, abs=1e-11 if q < p else 1e-6)


def test_ends_are_exact():
    assert pac_bayes.kl_inverse(0.3, 0.0) == 0.3
    assert pac_bayes.kl_inverse(1.0, 5.0) == 1.0
    assert pac_bayes.kl_inverse(0.0, 2.0) == 1 - math.exp(-2.0)
    assert pac_bayes.kl_inverse(0.2, math.inf) == pytest.approx(1.0)


def test_a_code_is_a_probability_and_adapts():
    lengths = [pac_bayes.code_length(np.array(s), 3) for s in itertools.product(range(3), repeat=6)]
    assert sum(2.0**-length for length in lengths) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    skewed = rng.choice(4, 2000, p=[0.9, 0.05, 0.03, 0.02])
    entropy = -sum(share * math.log2(share) for share in np.bincount(skewed) / 2000)
    assert 0 < pac_bayes.code_length(skewed, 4) - 2000 * entropy < 1.5 * math.log2(2000) + 4
    assert pac_bayes.code_length(np.array([], int), 5) == 0


def test_bounds_are_ordered():
    for error, bits in ((0.0, 50.0), (0.1, 100.0), (0.4, 300.0)):
        by_kl, by_hoeffding = (fn(error, 1000, bits=bits, delta=0.05) for fn in (pac_bayes.countable, pac_bayes.hoeffding))
        assert error < by_kl <= min(by_hoeffding, pac_bayes.catoni(error, 1000, bits=bits, delta=0.05))
    best = pac_bayes.catoni(0.1, 1000, bits=100, delta=0.05, lambdas=np.linspace(0.5, 3, 26))
    assert best == pytest.approx(pac_bayes.countable(0.1, 1000, bits=100 + math.log2(26), delta=0.05), abs=1e-3)


def test_bounds_hold_in_simulated_samples():
    """20 hypotheses of known risks, the best on 50 examples: of 2,000 samples at most delta violate the bound."""
    rng = np.random.default_rng(0)
    risks, delta = np.linspace(0.2, 0.5, 20), 0.1
    errors = rng.binomial(50, risks, size=(2000, 20)) / 50
    chosen = errors.argmin(1)
    bounds = {error: pac_bayes.countable(error, 50, bits=math.log2(20), delta=delta) for error in np.unique(errors.min(1))}
    violated = risks[chosen] > np.array([bounds[error] for error in errors.min(1)])
    assert violated.mean() <= delta
    # a bound that forgets the choice would fail in the same simulation
    forgetful = {error: pac_bayes.countable(error, 50, bits=0, delta=delta) for error in np.unique(errors.min(1))}
    assert np.mean(risks[chosen] > np.array([forgetful[error] for error in errors.min(1)])) > delta


def test_divergence_of_gaussians_by_integration():
    x = np.linspace(-12, 12, 20_001)

    def density(mean, deviation):
        return np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))

    q, p = density(0.5, 0.8), density(-0.3, 1.7)
    assert pac_bayes.gaussian_kl([0.5, 0.5], 0.8, [-0.3, -0.3], 1.7) == pytest.approx(2 * np.trapezoid(q * np.log(q / p), x), rel=1e-6)


def apply_fn(params, inputs):
    return jnp.tanh(inputs @ params["hidden"]) @ params["top"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(300, 4)), jnp.float32)
    start = {"hidden": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), "top": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)}
    subspace = pac_bayes.Subspace(jax.random.key(0), start, 20, 2.0)
    z = jnp.asarray(rng.normal(size=20), jnp.float32)
    return subspace, z, inputs, jnp.argmax(apply_fn(subspace.params(z), inputs), -1)


@pytest.mark.parametrize("dimension", [320, 328])  # whole blocks, and part of one
def test_columns_of_a_subspace_are_held_once(dimension):
    key, size = jax.random.key(0), 300
    memory = pac_bayes._columns.lower(key, dimension, size, np.dtype("float32")).compile().memory_analysis()
    assert memory.output_size_in_bytes == 4 * dimension * size
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 2  # some blocks


@pytest.mark.parametrize("dimension", [3, 16, 40])  # part of a block, a block, and two and a half
def test_columns_of_a_subspace_are_those_that_its_parameters_use(dimension):
    subspace = pac_bayes.Subspace(jax.random.key(0), {"w": jnp.zeros(300)}, dimension)
    columns = subspace.columns()
    for row in (0, dimension // 2, dimension - 1):
        np.testing.assert_allclose(columns[row], subspace.params(jnp.eye(dimension)[row])["w"], atol=1e-6)


@pytest.mark.slow
def test_a_subspace_is_linear_and_its_columns_are_of_unit_length(problem):
    subspace, z, _, _ = problem

    def flat(z):
        return jax.flatten_util.ravel_pytree(subspace.params(z))[0]

    columns = jax.jacobian(flat)(z)
    assert columns.shape == (48, 20)
    assert np.allclose(np.linalg.norm(columns, axis=0), 2.0, rtol=1e-5)
    assert np.allclose(flat(z), flat(jnp.zeros(20)) + columns @ z, atol=1e-5)
    assert np.allclose(columns, 2.0 * subspace.columns().T, atol=1e-6)
    assert len(np.unique(np.round(np.asarray(columns[0]), 6))) == 20


def test_a_certificate_decodes_to_the_classifier_that_it_bounds(problem):
    subspace, z, inputs, labels = problem

    def predict_fn(z):
        return apply_fn(subspace.params(z), inputs)

    certificate = pac_bayes.certify(predict_fn, z, labels, steps=(0.02, 0.1, 0.5), delta=0.05)
    assert certificate.bits["coordinates"] == pytest.approx(
        pac_bayes.code_length(certificate.symbols + np.abs(certificate.symbols).max(), 2 * np.abs(certificate.symbols).max() + 1)
    )
    assert (certificate.bits["largest symbol"], certificate.bits["step"]) == (7, math.log2(3))
    again = pac_bayes.Subspace(jax.random.key(0), subspace.start, 20, 2.0)  # from the seed, as who decodes has it
    logits = apply_fn(again.params(jnp.asarray(certificate.symbols * certificate.step, jnp.float32)), inputs)
    assert float(np.mean(np.argmax(logits, -1) != labels)) == pytest.approx(certificate.error)
    assert certificate.bound == pac_bayes.countable(certificate.error, 300, bits=sum(certificate.bits.values()), delta=0.05)
    assert np.array_equal(certificate.coordinates, certificate.symbols * certificate.step)
    named = pac_bayes.certify(predict_fn, z, labels, steps=(0.02, 0.1, 0.5), name_bits=30.0)
    assert named.bound > certificate.bound
    with pytest.raises(ValueError, match="steps must be positive, one at least no less than"):
        pac_bayes.certify(predict_fn, z, labels, steps=(1e-6,))


def test_steps_that_can_send_coordinates():
    assert pac_bayes.usable_steps([-127.4, 3.0], (0.5, 1.0, 2.0)) == [1.0, 2.0]  # a symbol of 127 and, with 0.5, of 255
    assert pac_bayes.usable_steps([0.0], (0.5,)) == [0.5]
    assert pac_bayes.usable_steps([1.0, np.nan], (0.5,)) == pac_bayes.usable_steps([np.inf], (0.5,)) == []


def test_the_gaussian_bound_by_its_parts(problem):
    subspace, z, inputs, labels = problem
    params = subspace.params(0.1 * z)
    result = pac_bayes.gaussian(
        lambda p: apply_fn(p, inputs), params, subspace.start, labels, jax.random.key(0), deviation=0.05, num_draws=20
    )
    s0 = 0.1 * math.exp(-result.prior_index / 100)
    means = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (params, subspace.start))
    mean, prior = means
    assert result.divergence == pytest.approx(pac_bayes.gaussian_kl(mean, 0.05, prior, s0))
    price = result.divergence + math.log(2 * math.sqrt(300) / 0.05 * math.pi**2 * result.prior_index**2 / 6)
    upper = pac_bayes.kl_inverse(result.error, math.log(2 / 0.01) / 20)
    assert result.bound == pytest.approx(pac_bayes.kl_inverse(upper, price / 300))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pac_bayes.kl_inverse(1.2, 0.1), "q must lie from 0 to 1"),
        (lambda: pac_bayes.kl_inverse(0.2, -0.1), "c must be one finite number, at least 0"),
        (lambda: pac_bayes.countable(0.1, 100, bits=3, delta=1.0), "delta must lie between 0 and 1"),
        (lambda: pac_bayes.countable(0.1, 0, bits=3, delta=0.1), "num_examples must be at least 1"),
        (lambda: pac_bayes.hoeffding(2.0, 100, bits=3, delta=0.1), "error must lie from 0 to loss_range = 1, got 2"),
        (lambda: pac_bayes.hoeffding(0.1, 100, bits=3, delta=0.1, loss_range=math.inf), "an unbounded loss has no such bound"),
        (lambda: pac_bayes.code_length([0, 3], 3), "symbols must lie from 0 to 2, got 0 to 3"),
        (lambda: pac_bayes.code_length([0.5], 3), "symbols must be whole numbers"),
        (lambda: pac_bayes.Subspace(jax.random.key(0), {"w": jnp.ones(3)}, 0), "dimension must be at least 1"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
