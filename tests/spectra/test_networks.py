"""Layers found in networks, RankMin and RankMax: reached against asked, and nothing where nothing is asked."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import models, spectra

IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


@functools.cache
def resnet(parametrisation="standard"):
    net = models.create("resnet", num_classes=3, width=4, stages=2, depth=1, parametrisation=parametrisation)
    params, state = jax.jit(net.init)(jax.random.key(0), np.zeros(IMAGES.shape, np.float32))
    return lambda p, x: net.apply(p, x, state), params


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bits(tree):
    return [np.asarray(leaf).view(np.int32) for leaf in jax.tree.leaves(tree)]


def test_map_sizes_are_traced_and_the_papers_layers_are_chosen():
    fn, params = resnet()
    layers = {layer.name: layer for layer in spectra.layers_of(fn, params, IMAGES)}
    seen = {name: (layer.geometry.spatial, layer.geometry.strides) for name, layer in layers.items()}
    assert seen == {
        "Conv_0/kernel": ((8, 8), (1, 1)),
        "BasicBlock_0/Conv_0/kernel": ((8, 8), (1, 1)),
        "BasicBlock_0/Conv_1/kernel": ((8, 8), (1, 1)),
        "BasicBlock_1/Conv_0/kernel": ((8, 8), (2, 2)),
        "BasicBlock_1/Conv_1/kernel": ((4, 4), (1, 1)),
        "BasicBlock_1/Conv_2/kernel": ((8, 8), (2, 2)),
        "Dense_0/kernel": ((), ()),
    }
    chosen = [name for name, layer in layers.items() if spectra.inner_convolutions(layer)]
    assert chosen == [name for name in seen if name.startswith("Basic") and name != "BasicBlock_1/Conv_2/kernel"]
    assert [layer.name for layer in spectra.layers_of(fn, params, IMAGES, pattern="Dense")] == ["Dense_0/kernel"]


def test_the_layers_are_the_operators_that_the_network_applies():
    """A linear network is one matrix: that of its only layer, whatever its layout, scale or kind."""

    def channels_first(p, x):
        return lax.conv_general_dilated(x, -2.0 * p["w"], (2, 1), [(1, 0), (2, 2)], dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def transposed(p, x):
        return nn.ConvTranspose(2, (3, 3), (2, 2), use_bias=False).apply({"params": {"kernel": p["w"]}}, x)

    def heads(p, x):
        return jnp.einsum("bhk,hko->bho", x, p["w"])

    def flipped(p, x):
        return p["w"] @ x.T

    cases = [
        (channels_first, (3, 2, 3, 2), (1, 2, 4, 5)),
        (transposed, (3, 3, 3, 2), (1, 4, 4, 3)),
        (heads, (3, 4, 2), (1, 3, 4)),
        (flipped, (3, 5), (1, 5)),
    ]
    for fn, weight, data in cases:
        params, x = {"w": normal(*weight)}, np.zeros(data, np.float32)
        (layer,) = spectra.layers_of(fn, params, x)
        change = normal(*jax.eval_shape(layer.kernel_fn, params["w"]).shape, seed=1)

        def compute(params, fn=fn, x=x, layer=layer, change=change):
            """The network's matrix, its spectrum, and the layer's kernel before and after the change."""
            matrix = jax.jacobian(lambda x: fn(params, x).ravel())(x).reshape(-1, x.size)
            moved = layer.kernel_fn(layer.changed(params["w"], change))
            return matrix, spectra.of_network(fn, params, x, method="dense")["w"], layer.kernel_fn(params["w"]), moved

        matrix, result, kernel, moved = jax.jit(compute)(params)
        expected = np.linalg.svd(np.asarray(matrix, float), compute_uv=False)
        np.testing.assert_allclose(result.values, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moved, np.asarray(kernel) + change, rtol=1e-5, atol=1e-5)


def test_what_is_no_fixed_operator_is_named_or_left_out():
    def scaled(p, x):
        return (x.mean((1, 2)) @ (p["w"] * x.sum())) @ p["head"]

    def dilated(p, x):
        options = {"lhs_dilation": (2, 2), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return lax.conv_general_dilated(x, p["w"], (2, 2), [(1, 1), (1, 1)], **options).mean((1, 2)) @ p["head"]

    x, head = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 2))
    for fn, weight, reason in (
        (scaled, jnp.ones((3, 3)), "multiplied by a number that is known only at run time"),
        (dilated, jnp.ones((3, 3, 3, 3)), "input dilation together with strides"),
    ):
        params = {"w": weight, "head": head}
        with pytest.raises(ValueError, match=f"w is no fixed operator: .*{reason}.*leave it out by a pattern"):
            spectra.layers_of(fn, params, x)
        assert [layer.name for layer in spectra.layers_of(fn, params, x, pattern="head")] == ["head"]


def test_of_network_is_each_layer_alone_also_over_seeds():
    fn, params = resnet()

    def spectra_of(params):
        return spectra.of_network(fn, params, IMAGES, padding="circular", pattern="Conv")

    result = jax.jit(spectra_of)(params)
    kernel = params["BasicBlock_0"]["Conv_1"]["kernel"]
    alone = spectra.singular_values(kernel, (8, 8))
    np.testing.assert_allclose(result["BasicBlock_0/Conv_1/kernel"].values, alone.values, rtol=1e-5, atol=1e-6)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), params)
    many = jax.jit(jax.vmap(spectra_of))(stacked)
    for name, spectrum in result.items():
        np.testing.assert_allclose(np.asarray(many[name].values)[1], 2 * np.asarray(spectrum.values), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_scaled_parametrisation_is_followed():
    fn, params = resnet("ntk")
    kernel = params["BasicBlock_0"]["Conv_0"]["kernel"] * np.sqrt(2 / 36)
    result = spectra.of_network(fn, params, IMAGES, pattern="BasicBlock_0/Conv_0", padding="circular")
    expected = spectra.singular_values(kernel, (8, 8)).values
    np.testing.assert_allclose(result["BasicBlock_0/Conv_0/kernel"].values, expected, rtol=1e-4, atol=1e-5)
    cut = spectra.rank_max(fn, params, IMAGES, ceiling=0.5, num_projections=100, pattern="BasicBlock_0/Conv_0")
    smaller, report = jax.jit(cut)(params)
    reached = spectra.of_network(fn, smaller, IMAGES, pattern="BasicBlock_0/Conv_0", padding="circular")
    np.testing.assert_allclose(report["BasicBlock_0/Conv_0/kernel"].largest, reached["BasicBlock_0/Conv_0/kernel"].values[0], rtol=1e-4)
    assert report["BasicBlock_0/Conv_0/kernel"].largest < 0.51


@pytest.mark.parametrize("padding", ["circular", "SAME"])
def test_one_projection_is_the_papers_route(x64, padding):
    """FFT, SVD of each frequency, threshold, back, cut: NumPy's, for a convolution of stride 1."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 3), jnp.float64)

    def net(p, x):
        if padding == "circular":
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        pads = "VALID" if padding == "circular" else "SAME"
        return lax.conv_general_dilated(x, p["w"], (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    n = 8  # the map before padding
    symbols = np.fft.fft2(kernel, (n, n), axes=(0, 1))
    left, values, right = np.linalg.svd(symbols, full_matrices=False)
    for project, changed in (
        (spectra.rank_min(net, {"w": kernel}, jnp.zeros((1, 8, 8, 4)), threshold=4.0, pattern="w"), values * (values >= 4)),
        (spectra.rank_max(net, {"w": kernel}, jnp.zeros((1, 8, 8, 4)), ceiling=4.0, pattern="w"), np.minimum(values, 4)),
    ):
        expected = np.fft.ifft2((left * changed[..., None, :]) @ right, axes=(0, 1)).real[:3, :3]
        result, report = jax.jit(project)({"w": kernel})
        np.testing.assert_allclose(result["w"], expected, atol=1e-12)
        np.testing.assert_allclose(report["w"].rank_before, values.sum() / np.linalg.norm(values), rtol=1e-10)
        reached = np.linalg.svd(np.fft.fft2(expected, (n, n), axes=(0, 1)), compute_uv=False)
        np.testing.assert_allclose(report["w"].rank_after, reached.sum() / np.linalg.norm(reached), rtol=1e-8)
        np.testing.assert_allclose(report["w"].norm_after, np.linalg.norm(reached), rtol=1e-10)
        np.testing.assert_allclose([report["w"].largest, report["w"].smallest], [reached.max(), reached.min()], rtol=1e-8)


@pytest.mark.slow
def test_a_dense_layer_reaches_exactly_what_is_asked(x64):
    kernel = jax.random.normal(jax.random.key(3), (12, 8), jnp.float64)
    values = np.linalg.svd(kernel, compute_uv=False)
    squares = np.cumsum(values**2) / np.sum(values**2)
    ranks = np.cumsum(values) / np.sqrt(np.cumsum(values**2))

    def project(which, **rule):
        projection = which(lambda p, x: x @ p["w"], {"w": kernel}, jnp.ones((1, 12)), pattern="w", **rule)
        result, report = jax.jit(projection)({"w": kernel})
        return np.linalg.svd(result["w"], compute_uv=False), report["w"]

    kept = {
        "threshold": (values[4] - 1e-6, 5),
        "energy": (squares[2] + 1e-6, 4),
        "target_rank": (ranks[5] + 1e-6, 6),
        "relative_rank": (ranks[2] / ranks[-1] + 1e-6, 3),
    }
    for rule, (asked, count) in kept.items():
        reached, report = project(spectra.rank_min, **{rule: asked})
        np.testing.assert_allclose(reached, np.where(np.arange(8) < count, values, 0), atol=1e-12)
        assert int(report.numerical_rank_after) == count
        assert float(report.removed_after) < 1e-12
    reached, report = project(spectra.rank_max, ceiling=2.0)
    np.testing.assert_allclose(reached, np.minimum(values, 2.0), atol=1e-12)
    for rule in ({"target_rank": 2.7}, {"relative_rank": 2.7 / ranks[-1]}):
        reached, report = project(spectra.rank_max, **rule)
        assert float(report.rank_after) == pytest.approx(2.7, rel=1e-9)
        np.testing.assert_allclose(reached, np.minimum(values, reached[0]), atol=1e-12)


def test_a_rank_that_no_ceiling_gives_leaves_the_values(x64):
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(size, 3)))[0] for s, size in ((1, 12), (2, 8)))
    kernel = jnp.asarray((left * [3.0, 2.0, 1.0]) @ right.T)  # three values: an effective rank of 3 at most
    project = spectra.rank_max(lambda p, x: x @ p["w"], {"w": kernel}, jnp.ones((1, 12)), target_rank=5.0, pattern="w")
    result, report = jax.jit(project)({"w": kernel})
    np.testing.assert_allclose(result["w"], kernel, atol=1e-12)
    assert float(report["w"].rank_after) == pytest.approx(6 / np.sqrt(14))


