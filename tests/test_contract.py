"""Hostile arguments in every public function that takes arrays: a result, or an error of this project that says what it got.

Most calls are traced only, so that nothing is compiled; functions that compute on the host run as they are.
"""

import collections
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    attacks,
    bounds,
    claims,
    collapse,
    data,
    descent,
    landscape,
    losses,
    metrics,
    models,
    norms,
    ntk,
    pac_bayes,
    spectra,
    stability,
    stats,
    training,
    unlearnable,
)
from jaxbp.attacks import batching, masking, randomised, robustness, smoothing
from jaxbp.attacks import losses as attack_losses
from jaxbp.data import augment, loading, poisons
from jaxbp.linalg import golub_kahan, lanczos, newton_cg
from jaxbp.ntk import batch_norm, flow, initialisation, iterative, measures, regression
from jaxbp.spectra import lipschitz, marchenko_pastur, power_law
from jaxbp.training import parallel
from tests.helpers.errors import error_of, outcome

KEY = jax.random.key(0)
X = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])
W = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
PARAMS = {"kernel": jnp.asarray(W)}
IMAGES = np.linspace(0, 1, 4 * 4 * 4, dtype=np.float32).reshape(4, 4, 4, 1)
KERNEL = np.eye(4, dtype=np.float32) + 0.1
VECTOR = np.array([1.0, 2.0, 4.0], np.float32)
THREAT = attacks.Threat("linf", 0.1)
CLAIM = claims.Claim("X.a", "statement", "source", "measure", claims.Above(0.0))


def network(inputs):
    return inputs @ W


def apply_fn(params, inputs):
    return inputs @ params["kernel"]


def loss_fn(params, inputs, labels):
    return ((inputs @ params["kernel"]) ** 2).sum(-1) + labels


def matvec(vector):
    return jnp.arange(1.0, 4.0) * vector


NET = models.from_functions(apply_fn)
MLP = models.create("mlp", num_classes=2, width=3, depth=1)
CONVNET = models.create("convnet", num_classes=2, width=1, depth=2, pool="stride")
NORMALISED = models.from_linen(nn.Sequential([nn.Dense(3), nn.BatchNorm(), nn.Dense(2)]))
MLP_START = jax.eval_shape(MLP.init, KEY, X)
WEIGHTS, STATISTICS = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(NORMALISED.init, KEY, X))
SETTINGS = training.Settings(num_epochs=1, batch_size=2)
START = (PARAMS, {})
MODULE = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
FIT = landscape.AffineFit(np.zeros((3, 2)), np.zeros(2), 0, 0.5, 0.0, 0.5, None, 0.5, 0.5)
MAPS = {"distance": KERNEL, "cosine": KERNEL, "inner_product": KERNEL}
PAIRS = np.array([0, 0, 1, 1])
NOISE = stability.LabelNoise(np.linspace(0, 1, 4, dtype=np.float32), np.ones(4, int))
SERIES = np.sin(np.arange(8.0))
FREQUENCIES = np.array([[0.5, 0.0], [0.0, 1.5]])
FILTERS = np.array([[[[0.5, 0.5], [0.5, 0.0]]], [[[0.1, 0.2], [0.3, 0.0]]]])
ANATOMY = bounds.anatomy(apply_fn, PARAMS, X)
SUBSPACE = pac_bayes.Subspace(KEY, PARAMS, 3)
HEAD = unlearnable.Head(W.astype(np.float64), np.zeros(2), 0.5, 0.0)
ZEROS = {"kernel": np.zeros((3, 2))}


def train(inputs, labels, key):
    return training.train(NET, training.sgd(0.1), (inputs, labels), key, SETTINGS, start=START)


def stream(inputs, labels):
    """Of too little memory, which is refused last, before anything is compiled."""
    return parallel.stream(NET, training.sgd(0.1), (inputs, labels), KEY, SETTINGS, memory=1, start=START)


def evaluate(inputs, labels):
    return training.evaluate(network, losses.cross_entropy, test=(inputs, labels))


def robust_accuracy(inputs, labels, key):
    with (
        mock.patch.object(batching, "_is_right", of_zeros(batching._is_right)),
        mock.patch.object(robustness, "_try", of_zeros(robustness._try)),
    ):
        return attacks.robust_accuracy(network, key, inputs, labels, {"a": attacks.fgsm(THREAT)}, batch_size=4, check_masking=False)


def minimal_norms(inputs, labels, key):
    with mock.patch.object(batching, "_is_right", of_zeros(batching._is_right)):  # no example is right, so none is attacked
        return attacks.minimal_norms(network, key, inputs, labels, norm="l2", batch_size=4)


def randomised_accuracy(inputs, labels, key):
    zeros = {name: of_zeros(getattr(randomised, name)) for name in ("_adversarial", "_share_right")}
    with mock.patch.multiple(randomised, **zeros):
        return attacks.randomised_accuracy(lambda _, x: network(x), key, inputs, labels, {"a": attacks.fgsm(THREAT)}, batch_size=4)


