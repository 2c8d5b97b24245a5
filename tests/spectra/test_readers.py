"""Layers that are hard to read: followed to the operator that the network applies, or named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import spectra
from jaxbp.jaxprs import interpret, weight_uses


def flax_net(net, x):
    params = net.init(jax.random.key(1), x)["params"]
    return lambda p, inputs: net.apply({"params": p}, inputs), params


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def dense_values(fn, params, shape):
    """Singular values of a linear function of one input of this shape, from its matrix."""
    size = int(np.prod(shape))
    matrix = np.asarray(fn(params, jnp.eye(size).reshape(size, *shape)), float).reshape(size, -1)
    return np.linalg.svd(matrix, compute_uv=False), (matrix.shape[1], size)


def assert_values(spectrum, expected):
    count = min(len(expected), spectrum.values.shape[-1])
    np.testing.assert_allclose(spectrum.values[..., :count], expected[:count], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spectrum.frobenius, np.linalg.norm(expected), rtol=1e-4)


def matrix_values(matrix):
    return np.linalg.svd(np.asarray(matrix, float), compute_uv=False)


class Block(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return jnp.tanh(nn.Dense(6, use_bias=False)(carry)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        return nn.Dense(2, use_bias=False, name="head")(scan(name="blocks")(nn.Dense(6, name="stem")(x), None)[0])


@pytest.mark.slow
def test_a_stacked_kernel_under_scan_is_a_layer_for_each_step():
    fn, params = flax_net(Scanned(), jnp.ones((1, 5)))
    spectrum_of = spectra.of_network(fn, params, jnp.ones((1, 5)))
    names = [f"blocks/Dense_0/kernel[{number}]" for number in range(4)]
    assert list(spectrum_of) == ["stem/kernel", *names, "head/kernel"]
    stack = params["blocks"]["Dense_0"]["kernel"]
    for number, name in enumerate(names):
        assert_values(spectrum_of[name], matrix_values(stack[number]))
    project = spectra.rank_max(fn, params, jnp.ones((1, 5)), ceiling={names[0]: 0.5, names[2]: 0.7}, pattern="blocks")
    cut, report = jax.jit(project)(params)
    after = cut["blocks"]["Dense_0"]["kernel"]
    for number, ceiling in ((0, 0.5), (1, np.inf), (2, 0.7), (3, np.inf)):
        np.testing.assert_allclose(matrix_values(after[number]), np.minimum(matrix_values(stack[number]), ceiling), rtol=1e-5)
    assert set(report) == {names[0], names[2]}


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell])
def test_every_kernel_of_a_recurrent_cell_is_a_layer(cell):
    x = jnp.ones((1, 3, 4))
    fn, params = flax_net(nn.RNN(cell(5)), x)
    spectrum_of = spectra.of_network(fn, params, x)
    kernels = {f"cell/{name}/kernel": gate["kernel"] for name, gate in params["cell"].items()}
    assert set(spectrum_of) == set(kernels)
    for name, kernel in kernels.items():
        assert_values(spectrum_of[name], matrix_values(kernel))


def test_loops_and_branches_are_followed():
    params = {name: normal(3, 3, seed=seed) for seed, name in enumerate("abc")} | {"stack": normal(4, 3, 3, seed=9)}

    def fn(p, x):
        x = jax.lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x @ p["b"])
        x = jax.lax.while_loop(lambda h: h.sum() < 3, lambda h: jnp.abs(h @ p["c"]) + 1, x)
        return jax.lax.fori_loop(0, 4, lambda i, h: h @ p["stack"][i], x)

    spectrum_of = spectra.of_network(fn, params, jnp.ones((1, 3)))
    kernels = {name: params[name] for name in "abc"} | {f"stack[{i}]": params["stack"][i] for i in range(4)}
    assert set(spectrum_of) == set(kernels)
    for name, kernel in kernels.items():
        assert_values(spectrum_of[name], matrix_values(kernel))


def test_constants_carried_values_and_stacks_of_a_loop_are_told_apart():
    params = {"stack": normal(3, 4, 4), "shared": normal(4, 4, seed=1), "head": normal(4, 2, seed=2)}

    def fn(p, x):
        def step(carry, kernel):
            hidden = jnp.tanh(carry @ kernel) @ p["shared"]
            return hidden, hidden

        last, every = jax.lax.scan(step, x, p["stack"])
        return (last + every[0]) @ p["head"]

    spectrum_of = spectra.of_network(fn, params, jnp.ones((1, 4)))
    kernels = {"shared": params["shared"], "head": params["head"]} | {f"stack[{i}]": params["stack"][i] for i in range(3)}
    assert set(spectrum_of) == set(kernels)
    for name, kernel in kernels.items():
        assert_values(spectrum_of[name], matrix_values(kernel))
    (loop,) = [operation for operation in interpret.trace(fn, params, jnp.ones((1, 4))).operations if operation.name == "scan"]
    (program,) = loop.programs
    assert (weight_uses._num_carry(loop, program), weight_uses._num_stacks(loop, program)) == (1, 1)  # the shared kernel is neither


def weight_norm(p):
    return p["w"] / jnp.linalg.norm(p["w"], axis=0) * p["g"]


def standardised(p):
    return (p["w"] - p["w"].mean(0)) / p["w"].std(0)


EFFECTIVE = {  # kernels as functions of the parameters w (5, 4), g (4,), s (), a (5, 2), b (2, 4)
    "w": lambda p: p["w"] * p["s"],
    "w (mask)": lambda p: p["w"] * (np.arange(20).reshape(5, 4) % 3 > 0),
    "w (channels)": lambda p: p["w"] * p["g"],
    "w (norm)": weight_norm,
    "w (standardised)": standardised,
    "w (spectral)": lambda p: p["w"] / jnp.linalg.norm(p["w"], 2),
    "w + a + b": lambda p: p["w"] + p["a"] @ p["b"],
    "a + b": lambda p: p["a"] @ p["b"],
}


@pytest.mark.parametrize("name", EFFECTIVE)
def test_the_operator_is_that_of_the_effective_kernel(name):
    params = {"w": normal(5, 4), "g": normal(4, seed=1), "s": jnp.float32(-3), "a": normal(5, 2, seed=2), "b": normal(2, 4, seed=3)}
    params["h"] = normal(4, 2, seed=4)
    kernel_fn = EFFECTIVE[name]

    def fn(p, x):
        return jnp.tanh(x @ kernel_fn(p)) @ p["h"]

    spectrum_of = spectra.of_network(fn, params, jnp.ones((2, 5)))
    effective = name.split(" (")[0]
    assert list(spectrum_of) == [effective, "h"]
    assert_values(spectrum_of[effective], matrix_values(kernel_fn(params)))
    with pytest.raises(ValueError, match=r"is a function of its parameters .*: leave it out by a pattern"):
        spectra.rank_min(fn, params, jnp.ones((2, 5)), threshold=0.5, pattern=None)


@pytest.mark.slow
def test_weight_norm_of_flax_and_masked_convolutions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (2, 2), padding="VALID", use_bias=False, mask=np.arange(24).reshape(2, 2, 2, 3) % 2 > 0, name="masked")(x)
            return nn.WeightNorm(nn.Dense(6, use_bias=False, name="normed"))(x.reshape(len(x), -1))

    x = jnp.ones((1, 3, 3, 2))
    fn, params = flax_net(Net(), x)
    spectrum_of = spectra.of_network(fn, params, x)
    (normed,) = (name for name in spectrum_of if "normed" in name)
    kernel = params["normed"]["kernel"]
    assert_values(spectrum_of[normed], matrix_values(kernel / jnp.linalg.norm(kernel, axis=0)))
    alone = spectra.singular_values(params["masked"]["kernel"] * (np.arange(24).reshape(2, 2, 2, 3) % 2 > 0), (3, 3), padding="VALID")
    np.testing.assert_allclose(spectrum_of["masked/kernel"].values, alone.values, rtol=1e-5)


NOT_FOLLOWED = {
    "multiplied by a number that is known only at run time": lambda p, x: x @ (p["w"] * x.sum()),
    "it multiplies data entry by entry": lambda p, x: (x[:, :, None] * p["w"]).sum(1),
    "it is picked by the inputs": lambda p, x: x @ p["experts"][jnp.argmax(x[0])],
    "its weight is changed by data": lambda p, x: x @ (p["w"] + jnp.outer(x[0], x[0])),
    "it enters the operation sort together with data": lambda p, x: jax.lax.sort((x, p["w"][:2]), num_keys=1)[1],
}


@pytest.mark.parametrize("reason", NOT_FOLLOWED)
def test_what_is_not_followed_is_named_or_left_out(reason):
    params = {"w": normal(3, 3), "experts": normal(4, 3, 3), "head": normal(3, 2)}
    name = "experts" if "picked" in reason else "w"

    def fn(p, x):
        return NOT_FOLLOWED[reason](p, x) @ p["head"]

    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=f"^{name} is no fixed operator: .*{reason}; leave it out by a pattern"):
        spectra.of_network(fn, params, x)
    with pytest.raises(ValueError, match=f"{name} is no fixed operator"):
        spectra.rank_min(fn, params, x, threshold=1.0, pattern=lambda layer: True)
    assert list(spectra.of_network(fn, params, x, pattern=rf"^(?!{name})")) == ["head"]
    assert list(spectra.of_network(fn, params, x, pattern=lambda layer: layer.name == "head")) == ["head"]


@pytest.mark.slow
def test_tables_and_shifts():
    """An embedding is a layer that reads one-hot rows; positions, tokens and biases are no layers, though they have two or more axes."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(7, 4)
            x = embed(tokens) + self.param("positions", nn.initializers.normal(), (1, 5, 4))
            first = jnp.broadcast_to(self.param("first", nn.initializers.normal(), (1, 1, 4)), (len(x), 1, 4))
            x = jnp.concatenate([first, x], 1)
            return embed.attend(nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x))

    tokens = jnp.zeros((1, 5), int)
    fn, params = flax_net(Net(), tokens)
    spectrum_of = spectra.of_network(fn, params, tokens)
    assert set(spectrum_of) == {
        "Embed_0/embedding",
        "Embed_0/embedding (use 2)",
        *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
    }
    assert_values(spectrum_of["Embed_0/embedding"], matrix_values(params["Embed_0"]["embedding"]))


