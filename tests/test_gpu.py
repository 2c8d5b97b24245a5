"""The instruments on an accelerator against the same computation in float64 on the host's CPU.

``JAX_PLATFORMS=cuda,cpu pytest -m gpu -n 0 tests/test_gpu.py``; skipped where JAX has no accelerator. JAX's settings are its own: where
it may shorten float32 products (TF32), instruments must have asked for full precision themselves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbp import attacks, data, landscape, models, ntk, spectra, sweep, training
from jaxbp.ntk.infinite_width import infinite_width_kernel
from jaxbp.ops import convolution
from jaxbp.runtime import device_memory
from jaxbp.spectra import values
from jaxbp.training import parallel

pytestmark = pytest.mark.gpu
SHAPE, CLASSES = (8, 8, 1), 10


@pytest.fixture(autouse=True, scope="module")
def accelerator():
    if jax.default_backend() == "cpu":
        pytest.skip("JAX has no accelerator, or JAX_PLATFORMS hides it: JAX_PLATFORMS=cuda,cpu")
    return jax.local_devices()[0]


def on_the_cpu(fn, *arguments):
    """``fn`` in float64 on the host, its results as NumPy arrays."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        exact = jax.tree.map(_exact, arguments)
        return jax.tree.map(np.asarray, fn(*exact))


def _exact(leaf):
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf)