def smoothed_radii(inputs, key, sigma, failure):
    with mock.patch.object(smoothing, "_class_counts", return_value=np.array([5, 0])):
        return attacks.smoothed_radii(network, key, inputs, sigma=sigma, failure=failure, num_estimation=10)


def gradient_masking_checks(inputs, labels, key):
    with mock.patch.object(masking, "_measure", of_zeros(masking._measure)):
        return attacks.gradient_masking_checks(network, key, inputs, labels, THREAT)


def of_zeros(program):
    """A compiled program that is traced but not compiled: results are zeros."""
    return lambda *args: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(program, *args))


def fgsm(inputs, labels, key):
    return attacks.fgsm(THREAT)(network, key, inputs, labels)


def fit_affine(inputs, labels):
    return landscape.fit_affine(inputs, labels, 2, loss="squared_error")


def certify(params, inputs, labels, key):
    return landscape.certify(apply_fn, params, inputs, labels, loss="squared_error", key=key)


def norm_bias(params, updates):
    transformation = norms.norm_bias(0.1, 1.0)
    return transformation.update(updates, transformation.init(params), params)


def regress(k_train_train, k_test_train, targets):
    return regression.kernel_regression(k_train_train, k_test_train, targets, ridge=0.1)


def adversarial_perturbations(key, inputs, labels):
    attack = mock.Mock(method=mock.Mock(targets="given"), side_effect=lambda fn, key, inputs, goals: mock.Mock(adversarial=inputs))
    return poisons.adversarial(key, network, inputs, labels, attack)


def error_minimising(key, inputs, labels):
    options = {"threat": THREAT, "step_size": 0.1, "max_rounds": 0}  # refused, or taken without a round
    return poisons.error_minimising(key, lambda key, inputs: PARAMS, apply_fn, training.sgd(0.1), (inputs, labels), **options)


def gaussian(params, start, labels, key):
    return pac_bayes.gaussian(lambda params: X @ params["kernel"], params, start, labels, key, deviation=0.1, num_draws=1)