def test_a_layer_of_which_nothing_is_asked_rests_while_its_like_is_projected():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 4))

    def net(p, x):
        labels = ("NHWC", "HWIO", "NHWC")
        for name in ("small", "large"):
            x = lax.conv_general_dilated(x, p[name], (1, 1), "SAME", dimension_numbers=labels)
        return x

    params = {"small": 1e-3 * kernel, "large": kernel}
    ceiling = float(spectra.of_network(net, params, jnp.zeros((1, 8, 8, 4)), padding="circular")["large"].values[8])
    project = spectra.rank_max(net, params, jnp.zeros((1, 8, 8, 4)), ceiling=ceiling, num_projections=5, pattern=None)
    result, report = jax.jit(project)(params)
    assert (int(report["small"].num_projections), int(report["large"].num_projections)) == (0, 5)
    np.testing.assert_array_equal(result["small"], params["small"])
    assert not np.array_equal(result["large"], params["large"])


@pytest.mark.slow
@pytest.mark.parametrize("which, rule", [(spectra.rank_min, {"threshold": 0.6}), (spectra.rank_max, {"ceiling": 0.8})])
def test_alternating_projections_converge(which, rule):
    fn, params = resnet()
    rule = {**rule, "pattern": "BasicBlock_0"}
    once = jax.jit(which(fn, params, IMAGES, **rule))(params)[1]
    options = {"num_projections": 400, "tolerance": 0.02}
    net, until = jax.jit(which(fn, params, IMAGES, **rule, **options))(params)
    for name, report in until.items():
        assert report.removed_after <= 0.02 < once[name].removed_after < once[name].removed_before
        assert 1 < report.num_projections < 400
        assert report.norm_after < once[name].norm_after < once[name].norm_before
        if which is spectra.rank_max:
            assert report.largest < 0.9 < once[name].largest
            assert report.rank_before < report.rank_after
        else:
            assert report.rank_after < once[name].rank_after < report.rank_before
    for part in ("Conv_0", "Dense_0", "BatchNorm_0", "BasicBlock_1"):
        for a, b in zip(bits(net[part]), bits(params[part]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "which, rule",
    [
        (spectra.rank_min, {"threshold": 0.0}),
        pytest.param(spectra.rank_min, {"energy": 1.0}, marks=pytest.mark.slow),
        pytest.param(spectra.rank_min, {"relative_rank": 1.0}, marks=pytest.mark.slow),
        (spectra.rank_max, {"ceiling": float("inf")}),
        pytest.param(spectra.rank_max, {"relative_rank": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_where_nothing_is_asked_every_bit_stays(which, rule):
    fn, params = resnet()
    params = jax.tree.map(lambda leaf: np.where(leaf == leaf.ravel()[0], np.float32(-0.0), leaf), jax.tree.map(np.asarray, params))
    result, report = jax.jit(which(fn, params, IMAGES, num_projections=3, pattern="BasicBlock_0/Conv_0|Dense", **rule))(params)
    for a, b in zip(bits(result), bits(params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(int(entry.num_projections) == 0 for entry in report.values())


@pytest.mark.slow
def test_it_runs_inside_a_compiled_training_run_and_over_seeds():
    fn, params = resnet()
    name = "BasicBlock_0/Conv_0/kernel"
    cut = spectra.rank_min(fn, params, IMAGES, threshold={name: 0.9})
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(cut, params)[1])

    @jax.vmap
    def run(params):
        def epoch(params, number):
            return lax.cond(number == 1, cut, lambda p: (p, nothing), params)

        return lax.scan(epoch, params, jnp.arange(3))

    stacked = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf]), params)
    ends, reports = jax.jit(run)(stacked)
    alone = jax.jit(cut)(params)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a)[0], b, rtol=1e-4, atol=1e-5), ends, alone)
    assert reports[name].num_projections.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert set(reports) == {name}