PADDED = {  # Flax's paddings, and paddings by hand before a convolution without
    "CIRCULAR": {"padding": "CIRCULAR"},
    "CIRCULAR, stride": {"padding": "CIRCULAR", "strides": 2},
    "CIRCULAR, uneven stride": {"padding": "CIRCULAR", "strides": 4},
    "CIRCULAR, dilation": {"padding": "CIRCULAR", "kernel_dilation": 2},
    "REFLECT": {"padding": "REFLECT"},
    "REFLECT, stride": {"padding": "REFLECT", "strides": 2},
    "zeros": {"padding": "VALID", "mode": "constant"},
    "zeros, stride": {"padding": "VALID", "mode": "constant", "strides": 2},
    "zeros twice": {"padding": "SAME", "mode": "constant"},
    "edge": {"padding": "VALID", "mode": "edge"},
    "wrap and zeros": {"padding": "SAME", "mode": "wrap"},
    "groups": {"padding": "CIRCULAR", "feature_group_count": 2},
}


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("name", PADDED)
def test_padding_is_followed_back_to_what_it_padded(name):
    options = dict(PADDED[name])
    mode = options.pop("mode", None)
    layer, shape = nn.Conv(4, (3, 3), use_bias=False, **options), (6, 6, 2)
    params = {"kernel": normal(3, 3, 2 // options.get("feature_group_count", 1), 4)}

    def fn(p, x):
        x = x if mode is None else jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode=mode)
        return layer.apply({"params": p}, x)

    expected, operator_shape = dense_values(fn, params, shape)
    spectrum = spectra.of_network(fn, params, jnp.ones((1, *shape)))["kernel"]
    assert (spectrum.how, spectrum.shape) == ("exact", operator_shape)
    assert_values(spectrum, expected)
    if name in ("REFLECT", "CIRCULAR, uneven stride"):
        ends = spectra.of_network(fn, params, jnp.ones((1, *shape)), method="extremes", ends=(1, 1, 72))["kernel"]
        assert float(ends.values[0]) == pytest.approx(expected[0], rel=1e-4)
        with pytest.raises(ValueError, match="no circular bounds: choose method 'extremes'"):
            spectra.of_network(fn, params, jnp.ones((1, *shape)), method="circular")


@pytest.mark.slow
def test_causal_padding_and_zeros_joined_by_hand():
    causal, params = nn.Conv(4, (3,), padding="CAUSAL", use_bias=False), {"kernel": normal(3, 2, 4)}

    def joined(p, x):
        x = jnp.concatenate([jnp.zeros((len(x), 2, 2)), x], axis=1)
        return nn.Conv(4, (3,), padding="VALID", use_bias=False).apply({"params": p}, x)

    for fn in (lambda p, x: causal.apply({"params": p}, x), joined):
        expected, operator_shape = dense_values(fn, params, (6, 2))
        spectrum = spectra.of_network(fn, params, jnp.ones((1, 6, 2)))["kernel"]
        assert spectrum.shape == operator_shape
        assert_values(spectrum, expected)


def test_a_shortcut_beside_a_padded_convolution_is_seen():
    params = {"wide": normal(3, 3, 2, 2), "short": normal(1, 1, 2, 2)}
    labels = ("NHWC", "HWIO", "NHWC")

    def fn(p, x):
        y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = jax.lax.conv_general_dilated(y, p["wide"], (2, 2), "VALID", dimension_numbers=labels)
        return y + jax.lax.conv_general_dilated(x, p["short"], (2, 2), "VALID", dimension_numbers=labels)

    shortcuts = {layer.name: layer.shortcut for layer in spectra.layers_of(fn, params, jnp.ones((1, 6, 6, 2)))}
    assert shortcuts == {"wide": False, "short": True}


def test_complex_kernels_are_refused():
    kernel = jnp.asarray(np.ones((3, 2)) + 1j)
    fn, params = (lambda p, x: x @ p["w"]), {"w": kernel}
    for call in (
        lambda: spectra.singular_values(kernel),
        lambda: spectra.of_network(fn, params, jnp.ones((1, 3))),
        lambda: spectra.rank_min(fn, params, jnp.ones((1, 3)), threshold=0.1, pattern="w"),
    ):
        with pytest.raises(ValueError, match=r"real .*got complex64"):
            call()


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("method, padding", [("auto", "circular"), ("dense", "zero"), ("circular", "zero"), ("extremes", "zero")])
def test_spectra_scale_with_the_kernel(method, padding):
    kernel = normal(3, 3, 2, 3)
    options = {"padding": padding} if method == "auto" else {"padding": padding, "method": method}
    whole = spectra.singular_values(kernel, (4, 4), **options)
    for scale in (1e-30, 1e30):
        scaled = spectra.singular_values(scale * kernel, (4, 4), **options)
        for field in ("values", "lower", "upper", "frobenius", "gap"):
            np.testing.assert_allclose(np.asarray(getattr(scaled, field), float) / scale, getattr(whole, field), rtol=1e-4, atol=1e-5)
        for rank in (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank):
            assert float(rank(scaled)) == pytest.approx(float(rank(whole)), rel=1e-4)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize(
    "which, rule", [("rank_min", {"relative_rank": 0.7}), ("rank_min", {"energy": 0.8}), ("rank_max", {"target_rank": 2.6})]
)
def test_projections_scale_with_the_kernel(which, rule):
    params = {"w": normal(12, 8)}
    project = jax.jit(getattr(spectra, which)(lambda p, x: x @ p["w"], params, jnp.ones((1, 12)), pattern="w", **rule))
    whole, report = project(params)
    for scale in (1e-30, 1e30):
        scaled, other = project({"w": scale * params["w"]})
        np.testing.assert_allclose(np.asarray(scaled["w"], float) / scale, whole["w"], rtol=1e-3, atol=1e-4)
        assert float(other["w"].rank_after) == pytest.approx(float(report["w"].rank_after), rel=1e-4)
        assert float(other["w"].largest) / scale == pytest.approx(float(report["w"].largest), rel=1e-4)