# name: function of one argument or more, whose good values follow. TRACED functions are pure; the others compute on the host.
TRACED = {
    "losses.cross_entropy": (losses.cross_entropy, {"logits": X, "labels": Y}),
    "losses.squared_error": (losses.squared_error, {"logits": X, "labels": Y}),
    "metrics.accuracy": (metrics.accuracy, {"logits": X, "labels": Y}),
    "attacks.losses.dlr": (attack_losses.dlr, {"logits": X, "labels": Y}),
    "attacks.losses.margin": (attack_losses.margin, {"logits": X, "labels": Y}),
    "attacks.losses.targeted_margin": (attack_losses.targeted_margin, {"logits": X, "labels": Y, "targets": Y}),
    "attacks.fgsm": (fgsm, {"inputs": X, "labels": Y, "key": KEY}),
    "attacks.pgd": (
        lambda epsilon, step_size: attacks.pgd(attacks.Threat("l2", epsilon), step_size=step_size)(network, KEY, X, Y),
        {"epsilon": np.float32(0.1), "step_size": np.float32(0.1)},
    ),
    "attacks.apgd": (lambda inputs, labels: attacks.apgd(THREAT, num_steps=2)(network, KEY, inputs, labels), {"inputs": X, "labels": Y}),
    "attacks.square": (lambda inputs, labels: attacks.square(THREAT)(network, KEY, inputs, labels), {"inputs": X, "labels": Y}),
    "attacks.fab": (lambda inputs, labels: attacks.fab(THREAT, num_steps=2)(network, KEY, inputs, labels), {"inputs": X, "labels": Y}),
    "attacks.apgd in l1": (
        lambda inputs, epsilon: attacks.apgd(attacks.Threat("l1", epsilon), num_steps=2)(network, KEY, inputs, Y),
        {"inputs": X, "epsilon": np.float64(0.1)},
    ),
    "attacks.interval_bounds": (lambda lower, upper: attacks.interval_bounds(network, lower, upper), {"lower": X, "upper": X}),
    "attacks.interval_certificate": (
        lambda inputs, labels: attacks.interval_certificate(network, inputs, labels, THREAT),
        {"inputs": X, "labels": Y},
    ),
    "attacks.expectation": (lambda key: attacks.expectation(lambda _, x: network(x), key)(X), {"key": KEY}),
    "attacks.pgd_training": (
        lambda key, inputs, labels: attacks.pgd_training(THREAT)(key, network, inputs, labels),
        {"key": KEY, "inputs": X, "labels": Y},
    ),
    "attacks.Threat": (lambda low, high: attacks.Threat("linf", 0.1, (low, high)), {"low": np.zeros(3), "high": np.ones(3)}),
    "data.augment.cutmix": (
        lambda key, images, labels: augment.cutmix()(key, images, labels),
        {"key": KEY, "images": IMAGES, "labels": Y},
    ),
    "data.augment.crop_and_flip": (lambda key, images: augment.crop_and_flip()(key, images), {"key": KEY, "images": IMAGES}),
    "models mlp.init": (MLP.init, {"key": KEY, "inputs": X}),
    "models mlp.apply": (lambda inputs: MLP.apply(*_drawn(MLP_START, inputs)), {"inputs": X}),
    "models convnet.init": (CONVNET.init, {"key": KEY, "inputs": IMAGES}),
    "models linen.update": (lambda inputs: NORMALISED.update(WEIGHTS, inputs, STATISTICS), {"inputs": X}),
    "models.calibrate_batch_norm": (
        lambda inputs: models.calibrate_batch_norm(NORMALISED, WEIGHTS, STATISTICS, inputs, batch_size=2, num_epochs=1),
        {"inputs": X},
    ),
    "models.with_normalised_inputs": (
        lambda mean, std: models.with_normalised_inputs(NET, mean, std).apply(PARAMS, X),
        {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)},
    ),
    "training.train": (train, {"inputs": X, "labels": Y, "key": KEY}),
    "training.evaluate": (evaluate, {"inputs": X, "labels": Y}),
    "norms.squared_norm": (norms.squared_norm, {"params": PARAMS}),
    "norms.norm_penalty": (lambda params: norms.norm_penalty(params, 5.0, 1.0), {"params": PARAMS}),
    "norms.norm_bias": (norm_bias, {"params": PARAMS, "updates": PARAMS}),
    "norms.effective_learning_rates": (norms.effective_learning_rates, {"params": PARAMS, "learning_rate": np.float32(0.1)}),
    "landscape.losses_at": (
        lambda params, inputs, offsets: landscape.losses_at(loss_fn, params, (inputs, Y), offsets),
        {"params": PARAMS, "inputs": X, "offsets": np.zeros((2, 6), np.float32)},
    ),
    "landscape.perturb_init": (
        lambda params, key: landscape.perturb_init(next(iter(landscape.INITS)), params, key),
        {"params": PARAMS, "key": KEY},
    ),
    "ntk.empirical_ntk": (lambda params, x1, x2: ntk.empirical_ntk(apply_fn, params, x1, x2), {"params": PARAMS, "x1": X, "x2": X}),
    "ntk.ntk_vector_product": (lambda params, x1: ntk.ntk_vector_product(apply_fn, params, x1), {"params": PARAMS, "x1": X}),
    "ntk.measures.relative_change": (measures.relative_change, {"before": KERNEL, "after": KERNEL}),
    "ntk.measures.rescaled_change": (measures.rescaled_change, {"before": KERNEL, "after": KERNEL}),
    "ntk.measures.cosine": (measures.cosine, {"before": KERNEL, "after": KERNEL}),
    "ntk.measures.correlation": (measures.correlation, {"before": KERNEL, "after": KERNEL}),
    "ntk.measures.centred_alignment": (measures.centred_alignment, {"before": KERNEL, "after": KERNEL}),
    "ntk.measures.label_alignment": (
        lambda kernel, labels: measures.label_alignment(kernel, labels, 2),
        {"kernel": KERNEL, "labels": Y},
    ),
    "ntk.initialisation.feature_kernel": (initialisation.feature_kernel, {"features1": X, "features2": X}),
    "ntk.initialisation.over_seeds": (
        lambda key: initialisation.over_seeds(lambda key: KERNEL * jax.random.normal(key), key, num_seeds=2),
        {"key": KEY},
    ),
    "ntk.measures.as_matrix": (measures.as_matrix, {"kernel": KERNEL}),
    "ntk.measures.spectrum": (measures.spectrum, {"kernel": KERNEL}),
    "ntk.measures.spectral_ranks": (measures.spectral_ranks, {"eigenvalues": VECTOR}),
    "ntk.measures.velocity": (measures.velocity, {"kernels": np.stack([KERNEL] * 3), "times": VECTOR}),
    "ntk.measures.parameter_movement": (measures.parameter_movement, {"before": PARAMS, "after": PARAMS}),
    "ntk.measures.feature_maps": (measures.feature_maps, {"features": X}),
    "ntk.measures.compare_feature_maps": (measures.compare_feature_maps, {"before": MAPS, "after": MAPS}),
    "ntk.regression.centred_one_hot": (lambda labels: regression.centred_one_hot(labels, 2), {"labels": Y}),
    "ntk.regression.centred_squared_error": (regression.centred_squared_error, {"logits": X, "labels": Y}),
    "spectra.singular_values": (spectra.singular_values, {"kernel": W}),
    "spectra.of_network": (lambda params, inputs: spectra.of_network(apply_fn, params, inputs), {"params": PARAMS, "inputs": X}),
    "spectra.rank_min": (
        lambda params, inputs: spectra.rank_min(apply_fn, params, inputs, pattern=None, energy=0.9),
        {"params": PARAMS, "inputs": X},
    ),
    "spectra.rank_max": (
        lambda params, inputs: spectra.rank_max(apply_fn, params, inputs, pattern=None, ceiling=1.0),
        {"params": PARAMS, "inputs": X},
    ),
    "spectra.nuclear_rank": (spectra.nuclear_rank, {"spectrum": VECTOR}),
    "spectra.stable_rank": (spectra.stable_rank, {"spectrum": VECTOR}),
    "spectra.entropy_rank": (spectra.entropy_rank, {"spectrum": VECTOR}),
    "spectra.numerical_rank": (spectra.numerical_rank, {"spectrum": VECTOR}),
    "linalg.golub_kahan": (
        lambda start: golub_kahan.golub_kahan(lambda v: W[:, :2] @ v, start, num_steps=2),
        {"start": VECTOR[:2]},
    ),
}
HOST = {
    "attacks.robust_accuracy": (robust_accuracy, {"inputs": X, "labels": Y, "key": KEY}),
    "attacks.minimal_norms": (minimal_norms, {"inputs": X, "labels": Y, "key": KEY}),
    "attacks.MinimalNorms.accuracy": (attacks.MinimalNorms("l2", VECTOR, X[:3], 1).accuracy, {"radii": VECTOR}),
    "attacks.SmoothedRadii.accuracy": (
        attacks.SmoothedRadii(Y[:3], VECTOR, VECTOR / 5, 0.5, 0.01).accuracy,
        {"labels": Y[:3], "radii": VECTOR},
    ),
    "attacks.randomised_accuracy": (randomised_accuracy, {"inputs": X, "labels": Y, "key": KEY}),
    "attacks.smoothed_radii": (
        smoothed_radii,
        {"inputs": X, "key": KEY, "sigma": np.float64(0.5), "failure": np.float64(0.01)},
    ),
    "attacks.gradient_masking_checks": (gradient_masking_checks, {"inputs": X, "labels": Y, "key": KEY}),
    "training.parallel.stream": (stream, {"inputs": X, "labels": Y}),
    "data.stratified_indices": (lambda labels: loading.stratified_indices(labels, 2, seed=0), {"labels": Y}),
    "data.balanced_subset": (
        lambda inputs, labels: data.balanced_subset(loading.Split(inputs, labels), 2, seed=0),
        {"inputs": X, "labels": Y},
    ),
    "stats.t_interval": (stats.t_interval, {"values": VECTOR}),
    "stats.bootstrap_interval": (lambda values: stats.bootstrap_interval(values, num_resamples=50), {"values": VECTOR}),
    "stats.proportion_interval": (stats.proportion_interval, {"successes": np.int64(1), "trials": np.int64(3)}),
    "stats.wilson_interval": (stats.wilson_interval, {"successes": np.int64(1), "trials": np.int64(3)}),
    "stats.event_interval": (stats.event_interval, {"happened": np.array([True, False, True])}),
    "stats.paired_difference": (stats.paired_difference, {"a": VECTOR, "b": VECTOR[::-1].copy()}),
    "stats.trend": (stats.trend, {"widths": VECTOR, "values": np.outer(VECTOR, VECTOR)}),
    "stats.slopes": (stats.slopes, {"widths": VECTOR, "values": np.outer(VECTOR, VECTOR)}),
    "stats.p_value": (stats.p_value, {"values": VECTOR}),
    "stats.holm": (stats.holm, {"p_values": VECTOR / 10}),
    "claims.judge": (lambda values: claims.judge(CLAIM, {"case": values}), {"values": VECTOR}),
    "landscape.hessian": (lambda params, inputs: landscape.hessian(loss_fn, params, (inputs, Y)), {"params": PARAMS, "inputs": X}),
    "landscape.certify": (certify, {"params": PARAMS, "inputs": X, "labels": Y, "key": KEY}),
    "landscape.analyse": (lambda params, inputs: landscape.analyse(apply_fn, params, inputs), {"params": PARAMS, "inputs": X}),
    "landscape.fit_affine": (fit_affine, {"inputs": X, "labels": Y}),
    "landscape.embed_affine": (lambda inputs: landscape.embed_affine(MODULE, FIT, inputs), {"inputs": X}),
    "landscape.embed_mlp": (lambda inputs: landscape.embed_mlp([(np.zeros((3, 2)), np.zeros(2))], [4], inputs), {"inputs": X}),
    "landscape.probe": (
        lambda params, key: landscape.probe(loss_fn, params, (X, Y), key, radii=(0.1,), step_size=0.1, num_directions=1, num_steps=1),
        {"params": PARAMS, "key": KEY},
    ),
    "ntk.ntk_extremes": (lambda x, key: ntk.ntk_extremes(apply_fn, PARAMS, x, key), {"x": X, "key": KEY}),
    "ntk.iterative.kernel_regression": (
        lambda params, targets, ridge: iterative.kernel_regression(apply_fn, params, X, targets, X, ridge=ridge, max_iterations=1),
        {"params": PARAMS, "targets": X[:, :2], "ridge": np.float64(0)},
    ),
    "ntk.flow.gradient_flow": (
        lambda kernel, targets, outputs, time: flow.gradient_flow(kernel, kernel, targets, (outputs, outputs), time, loss="squared_error"),
        {"kernel": KERNEL, "targets": X, "outputs": X, "time": np.float64(1)},
    ),
    "ntk.regression.kernel_regression": (regress, {"k_train_train": KERNEL, "k_test_train": KERNEL, "targets": X}),
    "ntk.regression.log_evidence": (
        regression.log_evidence,
        {"k_train_train": KERNEL, "targets": X, "ridges": np.array([0.1, 1.0])},
    ),
    "linalg.extreme_eigenvalues": (lambda start: lanczos.extreme_eigenvalues(matvec, start), {"start": VECTOR}),
    "linalg.spectral_density": (lambda key: lanczos.spectral_density(matvec, 3, key, num_probes=1), {"key": KEY}),
    "linalg.hutchinson_trace": (lambda key: lanczos.hutchinson_trace(matvec, 3, key, num_probes=1), {"key": KEY}),
    "linalg.newton_cg": (
        lambda start: newton_cg.minimise(lambda v: float(v @ v), lambda v: (float(v @ v), 2 * v, lambda d: 2 * d), start),
        {"start": VECTOR.astype(np.float64)},
    ),
}
TRACED |= {
    "spectra.attention_heads": (
        lambda kernel, out, scale: spectra.attention_heads(
            {name: {"kernel": kernel} for name in ("query", "key", "value")} | {"out": {"kernel": out}}, layer_norm={"scale": scale}
        ),
        {"kernel": W[:, None], "out": W.T[None], "scale": VECTOR},
    ),
    "spectra.layer_norm_operator": (
        lambda scale, kernel: spectra.layer_norm_operator({"scale": scale}, kernel),
        {"scale": VECTOR, "kernel": W},
    ),
    "spectra.rank_measure": (
        lambda params, inputs: spectra.rank_measure(lambda p, x, s: apply_fn(p, x), inputs)(training.TrainState(params, (), {})),
        {"params": PARAMS, "inputs": X},
    ),
    "stability.replace_example": (
        stability.replace_example,
        {"inputs": X, "labels": Y, "position": np.int64(1), "new_input": X[0], "new_label": np.int64(1)},
    ),
    "stability.draw_label_noise": (lambda key: stability.draw_label_noise(key, 4, 2), {"key": KEY}),
    "stability.apply_label_noise": (
        lambda labels, share: stability.apply_label_noise(NOISE, labels, share, 2),
        {"labels": Y, "share": np.float64(0.1)},
    ),
    "stability.expected_loss": (stability.expected_loss, {"class_losses": X, "labels": Y, "share": np.float64(0.1)}),
    "stability.TimeAverage.update": (
        lambda value, step: stability.TimeAverage.init().update(value, step, run_up=1, num_steps=4),
        {"value": np.float32(1), "step": np.int64(2)},
    ),
    "stability.coefficients": (stability.coefficients, {"base": VECTOR, "others": W.T}),
    "stability.pairwise": (stability.pairwise, {"runs": X}),
    "stability.sketch": (lambda key, params: stability.sketch(key, params, 2), {"key": KEY, "params": PARAMS}),
    "unlearnable.linear_weights": (
        lambda inputs, labels, key: unlearnable.linear_weights(inputs, labels, 2, key, batch_size=2, num_epochs=1),
        {"inputs": X, "labels": Y, "key": KEY},
    ),
    "descent.random_features": (lambda key, inputs: descent.random_features(key, inputs, 2), {"key": KEY, "inputs": X}),
    "pac_bayes.Subspace.params": (SUBSPACE.params, {"z": VECTOR}),
    "pac_bayes.Subspace": (
        lambda key, start: pac_bayes.Subspace(key, start, 3).params(VECTOR),
        {"key": KEY, "start": PARAMS},
    ),
    "bounds.lower.unit_frobenius": (bounds.lower.unit_frobenius, {"params": PARAMS}),
}
INSTRUMENTS = {
    "spectra.lipschitz.upper": (lambda params, inputs: lipschitz.upper(apply_fn, params, inputs), {"params": PARAMS, "inputs": X}),
    "spectra.lipschitz.lower": (
        lambda params, inputs, key: lipschitz.lower(apply_fn, params, inputs, key, num_steps=1, num_products=1),
        {"params": PARAMS, "inputs": X, "key": KEY},
    ),
    "spectra.marchenko_pastur.fit": (lambda values: marchenko_pastur.fit(values, (3, 5)), {"values": VECTOR}),
    "spectra.marchenko_pastur.density": (
        marchenko_pastur.density,
        {"eigenvalues": VECTOR, "aspect": np.float64(0.5), "scale": np.float64(1)},
    ),
    "spectra.marchenko_pastur.cumulative": (marchenko_pastur.cumulative, {"eigenvalues": VECTOR, "aspect": np.float64(0.5)}),
    "spectra.power_law.fit": (power_law.fit, {"values": VECTOR, "x_min": np.float64(0.5)}),
    "spectra.power_law.p_value": (lambda key: power_law.p_value(power_law.fit(VECTOR), key, num_samples=1), {"key": KEY}),
    "stability.weight_distances": (stability.weight_distances, {"sketches": X}),
    "stability.detrend": (stability.detrend, {"series": SERIES}),
    "stability.autocorrelation": (stability.autocorrelation, {"series": SERIES}),
    "stability.integrated_time": (stability.integrated_time, {"series": SERIES}),
    "unlearnable.reweigh": (
        lambda features, labels, l2: unlearnable.reweigh(features, labels, 2, l2=l2),
        {"features": X, "labels": Y, "l2": np.float64(0.1)},
    ),
    "unlearnable.Head.accuracy": (HEAD.accuracy, {"features": X, "labels": Y}),
    "unlearnable.separability": (
        lambda perturbations, labels: unlearnable.separability(perturbations, labels, 2),
        {"perturbations": X, "labels": Y},
    ),
    "unlearnable.separability, fresh": (
        lambda inputs, labels: unlearnable.separability(X, Y, 2, fresh=(inputs, labels)),
        {"inputs": X, "labels": Y},
    ),
    "unlearnable.projection": (unlearnable.projection, {"weights": W}),
    "unlearnable.project_out": (unlearnable.project_out, {"inputs": X, "Q": W}),
    "poisons.waves": (
        lambda key, labels, frequencies, rms: poisons.waves(key, labels, (4, 4, 1), frequencies, rms=rms),
        {"key": KEY, "labels": Y, "frequencies": FREQUENCIES, "rms": np.float64(0.1)},
    ),
    "poisons.autoregressive": (
        lambda key, labels, coefficients: poisons.autoregressive(key, labels, (4, 4, 1), coefficients, rms=0.1, crop=0),
        {"key": KEY, "labels": Y, "coefficients": FILTERS},
    ),
    "poisons.ar_coefficients": (lambda key: poisons.ar_coefficients(key, 1, (4, 4, 1), window=(2, 2)), {"key": KEY}),
    "poisons.ar_response": (poisons.ar_response, {"coefficients": FILTERS[0], "perturbations": IMAGES}),
    "poisons.class_patches": (
        lambda key, labels: poisons.class_patches(key, labels, (4, 4, 1), 2, rms=0.1, patch=2),
        {"key": KEY, "labels": Y},
    ),
    "poisons.one_pixel": (lambda inputs, labels: poisons.one_pixel(inputs, labels, 2), {"inputs": IMAGES, "labels": Y}),
    "poisons.apply": (
        poisons.apply,
        {"inputs": X, "perturbation": X, "low": np.float64(0), "high": np.float64(1)},
    ),
    "poisons.headroom": (poisons.headroom, {"inputs": X, "margin": np.float64(0.1)}),
    "poisons.budget": (poisons.budget, {"perturbation": X}),
    "poisons.adversarial": (adversarial_perturbations, {"key": KEY, "inputs": X, "labels": Y}),
    "poisons.error_minimising": (error_minimising, {"key": KEY, "inputs": X, "labels": Y}),
    "bounds.anatomy": (lambda params, inputs: bounds.anatomy(apply_fn, params, inputs), {"params": PARAMS, "inputs": X}),
    "bounds.peeling": (lambda inputs: bounds.peeling(ANATOMY, inputs), {"inputs": X}),
    "bounds.sparse": (lambda inputs: bounds.sparse(ANATOMY, inputs), {"inputs": X}),
    "bounds.low_rank": (lambda inputs: bounds.low_rank(ANATOMY, inputs), {"inputs": X}),
    "bounds.counting": (lambda inputs: bounds.counting(ANATOMY, inputs), {"inputs": X}),
    "bounds.margins": (bounds.margins, {"logits": X, "labels": Y}),
    "bounds.risk": (
        lambda margins, delta: bounds.risk(bounds.counting(ANATOMY, X), margins, delta=delta),
        {"margins": X[:, 0], "delta": np.float64(0.1)},
    ),
    "bounds.log_examples_needed": (
        lambda margins, delta: bounds.log_examples_needed(bounds.counting(ANATOMY, X), margins, delta=delta),
        {"margins": X[:, 0], "delta": np.float64(0.1)},
    ),
    "bounds.lower.top_layer": (
        lambda features, top_norm, key: bounds.lower.top_layer(features, top_norm, 2, key, num_draws=2),
        {"features": X, "top_norm": np.float64(1), "key": KEY},
    ),
    "collapse.measure": (
        lambda features, labels, head, bias: collapse.measure(features, labels, head, bias=bias),
        {"features": X, "labels": PAIRS, "head": W, "bias": W[0]},
    ),
    "pac_bayes.kl_inverse": (pac_bayes.kl_inverse, {"q": np.float64(0.1), "c": np.float64(0.1)}),
    "pac_bayes.countable": (
        lambda error, num_examples, bits, delta: pac_bayes.countable(error, num_examples, bits=bits, delta=delta),
        {"error": np.float64(0.1), "num_examples": np.int64(4), "bits": np.float64(9), "delta": np.float64(0.1)},
    ),
    "pac_bayes.hoeffding": (
        lambda error, num_examples: pac_bayes.hoeffding(error, num_examples, bits=9, delta=0.1),
        {"error": np.float64(0.1), "num_examples": np.int64(4)},
    ),
    "pac_bayes.catoni": (
        lambda error, lambdas: pac_bayes.catoni(error, 4, bits=9, delta=0.1, lambdas=lambdas),
        {"error": np.float64(0.1), "lambdas": VECTOR},
    ),
    "pac_bayes.code_length": (pac_bayes.code_length, {"symbols": Y, "alphabet": np.int64(2)}),
    "pac_bayes.certify": (
        lambda z, labels, steps: pac_bayes.certify(lambda z: X @ z.reshape(3, 2), z, labels, steps=steps),
        {"z": W.ravel(), "labels": Y, "steps": VECTOR},
    ),
    "pac_bayes.gaussian_kl": (
        pac_bayes.gaussian_kl,
        {"mean": VECTOR, "deviation": np.float64(1), "prior_mean": VECTOR, "prior_deviation": np.float64(1)},
    ),
    "pac_bayes.gaussian": (gaussian, {"params": PARAMS, "start": PARAMS, "labels": Y, "key": KEY}),
    "descent.legendre": (lambda x, degree: descent.legendre(x, degree), {"x": X[0], "degree": np.int64(2)}),
    "descent.min_norm": (descent.min_norm, {"features": X, "targets": X}),
    "descent.ridge_path": (
        descent.ridge_path,
        {"features": X, "targets": X, "ridges": VECTOR, "test_features": X},
    ),
    "descent.isotropic_risk": (
        descent.isotropic_risk,
        {"num_examples": np.int64(4), "num_features": np.int64(9), "signal": np.float64(1), "noise": np.float64(1)},
    ),
    "descent.isotropic_ridge_risk": (
        descent.isotropic_ridge_risk,
        {"ratio": np.float64(1), "ridge": np.float64(1), "signal": np.float64(1), "noise": np.float64(1)},
    ),
    "descent.stieltjes": (descent.stieltjes, {"ratio": np.float64(1), "ridge": np.float64(1)}),
    "descent.effective_dimension": (descent.effective_dimension, {"eigenvalues": VECTOR, "alpha": np.float64(1)}),
    "ntk.streamed_product": (
        lambda params, x, vector: ntk.streamed_product(apply_fn, params, x)(vector),
        {"params": PARAMS, "x": X, "vector": X[:, :2]},
    ),
    "ntk.precision.kernel_error": (
        lambda kernel, x, key: ntk.precision.kernel_error(kernel, apply_fn, PARAMS, x, key=key, num_rows=1, logits="trace"),
        {"kernel": KERNEL, "x": X, "key": KEY},
    ),
    "ntk.batch_norm.batch_norm_relu": (
        lambda covariance, tangent, epsilon: batch_norm.batch_norm_relu(covariance, tangent, epsilon=epsilon, num_nodes=3),
        {"covariance": KERNEL, "tangent": KERNEL, "epsilon": np.float64(1e-3)},
    ),
    "ntk.batch_norm.stored_norm_relu": (
        lambda covariance, tangent: batch_norm.stored_norm_relu([(covariance, tangent)]),
        {"covariance": KERNEL, "tangent": KERNEL},
    ),
    "ntk.batch_norm.sampled_sum_relu": (
        lambda key, covariance, tangent: batch_norm.sampled_sum_relu(key, [batch_norm.Branch(covariance, tangent, "stored")], channels=2),
        {"key": KEY, "covariance": KERNEL, "tangent": KERNEL},
    ),
    "stats.kendall": (stats.kendall, {"x": VECTOR, "y": VECTOR}),
    "stats.median_interval": (stats.median_interval, {"values": SERIES}),
    "stats.sign_flip_interval": (stats.sign_flip_interval, {"values": SERIES}),
    "stats.mean_interval": (lambda values: stats.mean_interval(values, resolution=0.1), {"values": VECTOR}),
    "stats.t_e_value": (stats.t_e_value, {"values": VECTOR}),
    "stats.anytime_t_interval": (stats.anytime_t_interval, {"values": SERIES}),
    "stats.event_e_value": (stats.event_e_value, {"happened": Y, "share": np.float64(0.5)}),
    "stats.anytime_event_interval": (stats.anytime_event_interval, {"happened": Y}),
}


