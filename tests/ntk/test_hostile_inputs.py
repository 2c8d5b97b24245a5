"""Kernels of unexpected inputs: right by plain Jacobians, or refused with what to do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import ntk
from jaxbp.jaxprs import linear_layers
from jaxbp.ntk import measures

NET = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=False), nn.tanh, nn.Dense(2)])


def kernel_of(fn, params, x):
    """Theta (N, N, C, C) from plain Jacobians."""
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(lambda p: fn(p, x)))(params))
    jacobian = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], -1)
    return np.einsum("ikp,jlp->ijkl", jacobian, jacobian)


@functools.cache
def batch_normalised():
    x = jax.random.normal(jax.random.key(0), (8, 4))
    v = NET.init(jax.random.key(1), x)
    return lambda p, x: NET.apply({**v, "params": p}, x, mutable=["batch_stats"])[0], v["params"], x


@pytest.mark.parametrize(
    "sets",
    [
        lambda x: (x[:1], x),
        lambda x: (x, x[:1]),
        lambda x: (x.at[7].set(x[0]),),
        lambda x: (x[:1],),
        lambda x: (jnp.zeros((3, 4)),),
        lambda x: (x[:1], x[:1]),
    ],
)
def test_coupled_examples_are_noticed_in_any_set(sets):
    fn, params, x = batch_normalised()
    with pytest.raises(ntk.BatchCouplingError):
        ntk.empirical_ntk(fn, params, *sets(x), logits="trace")
    with pytest.raises(ntk.BatchCouplingError):
        ntk.ntk_vector_product(fn, params, *sets(x), chunk_size=2)


def test_examples_that_are_not_coupled_pass_alone_and_equal():
    table, params = jnp.arange(12.0).reshape(4, 3), jnp.ones((3, 2))
    for tokens in (jnp.array([3]), jnp.array([2, 2]), jnp.array([0])):  # integers, with no token beyond the table
        kernel = ntk.empirical_ntk(lambda p, t: table[t] @ p, params, tokens, logits="trace")
        np.testing.assert_allclose(kernel, 2 * table[tokens] @ table[tokens].T, rtol=1e-6)


@pytest.mark.slow
def test_complex_data_of_real_networks(x64):
    x = jax.random.normal(jax.random.key(2), (3, 4)) * (1 + 0.5j)
    params = {"w": jax.random.normal(jax.random.key(0), (4, 3)), "v": jax.random.normal(jax.random.key(1), (3, 2))}

    def fn(p, x):
        return jnp.abs(x @ p["w"]) @ p["v"]

    def transformed(p, x):
        return jnp.abs(jnp.fft.fft(x.real @ p["w"]) @ p["v"])

    vector = jax.random.normal(jax.random.key(3), (3, 2))
    for apply_fn in (fn, transformed):
        truth = kernel_of(apply_fn, params, x)
        np.testing.assert_allclose(ntk.empirical_ntk(apply_fn, params, x), truth, rtol=1e-10, atol=1e-10)
        product = ntk.ntk_vector_product(apply_fn, params, x)(vector)
        np.testing.assert_allclose(product, np.einsum("ijkl,jl->ik", truth, vector), rtol=1e-10)


P, X = jnp.ones((4, 3)), jnp.ones((3, 4))
REFUSED = {
    r"return logits of real floating-point numbers, got complex64": (lambda p, x: (x + 1j) @ p, P, X),
    r"return logits \(N, C\), got tuple: .*take the first entry": (lambda p, x: (x @ p, x), P, X),
    r"return logits \(N, C\), got dict": (lambda p, x: {"logits": x @ p}, P, X),
    r"x1 must hold at least one array of examples, got dict": (lambda p, b: b["x"] @ p, P, {}),
    r"x1\[1\] must be one array, got str": (lambda p, b: b[0] @ p, P, (X, "x")),
    r"params must be .*got bfloat16 at the root: cast it with .astype\(jnp.float32\)": (lambda p, x: x @ p, P.astype(jnp.bfloat16), X),
    r"params must be .*got complex64 at the root": (lambda p, x: jnp.abs(x @ p), P + 1j, X),
    r"params must be .*got bool at \['mask'\]": (lambda p, x: x @ p["w"], {"w": P, "mask": P > 0}, X),
    r"got shape \(3, 3, 1\)": (lambda p, x: (x @ p)[..., None], P, X),
    r"for N = 3 examples, got shape \(1, 3\)": (lambda p, x: (x @ p)[:1], P, X),
    r"apply_fn must be a function": (None, P, X),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_kernel_is_refused(message):
    for call in (ntk.empirical_ntk, ntk.ntk_vector_product):
        with pytest.raises(ValueError, match=message):
            call(*REFUSED[message])


def test_whole_numbers_of_any_type_choose_a_logit():
    def fn(p, x):
        return x @ p

    params, x = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (3, 4))
    expected = ntk.empirical_ntk(fn, params, x, logits=1)
    for logits in (np.int64(1), np.uint8(1), jnp.int32(1)):
        np.testing.assert_array_equal(ntk.empirical_ntk(fn, params, x, logits=logits), expected)
    for logits in (True, np.True_, 1.0, None, [1]):
        with pytest.raises(ValueError, match="logits must be full, trace, diagonal, sum or from 0 to 2, got"):
            ntk.empirical_ntk(fn, params, x, logits=logits)


class Transformer(nn.Module):
    """One block that is used twice."""

    @nn.compact
    def __call__(self, x):
        attention, dense = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4), nn.Dense(4)
        norm, conv = nn.LayerNorm(), nn.Conv(4, (3,))
        for _ in range(2):
            x = x + attention(norm(x))
            x = x + jnp.tanh(dense(x)) + conv(x)
        return nn.Dense(2)(x.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradients", *(pytest.param(m, marks=pytest.mark.slow) for m in ("positions", "products"))])
def test_a_block_used_twice_is_one_layer_with_the_positions_of_both_uses(x64, method):
    net, x = Transformer(), jax.random.normal(jax.random.key(0), (3, 5, 4))
    shapes = jax.eval_shape(net.init, jax.random.key(1), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda like: jnp.asarray(rng.normal(size=like.shape)), shapes)

    def fn(p, x):
        return net.apply({"params": p}, x)

    layers = linear_layers.find(lambda p, x: fn(p, x[None])[0], params, x[0])
    matrices = {index for index, leaf in enumerate(jax.tree.leaves(params)) if leaf.ndim > 1}
    kernels = {index for index, (path, _) in enumerate(jax.tree.leaves_with_path(params)) if "kernel" in str(path)}
    assert {layer.leaf for layer in layers.layers} == kernels < matrices
    assert sum(isinstance(layer.geometry, linear_layers.Repeated) for layer in layers.layers) == 6
    truth = kernel_of(fn, params, x)
    np.testing.assert_allclose(ntk.empirical_ntk(fn, params, x, method=method), truth, rtol=1e-10, atol=1e-10 * np.abs(truth).max())


@pytest.mark.slow
def test_uses_that_arrange_or_scale_a_weight_differently(x64):
    x, params = jax.random.normal(jax.random.key(0), (3, 4)), {"w": jax.random.normal(jax.random.key(1), (4, 4))}
    functions = {
        "scaled": (lambda p, x: jnp.tanh(-2 * x @ p["w"]) @ (p["w"] / 3), 1),
        "transposed": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, 0),
        "flipped": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"][::-1], 0),
        "other side": (lambda p, x: (p["w"].T @ jnp.tanh(p["w"].T @ x.T)).T, 1),
        "added": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"] + p["w"].sum(), 0),
    }
    for name, (fn, num_layers) in functions.items():
        assert len(linear_layers.find(fn, params, x).layers) == num_layers, name
        np.testing.assert_allclose(ntk.empirical_ntk(fn, params, x), kernel_of(fn, params, x), rtol=1e-10, err_msg=name)


def test_measures_do_not_change_with_scale():
    kernel = jnp.diag(jnp.arange(1.0, 5.0)) + 0.1
    other = kernel.at[0, 1].set(3.0)
    of_pairs = (
        measures.cosine,
        measures.correlation,
        measures.relative_change,
        measures.centred_alignment,
        lambda a, b: measures.rescaled_change(a, b).change,
        lambda a, b: measures.rescaled_change(a, b).scale,
        lambda a, b: measures.velocity(jnp.stack([a, b]), jnp.arange(2.0))[0],
        lambda a, b: measures.feature_maps(a)["cosine"][0, 1] + measures.parameter_movement(a, b)["relative_l2"],
        lambda a, b: jnp.stack(measures.spectral_ranks(measures.spectrum(a))).sum(),
    )
    of_all = jax.jit(lambda a, b: jnp.stack([measure(a, b) for measure in of_pairs]))
    expected = of_all(kernel, other)
    for scale in (1e-30, 1e-20, 1e25, 1e30):
        np.testing.assert_allclose(of_all(scale * kernel, scale * other), expected, rtol=1e-5, err_msg=str(scale))
    before, after = np.asarray(kernel, float).ravel(), np.asarray(other, float).ravel()
    assert float(measures.cosine(1e30 * kernel, 1e-30 * other)) == pytest.approx(
        before @ after / np.sqrt((before @ before) * (after @ after))
    )


def test_measures_of_integers_and_complex_numbers():
    features = jnp.array([[0, 255], [255, 0]], jnp.uint8)
    assert float(measures.feature_maps(features)["distance"][0, 1]) == pytest.approx(255 * np.sqrt(2))
    change = measures.relative_change(jnp.array([[3, 200]], jnp.uint8), jnp.array([[1, 100]], jnp.uint8))
    assert float(change) == pytest.approx(np.hypot(2, 100) / np.hypot(3, 200))
    z = jnp.array([3 + 4j])
    for call in (
        lambda: measures.parameter_movement({"a": 0 * z}, {"a": z}),
        lambda: measures.cosine(z, z),
        lambda: measures.feature_maps(z[None]),
    ):
        with pytest.raises(ValueError, match="must be real numbers, got complex64"):
            call()
