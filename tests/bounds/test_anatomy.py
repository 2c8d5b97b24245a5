"""What an anatomy reads off a network, and which networks it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import bounds, spectra


def conv(images, kernel, padding="VALID", stride=1):
    return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convnet(params, images, *, padding="VALID", phi=jax.nn.relu, pool=False):
    maps = phi(conv(images, params["first"], padding))
    maps = phi(conv(maps, params["second"], padding))
    return (maps.mean((1, 2)) if pool else maps.reshape(len(maps), -1)) @ params["top"]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


IMAGES = draw(5, 4, 4, 2)
PARAMS = {"first": draw(2, 2, 2, 3), "second": draw(2, 2, 3, 4), "top": draw(16, 3)}
POOLED = PARAMS | {"top": draw(4, 3)}


def dense_matrix(layer):
    """The operator as a matrix, by its action on every unit vector."""
    _, columns = layer.geometry.shape
    units = jnp.eye(columns).reshape(columns, *layer.geometry.spatial, layer.geometry.inputs)
    return np.stack([np.ravel(layer.geometry.apply(jnp.asarray(layer.kernel), unit)) for unit in units], 1)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_norms_are_those_of_the_operators_as_matrices(padding, x64):
    params = PARAMS if padding == "VALID" else PARAMS | {"top": draw(64, 3)}
    net = bounds.anatomy(lambda p, x: convnet(p, x, padding=padding), params, IMAGES)
    assert [(layer.name, layer.kind) for layer in net.layers] == [("first", "conv"), ("second", "conv"), ("top", "dense")]
    for layer in net.layers:
        matrix = dense_matrix(layer)
        assert layer.operator_frobenius == pytest.approx(np.linalg.norm(matrix))
        assert layer.operator_frobenius == pytest.approx(float(spectra.frobenius_norm(jnp.asarray(layer.values))))
        assert layer.spectral == pytest.approx(np.linalg.norm(matrix, 2))
        assert layer.rank == np.linalg.matrix_rank(matrix)
    first = net.layers[0]
    assert first.frobenius == pytest.approx(float(jnp.linalg.norm(params["first"].ravel())), rel=1e-6)
    if padding == "VALID":  # every tap of a window inside the map counts for all 3 x 3 outputs
        assert first.operator_frobenius == pytest.approx(3 * first.frobenius)
        assert (first.in_degree == 4).all()
    else:  # zeros after the map: the windows of the last row and column read 2, that of the corner 1
        assert sorted(first.in_degree.ravel().tolist()) == [1.0] + [2.0] * 6 + [4.0] * 9


def test_energies_and_windows():
    net = bounds.anatomy(convnet, PARAMS, IMAGES)
    energies = net.energies(IMAGES)
    assert energies == pytest.approx(np.sum(np.asarray(IMAGES, np.float64) ** 2, (0, 3)))
    first, _, top = net.layers
    assert first.window_sum(energies)[1, 2] == pytest.approx(energies[1:3, 2:4].sum())
    assert first.window_max(energies)[0, 0] == energies[:2, :2].max()
    assert (top.num_read, top.pooled) == (4, False)
    with pytest.raises(ValueError, match=r"inputs must be \(N, 4, 4, 2\), as the network takes them"):
        net.energies(IMAGES[:, :3])


@pytest.mark.parametrize("phi", [jax.nn.relu, lambda z: jax.nn.leaky_relu(z, 0.3), jnp.abs, lambda z: z])
def test_other_activations_of_slope_at_most_one(phi):
    assert bounds.anatomy(lambda p, x: convnet(p, x, phi=phi), PARAMS, IMAGES).depth == 3


def test_global_average_pooling_is_seen():
    top = bounds.anatomy(lambda p, x: convnet(p, x, pool=True), POOLED, IMAGES).layers[-1]
    assert (top.num_read, top.pooled) == (4, True)
    assert top.window_sum(np.arange(4.0).reshape(2, 2)) == 1.5


def test_rescaled_kernels_are_the_effective_ones():
    def scaled(params, images):
        return convnet({name: kernel / 7 for name, kernel in params.items()}, images)

    net = bounds.anatomy(scaled, PARAMS, IMAGES)
    assert net.layers[0].frobenius == pytest.approx(float(jnp.linalg.norm(PARAMS["first"].ravel())) / 7, rel=1e-6)


def skip(params, images):
    maps = jax.nn.relu(conv(images, params["first"]))
    more = jax.nn.relu(conv(jnp.pad(maps, ((0, 0), (0, 0), (0, 0), (0, 0))), params["second"]))
    return (more + maps[:, :2, :2, :1]).reshape(len(images), -1) @ params["top"]


def centred(params, images):
    maps = jax.nn.relu(conv(images, params["first"]))
    return (jax.nn.relu(conv(maps - maps.mean(0), params["second"]))).reshape(len(images), -1) @ params["top"]


def max_pooled(params, images):
    maps = jax.nn.relu(conv(jax.nn.relu(conv(images, params["first"])), params["second"]))
    return maps.max((1, 2)) @ params["top"]


@pytest.mark.parametrize(
    "apply_fn, params, message",
    [
        (lambda p, x: convnet(p, x) + p["bias"], PARAMS | {"bias": jnp.zeros(3)}, "bias is not the weight of one linear layer"),
        (lambda p, x: convnet(p, x) + 1, PARAMS, "the logits are not what top, the last layer, puts out"),
        (lambda p, x: convnet(p, x - 0.5), PARAMS, "first, the first layer, does not read the inputs as they are"),
        (lambda p, x: convnet(p, x, phi=jnp.tanh), PARAMS, "second does not read an activation of what first puts out"),
        (lambda p, x: convnet(p, x, phi=lambda z: 2 * jax.nn.relu(z)), PARAMS, "second does not read an activation"),
        (centred, PARAMS, "second does not read an activation of what first puts out"),
        (skip, PARAMS, "top does not read an activation of what second puts out"),
        (max_pooled, POOLED, "top does not read an activation of what second puts out"),
        (
            lambda p, x: (jax.nn.relu(conv(x, p["first"])) @ p["pixel"]).mean((1, 2)),
            {"first": PARAMS["first"], "pixel": draw(3, 3)},
            "pixel is applied at every position",
        ),
    ],
)
def test_what_is_no_chain_is_refused(apply_fn, params, message):
    with pytest.raises(ValueError, match=f"{message}.*"):
        bounds.anatomy(apply_fn, params, IMAGES)


def test_parameters_that_are_not_finite_give_bounds_that_say_so():
    net = bounds.anatomy(convnet, PARAMS | {"second": PARAMS["second"].at[0, 0, 0, 0].set(jnp.nan)}, IMAGES)
    for bound in (bounds.peeling(net, IMAGES), bounds.sparse(net, IMAGES), bounds.low_rank(net, IMAGES), bounds.counting(net, IMAGES)):
        assert np.isnan(bound.log_value)
        assert bound.note == "parameters are not finite"
        assert np.isnan(bounds.risk(bound, np.ones(5)).value)


def test_bounds_past_the_range_of_float64_keep_their_logarithm():
    params = {f"layer{i:02d}": 1e20 * jnp.eye(4) for i in range(20)}

    def deep(params, inputs):
        *kernels, top = (params[name] / 1e20 for name in sorted(params))  # the network itself stays in range
        for kernel in kernels:
            inputs = jax.nn.relu(inputs @ kernel)
        return inputs @ (top * 1e20)

    net = bounds.anatomy(deep, params, draw(3, 4))
    layers = tuple(dataclasses.replace(layer, kernel=1e20 * layer.kernel) for layer in net.layers)
    huge = dataclasses.replace(net, layers=layers)
    bound = bounds.peeling(huge, draw(3, 4))
    assert bound.value == np.inf
    assert bound.log_value == pytest.approx(bounds.peeling(net, draw(3, 4)).log_value + 20 * np.log(1e20))