COSTLY = (  # of the instruments: a program for each shape that is taken
    "poisons.autoregressive",
    "poisons.ar_coefficients",
    "poisons.class_patches",
    "pac_bayes.gaussian",
    "pac_bayes.certify",
    "spectra.lipschitz.lower",
    "ntk.streamed_product",
    "ntk.precision.kernel_error",
    "ntk.batch_norm.batch_norm_relu",
    "ntk.batch_norm.sampled_sum_relu",
)


def _drawn(shapes, inputs):
    params, state = shapes
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params), inputs, state


def hostile(good):
    """What stands in for a good argument, by name."""
    array = np.zeros(2, np.float32) if isinstance(good, dict) or good is KEY else np.asarray(good)
    ones = np.ones(array.shape, np.float32)
    return {
        "None": None,
        "tuple": (good, good),
        "dict": {"other": good},
        "text": "x",
        "object": object(),
        "scalar": np.float64(0.5),
        "another rank": ones[None],
        "NaN": np.full_like(ones, np.nan),
        "empty": np.zeros((0, *array.shape[1:]), np.float32),
        "integer": ones.astype(int),
        "bool": ones.astype(bool),
        "complex": ones.astype(np.complex64) * (1 + 1j),
        "bfloat16": jnp.ones(array.shape, jnp.bfloat16),
        "typed key": jax.random.key(1),
        "raw key": jax.random.PRNGKey(1),
        "keys": jax.random.split(KEY, 3),
        "tracer": None,
    }