@pytest.mark.parametrize(
    "message, wrong",
    list(
        {
            "takes exactly one of threshold, energy": lambda fn, p: spectra.rank_min(fn, p, IMAGES),
            "exactly one of ceiling": lambda fn, p: spectra.rank_max(fn, p, IMAGES, ceiling=1.0, target_rank=3.0),
            "energy of rank_min must lie": lambda fn, p: spectra.rank_min(fn, p, IMAGES, energy=1.5),
            "relative_rank of rank_max must lie": lambda fn, p: spectra.rank_max(fn, p, IMAGES, relative_rank=0.5),
            "which is none of the layers": lambda fn, p: spectra.rank_min(fn, p, IMAGES, threshold={"stem": 1.0}),
            "num_projections must be": lambda fn, p: spectra.rank_min(fn, p, IMAGES, threshold=1.0, num_projections=0),
            "no layer fits the pattern": lambda fn, p: spectra.layers_of(fn, p, IMAGES, pattern="Attention"),
            "padding must be None": lambda fn, p: spectra.of_network(fn, p, IMAGES, padding="zero"),
            "used in two geometries": lambda fn, p: spectra.rank_min(
                lambda p, x: (x @ p["w"], jnp.ones((2, 5)) @ p["w"].T),
                {"w": jnp.ones((4, 5))},
                jnp.ones((2, 4)),
                threshold=1.0,
                pattern=None,
            ),
        }.items()
    ),
)
def test_misuse_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong(*resnet())