def assert_near(found, expected, tolerance):
    """In the norm of the whole array: single entries may be cancelled to nothing."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


@functools.cache
def digits():
    return data.load("digits")


def batch(num_examples=40):
    return jnp.asarray(digits().train.inputs[:num_examples]), jnp.asarray(digits().train.labels[:num_examples])


@functools.cache
def resnet(width=8):
    """(function, parameters, state) in evaluation mode."""
    net = models.create("resnet", num_classes=CLASSES, width=width, stages=2, depth=1)
    params, state = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return net.apply, params, state


def trained(key, inputs, labels, num_epochs=4, rate=0.05, dtype="float32"):
    net = models.create("resnet", num_classes=CLASSES, width=8, stages=2, depth=1, dtype=dtype)
    settings = training.Settings(num_epochs=num_epochs, batch_size=64)
    return training.train(net, training.sgd(rate, momentum=0.9), (inputs, labels), key, settings, start=net.init(key, inputs[:1]))


@functools.cache
def classifier():
    """A network that tells digits apart, as the Partial that attacks take."""
    found = jax.jit(trained)(jax.random.key(1), *batch(1000))
    apply_fn, _, _ = resnet()
    return jax.tree_util.Partial(_logits, jax.tree_util.Partial(apply_fn), found.params, found.state)


def _logits(apply_fn, params, state, inputs):
    return apply_fn(params, inputs, state)


def test_a_hessian_product(accelerator):
    apply_fn, params, state = resnet()
    vector = jax.random.normal(jax.random.key(1), ravel_pytree(params)[0].shape)

    def product(params, state, vector, inputs, labels):
        loss_fn = landscape.per_example_loss(lambda p, x: apply_fn(p, x, state), "cross_entropy")
        return landscape.hessian(loss_fn, params, (inputs, labels)).matvec(vector)

    found = product(params, state, vector, *batch())
    assert found.devices() == {accelerator}
    assert_near(found, on_the_cpu(product, params, state, vector, *batch()), 1e-4)


def test_a_tangent_kernel_and_its_product():
    apply_fn, params, state = resnet()
    inputs = batch(12)[0]
    vector = jax.random.normal(jax.random.key(1), (12, CLASSES))

    def kernel(params, state, inputs):
        return ntk.empirical_ntk(apply_fn, params, inputs, state=state)

    expected = on_the_cpu(kernel, params, state, inputs)
    assert_near(kernel(params, state, inputs), expected, 1e-4)
    product = ntk.ntk_vector_product(apply_fn, params, inputs, state=state)(vector)
    assert_near(product, np.einsum("ijkl,jl->ik", expected, np.asarray(vector)), 1e-4)


def test_an_infinite_kernel():
    net = models.create(
        "resnet",
        num_classes=CLASSES,
        width=8,
        stages=2,
        depth=1,
        norm="none",
        parametrisation="ntk",
        shortcut="projection",
    )
    kernel_fn = infinite_width_kernel(net.module, SHAPE)
    inputs = batch(6)[0]
    assert_near(kernel_fn(inputs, None, "ntk"), on_the_cpu(lambda x: kernel_fn(x, None, "ntk"), inputs), 1e-4)


@pytest.mark.parametrize("route", values.ROUTES)
def test_singular_values_by_every_route(route):
    rng = np.random.default_rng(0)
    matrices = (rng.normal(size=(5, 12, 9)) + 1j * rng.normal(size=(5, 12, 9))).astype(np.complex64)
    found = jax.jit(functools.partial(values.matrix_values, route=route))(matrices)
    np.testing.assert_allclose(found, np.linalg.svd(matrices.astype(np.complex128), compute_uv=False), rtol=1e-4)


def test_spectra_of_a_network_and_rank_min():
    apply_fn, params, state = resnet()

    def fn(params, inputs):
        return apply_fn(params, inputs, state)

    def measured(params):
        image = jnp.zeros((1, *SHAPE), jax.tree.leaves(params)[0].dtype)
        found = spectra.of_network(lambda p, x: apply_fn(p, x, jax.tree.map(x.dtype.type, state)), params, image, pattern="Conv")
        return {name: spectrum.values for name, spectrum in found.items()}

    found, expected = jax.jit(measured)(params), on_the_cpu(measured, params)
    assert set(found) == set(expected)
    for name in expected:
        assert_near(found[name], expected[name], 1e-4)
    less, report = jax.jit(spectra.rank_min(fn, params, jnp.zeros((1, *SHAPE)), threshold=0.5))(params)
    norms = [float(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree))) for tree in (less, params)]
    assert norms[0] < norms[1]
    assert report


def test_convolutions_are_xlas_own_and_right():
    rng = np.random.default_rng(0)
    images, kernels = rng.normal(size=(4, 9, 9, 3)).astype("f"), rng.normal(size=(3, 3, 3, 5)).astype("f")

    def convolve(images, kernels):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
        return convolution.conv_general_dilated(images, kernels, (1, 1), "SAME", **options)

    assert "convolution" in jax.jit(convolve).lower(images, kernels).as_text()
    assert_near(convolve(images, kernels), on_the_cpu(convolve, images, kernels), 1e-5)


def test_a_sweep_vmaps_within_the_free_memory(accelerator):
    inputs, labels = batch(256)
    keys = sweep.keys(range(6))

    def losses(key, inputs, labels):
        return trained(key, inputs, labels, num_epochs=2, rate=0.01).history["train_loss"]

    assert sweep.plan_of(losses, keys, inputs, labels) == "vmap"
    together = sweep.evaluate(losses, keys, inputs, labels)
    assert together.devices() == {accelerator}
    np.testing.assert_allclose(together, sweep.evaluate(losses, keys, inputs, labels, plan="loop"), rtol=0.05)
    stats = accelerator.memory_stats()
    assert 0 < device_memory.default_bound(accelerator, 1) < stats["bytes_limit"]


def test_training_learns_and_short_floats_do_too():
    for dtype in ("float32", "bfloat16"):
        found = jax.jit(functools.partial(trained, dtype=dtype))(jax.random.key(1), *batch(1000))
        assert found.history["train_accuracy"][-1] > 0.85
        assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}


def test_streamed_training_is_the_resident_one():
    net = models.create("mlp", num_classes=CLASSES, width=16, depth=2)
    inputs, labels = (np.asarray(part) for part in batch(256))
    settings, start = training.Settings(num_epochs=2, batch_size=32), net.init(jax.random.key(0), inputs[:1])
    arguments = (net, training.sgd(0.05), (inputs, labels), jax.random.key(2), settings)
    streamed = parallel.stream(*arguments, start=start, memory=2 * 64 * inputs[:1].nbytes)
    resident = training.train(*arguments, start=start)
    assert_near(ravel_pytree(streamed.params)[0], ravel_pytree(resident.params)[0], 1e-4)


@pytest.mark.parametrize("method", ["pgd", "apgd"])
def test_attacks_break_as_much_as_on_the_cpu_and_stay_in_the_ball(method):
    threat = attacks.Threat("linf", 0.1)
    attack = getattr(attacks, method)(threat, num_steps=20)
    inputs, labels = digits().test.inputs[:200], digits().test.labels[:200]
    found = jax.jit(attack)(classifier(), jax.random.key(3), inputs, labels)
    assert np.abs(np.asarray(found.adversarial) - inputs).max() <= 0.1 + 1e-6
    assert np.asarray(found.adversarial).min() >= 0
    assert np.asarray(found.adversarial).max() <= 1
    right = np.asarray(classifier()(found.adversarial)).argmax(1) == labels
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        network = jax.device_put(classifier(), cpu)
        there = jax.jit(attack)(network, jax.device_put(jax.random.key(3), cpu), inputs, labels)
        expected = np.asarray(network(there.adversarial)).argmax(1) == labels
    assert right.mean() < np.mean(np.asarray(classifier()(inputs)).argmax(1) == labels)
    assert abs(right.mean() - expected.mean()) < 0.05


def test_a_certificate_has_the_precision_of_float64():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    inputs = rng.normal(size=(60, 5)) + 0.7 * np.eye(3, 5)[labels]
    fit = landscape.fit_affine(inputs, labels, 3, loss="cross_entropy")
    net = models.create("mlp", num_classes=3, width=6, depth=2)
    params = landscape.embed_affine(net.module, fit, inputs, key=jax.random.key(1))
    found = landscape.certify(
        net.apply,
        params,
        inputs,
        labels,
        loss="cross_entropy",
        key=jax.random.key(2),
        fit=fit,
        num_directions=2,
        num_steps=5,
    )
    assert found.status == "proven"
    assert found.loss - fit.lower_bound < 1e-9