def attempts(table, traced):
    """(function, argument, hostile argument, outcome, error) of each call."""
    for name, (function, good) in table.items():
        for argument, value in good.items():
            for label, bad in hostile(value).items():

                def call(value, function=function, good=good, argument=argument):
                    function(**good | {argument: value})

                if label == "tracer":
                    error = error_of(lambda call=call, value=value: jax.eval_shape(call, jax.tree.map(jnp.asarray, value)))
                elif traced:
                    error = error_of(lambda call=call, bad=bad: jax.eval_shape(lambda: call(bad)))
                else:
                    error = error_of(lambda call=call, bad=bad: call(bad))
                yield name, argument, label, outcome(error), error


@pytest.fixture
def unfiltered():
    """JAX's frames stay in tracebacks; to take them out takes longer than most calls."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


@pytest.mark.usefixtures("unfiltered")
@pytest.mark.parametrize(
    ("table", "traced"),
    [
        pytest.param(TRACED, True, id="traced"),
        pytest.param(HOST, False, id="host"),
        pytest.param({name: entry for name, entry in INSTRUMENTS.items() if name not in COSTLY}, False, id="instruments"),
        pytest.param({name: INSTRUMENTS[name] for name in COSTLY}, False, id="costly", marks=pytest.mark.slow),
    ],
)
@pytest.mark.first_cases(1)
def test_hostile_arguments_end_in_results_or_in_errors_of_this_project(table, traced):
    foreign = collections.defaultdict(list)
    for name, argument, label, result, error in attempts(table, traced):
        if result == "foreign":
            foreign[name, argument].append(f"{label}: {type(error).__name__}: {str(error)[:100]}")
    assert not dict(foreign)


def test_good_arguments_are_taken():
    for name, (function, good) in TRACED.items():
        assert error_of(lambda f=function, g=good: jax.eval_shape(lambda: (f(**g), None)[1])) is None, name


def test_whose_error_it_is():
    """The outcome of errors of each kind, so that a foreign error cannot pass for an own one."""

    def fails(inputs):
        raise KeyError("mine")

    assert outcome(error_of(lambda: losses.cross_entropy(1, 2))) == "own"
    assert outcome(error_of(lambda: stats.t_interval([1.0]))) == "own"
    assert outcome(error_of(lambda: attacks.fgsm(THREAT)(fails, KEY, X, Y))) == "caller"
    assert outcome(error_of(lambda: attacks.pgd(THREAT, num_steps="x"))) == "foreign"  # an operation of jaxbp, no statement
    assert outcome(error_of(lambda: jnp.zeros(2) @ jnp.zeros(3))) == "foreign"
