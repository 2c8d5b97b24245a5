"""Margins against the layers' own outputs, and radii against perturbations that try to flip a sign."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import landscape, models
from jaxbp.landscape import UnsupportedOperationError
from jaxbp.ops import convolution

# Networks as functions of (params, inputs, relu), so that a test can pass a ReLU that takes notes.


def mlp(p, x, relu):
    for kernel, bias in p[:-1]:
        x = relu(x @ kernel + bias)
    return x @ p[-1][0] + p[-1][1]


def swapped_relu(z):
    return jnp.maximum(0, z)


def ntk(p, x, relu):
    for kernel, bias in p[:-1]:
        x = relu(x @ (kernel * math.sqrt(2 / len(kernel))) + 0.1 * bias)
    return x @ (p[-1][0] / 2.0) + p[-1][1]


def convolve(x, kernel, stride, formulation):
    numbers = ("NHWC", "HWIO", "NHWC")
    return convolution.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, formulation=formulation)


def convnet(p, x, relu):
    x = relu(convolve(x, p["first"], 1, "auto") + p["bias"])
    x = nn.avg_pool(relu(convolve(x, p["second"], 2, "auto") + p["bias"]), (2, 2), (1, 1))
    return x.mean((1, 2)) @ p["head"]


def residual(p, x, relu):
    x = relu(convolve(x, p["first"], 1, "xla") + p["bias"])
    branch = convolve(relu(convolve(x, p["second"], 1, "xla") + p["bias"]), p["third"], 1, "xla")
    x = relu(x + 0.5 * branch + x.mean((1, 2), keepdims=True) - p["scale"] * x)  # a pooled map is broadcast back
    return x.transpose(0, 3, 1, 2)[..., None].reshape(len(x), -1) @ p["head"]


def dense_params(rng, widths):
    return [(rng.normal(size=(a, b)) / math.sqrt(a), rng.normal(size=b)) for a, b in itertools.pairwise(widths)]


def conv_params(rng):
    shapes = {
        "first": (3, 3, 2, 3),
        "second": (3, 3, 3, 3),
        "third": (1, 1, 3, 3),
        "bias": (3,),
        "head": (3, 2),
        "scale": (),
    }
    return {name: rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1])) for name, shape in shapes.items()}


NETS = {
    "mlp": (mlp, lambda rng: dense_params(rng, (5, 4, 6, 3)), (5,)),
    "ntk": (ntk, lambda rng: dense_params(rng, (5, 4, 6, 3)), (5,)),
    "convnet": (convnet, conv_params, (4, 4, 2)),
    "residual": (residual, lambda rng: conv_params(rng) | {"head": rng.normal(size=(48, 2))}, (4, 4, 2)),
}


@functools.cache
def instruments(name):
    """(apply_fn, pre-activations of all ReLUs as one array (N, U), both of params and inputs)."""
    network, _, _ = NETS[name]

    def pre_activations(params, inputs):
        noted = []
        network(params, inputs, lambda z: noted.append(z) or jax.nn.relu(z))
        return jnp.concatenate([z.reshape(len(inputs), -1) for z in noted], 1)

    @jax.jit
    def towards_a_kink(params, offset, inputs, signs, radius):
        """Move ``offset`` along the gradient of the signed pre-activation that is lowest there, to the sphere of ``radius``."""

        def lowest(offset):
            return (signs * pre_activations(jax.tree.map(jnp.add, params, offset), inputs)).min()

        gradient = jax.grad(lowest)(offset)
        step = jax.tree.map(lambda o, g: o - radius * g / (1e-30 + norm(gradient)), offset, gradient)
        return jax.tree.map(lambda s: s * radius / (1e-30 + norm(step)), step)

    return lambda p, x: network(p, x, jax.nn.relu), jax.jit(pre_activations), towards_a_kink


def norm(tree):
    return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


def draw(name, seed):
    """Parameters and inputs; a third of the seeds with large biases, where margins are wide and moves add up."""
    _, params_fn, shape = NETS[name]
    rng = np.random.default_rng(seed)
    params, inputs = params_fn(rng), rng.normal(size=(3, *shape))
    if seed % 3 == 0:
        params = jax.tree.map(lambda p: p + 5 if p.ndim == 1 else p, params)
    return jax.tree.map(jnp.asarray, (params, inputs))


# Margins


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.first_cases(2)
def test_report_is_that_of_the_pre_activations(x64, name):
    params, inputs = draw(name, 1)
    apply_fn, pre_activations, _ = instruments(name)
    values = np.asarray(pre_activations(params, inputs))
    report = landscape.analyse(apply_fn, params, inputs)
    assert report.smallest_margin == pytest.approx(np.abs(values).min(), rel=1e-12)
    assert report.active_share == (values > 0).mean()
    assert report.num_units == values.shape[1]
    assert not report.all_active
    for chunk_size in (1, 2):  # of 3 examples
        chunked = landscape.analyse(apply_fn, params, inputs, chunk_size=chunk_size)
        assert chunked == report._replace(smallest_margin=pytest.approx(report.smallest_margin, rel=1e-12))


@pytest.mark.parametrize("pool,parametrisation", [("stride", "standard"), ("average", "ntk")])
@pytest.mark.first_cases(1)
def test_the_projects_own_convnets_are_understood(x64, pool, parametrisation):
    net = models.create("convnet", num_classes=3, width=1, depth=3, pool=pool, parametrisation=parametrisation)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(3, 7, 7, 1)))
    shapes = jax.eval_shape(net.init, jax.random.key(0), inputs)[0]
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    _, state = net.module.apply({"params": params}, inputs, capture_intermediates=lambda module, _: isinstance(module, nn.Conv))
    convs = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "Conv" in path[1].key]
    outputs = np.concatenate([z.reshape(3, -1) for z in map(np.asarray, convs)], 1)
    report = landscape.analyse(net.apply, params, inputs)
    assert report.smallest_margin == pytest.approx(np.abs(outputs).min(), rel=1e-9)
    assert report.active_share == (outputs > 0).mean()
    assert report.num_units == outputs.shape[1]
    radius = landscape.stable_radius(net.apply, params, inputs)
    assert 0 < radius < report.smallest_margin


@pytest.mark.parametrize("widths,rank", [((5, 4, 6, 3), 3), ((5, 2, 6, 3), 2), ((1, 4, 6, 3), 1)])
def test_rank_of_the_narrowest_place(widths, rank):
    params = [(jnp.ones(s), jnp.ones(s[1])) for s in itertools.pairwise(widths)]
    report = landscape.analyse(lambda p, x: mlp(p, x, jax.nn.relu), params, jnp.ones((3, widths[0])))
    assert report.max_rank == rank


def test_a_skip_passes_a_bottleneck():
    def apply_fn(p, x):
        return x + jax.nn.relu(x @ p) @ p.T

    assert landscape.analyse(apply_fn, jnp.ones((4, 1)), jnp.ones((2, 4))).max_rank == 4


def test_no_relu_and_a_kink():
    inputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    linear = landscape.analyse(lambda p, x: x @ p, jnp.eye(2), inputs)
    assert linear[:4] == (math.inf, 0.0, True, 0)
    assert landscape.stable_radius(lambda p, x: x @ p, jnp.eye(2), inputs) == math.inf
    kink = landscape.analyse(lambda p, x: jax.nn.relu(x @ p), jnp.eye(2), inputs)
    assert kink == (0.0, 0.5, False, 2, 2)
    assert landscape.stable_radius(lambda p, x: jax.nn.relu(x @ p), jnp.eye(2), inputs) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_have_no_radius(bad):
    params, inputs = jnp.full((2, 2), bad), jnp.ones((2, 2))
    assert landscape.stable_radius(lambda p, x: jax.nn.relu(jax.nn.relu(x @ p) @ p), params, inputs) == 0
    assert not 0 < landscape.analyse(lambda p, x: jax.nn.relu(x @ p), params, inputs).smallest_margin < math.inf


# Radii


@pytest.mark.slow
@given(st.sampled_from(sorted(NETS)), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_no_change_below_the_radius_flips_a_sign(name, seed):
    with jax.enable_x64(True):
        params, inputs = draw(name, seed)
        apply_fn, pre_activations, towards_a_kink = instruments(name)
        radius = landscape.stable_radius(apply_fn, params, inputs)
        signs = np.sign(pre_activations(params, inputs))
        assert (radius > 0) == signs.all()  # a layer without active units may put the next at its kink
        rng = np.random.default_rng(seed)
        for _ in range(3):
            offset = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
            scale = 0.999 * radius / norm(offset)
            offset = jax.tree.map(functools.partial(jnp.multiply, scale), offset)
            for _ in range(4):
                result = pre_activations(jax.tree.map(jnp.add, params, offset), inputs)
                np.testing.assert_array_equal(np.sign(result), signs)
                offset = towards_a_kink(params, offset, inputs, signs, 0.999 * radius)


@pytest.mark.parametrize(
    "spread",
    [
        lambda h, bias: h + bias.reshape(1, 1, 1, 1),
        lambda h, bias: h + jax.nn.relu(h.sum((1, 2), keepdims=True) + bias),
        lambda h, bias: jax.nn.relu(h.sum((1, 2), keepdims=True) + bias) * np.ones((1, 10, 10, 1)),
        lambda h, bias: jnp.broadcast_to(jax.nn.relu(h.sum((1, 2), keepdims=True) + bias), h.shape),
    ],
    ids=["bias", "sum", "product", "broadcast"],
)
def test_what_is_repeated_over_a_map_counts_at_every_position(x64, spread):
    # At inputs 0 a map of 10 x 10 is all bias, 1; the second unit, 10 - 5, sees it through weights of norm 1. A bias moved by
    # r moves the map by 10 r in norm and the unit by 10 r; so do the weights, and both together by 10 r^2 more at most.
    def unit(p, x):
        return spread(x, p["bias"]).reshape(1, -1) @ p["weights"] - 5

    params, inputs = {"bias": jnp.ones(1), "weights": jnp.full((100, 1), 0.1)}, jnp.zeros((1, 10, 10, 1))
    radius = landscape.stable_radius(lambda p, x: jax.nn.relu(unit(p, x)), params, inputs)
    assert radius == pytest.approx((math.sqrt(600) - 20) / 20, rel=1e-9)  # 20 r + 10 r^2 = 5
    # With both moved by r / sqrt 2 it is at its kink where 10 (1 - r / sqrt 2)^2 = 5: no radius above 0.414 would be safe.
    moved = jax.tree.map(lambda p: p / math.sqrt(2), params)
    assert float(norm(jax.tree.map(jnp.subtract, moved, params))) == pytest.approx(math.sqrt(2) - 1)
    assert float(unit(moved, inputs)[0, 0]) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    "pool,num_left,radius",
    [
        (lambda h: nn.avg_pool(h, (2, 2), (1, 1)), 81, 0.45),  # an entry is in 4 windows: 10 r allowed for, 9 r in fact
        (lambda h: nn.avg_pool(h, (2, 2), (2, 2)), 25, 0.5),
        (lambda h: h.mean((1, 2)), 1, 0.5),
    ],
    ids=["overlapping", "disjoint", "global"],
)
def test_pooled_maps_by_hand(x64, pool, num_left, radius):
    # A map of 10 x 10 that is all bias, 1, pooled, through weights of norm 1 and less half of that: a bias of 1/2 is the kink.
    size = math.sqrt(num_left)

    def unit(bias, x):
        return pool(x + bias).reshape(1, -1) @ jnp.full((num_left, 1), 1 / size) - size / 2

    inputs = jnp.zeros((1, 10, 10, 1))
    result = landscape.stable_radius(lambda p, x: jax.nn.relu(unit(p, x)), jnp.ones(()), inputs)
    assert result == pytest.approx(radius, rel=1e-9)
    assert float(unit(jnp.array(0.5), inputs)[0, 0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("formulation", ["xla", "auto"])
def test_a_kernel_counts_at_every_place_of_its_use(x64, formulation):
    # 100 windows of 9 on a signal of ones; their mean, times 10, less 5. The kernel moved by r along (1, ..., 1) / 3 moves each
    # window by 3 r and the unit by 30 r; the bound lets every window of the 108 ones have the worst: 3 r sqrt 108.
    def apply_fn(kernel, x):
        windows = convolution.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"), formulation=formulation
        )
        return jax.nn.relu(jax.nn.relu(windows).reshape(1, -1) @ jnp.full((100, 1), 0.1) - 5)

    radius = landscape.stable_radius(apply_fn, jnp.full((9, 1, 1), 1 / 9), jnp.ones((1, 108, 1)))
    assert radius == pytest.approx(5 / (3 * math.sqrt(108)), rel=1e-9)
    assert radius < 5 / 30


@pytest.mark.parametrize(
    "apply_fn,params,radius",
    [  # all on x = (3, 4), of norm 5; r solves |z| = bound(r)
        (lambda p, x: jax.nn.relu(x @ p), jnp.array([[2.0], [1.0]]), 10 / 5),
        (lambda p, x: swapped_relu(x @ p), jnp.array([[2.0], [1.0]]), 10 / 5),
        (lambda p, x: jax.nn.relu(-(x @ p)), jnp.array([[2.0], [1.0]]), 10 / 5),
        (lambda p, x: jax.nn.relu(x @ (0.5 * p)), jnp.array([[2.0], [1.0]]), 5 / 2.5),
        (lambda p, x: jax.nn.relu(x @ (p / 4.0)), jnp.array([[2.0], [1.0]]), 2.5 / 1.25),
        (lambda p, x: jax.nn.relu(x @ p.reshape(2, 1)), jnp.array([2.0, 1.0]), 10 / 5),
        (lambda p, x: jax.nn.relu(2.0 * x + p), jnp.array([1.0, 1.0]), 7),  # a bias alone moves entries by r
        (lambda p, x: jax.nn.relu(p - 2.0 * x), jnp.array([1.0, 1.0]), 5),
        (lambda p, x: jax.nn.relu(x * p), jnp.array([1.0, 1.0]), 1),  # entries move by 3r and 4r
        (lambda p, x: jax.nn.relu(x + p), jnp.array(1.0), 4),  # a scalar
        (lambda p, x: jnp.maximum(x @ p, 4.0), jnp.array([[2.0], [1.0]]), 6 / 5),
        (lambda p, x: jax.nn.relu(x.sum(1, keepdims=True) + p), jnp.array([1.0]), 8),
        (lambda p, x: jax.checkpoint(jax.nn.relu)(x @ p), jnp.array([[2.0], [1.0]]), 10 / 5),
        # z = x (2, 1)' 3 = 30 moves by 3 * 5r + r (10 + 5r)
        (lambda p, x: jax.nn.relu(x @ p[0] @ p[1]), (jnp.array([[2.0], [1.0]]), jnp.array([[3.0]])), (math.sqrt(1225) - 25) / 10),
        (lambda p, x: jax.nn.relu((x @ p[0]) * p[1]), (jnp.array([[2.0], [1.0]]), jnp.array([3.0])), (math.sqrt(1225) - 25) / 10),
        # and p[2] = 1 after it, with h = 10 and 30: 25 r + 5 r^2 as above, plus r (30 + 25 r + 5 r^2)
        (
            lambda p, x: jax.nn.relu(x @ p[0] @ p[1] @ p[2]),
            (jnp.array([[2.0], [1.0]]), jnp.array([[3.0]]), jnp.array([[1.0]])),
            max(np.roots([5, 30, 55, -30]).real),
        ),
    ],
)
def test_radii_by_hand(x64, apply_fn, params, radius):
    assert landscape.stable_radius(apply_fn, params, jnp.array([[3.0, 4.0]])) == pytest.approx(radius, rel=1e-9)


def test_the_radius_is_that_of_the_worst_example_in_any_chunks(x64):
    params, inputs = draw("mlp", 3)
    apply_fn, *_ = instruments("mlp")
    whole = landscape.stable_radius(apply_fn, params, inputs)
    alone = [landscape.stable_radius(apply_fn, params, inputs[i : i + 1]) for i in range(3)]
    assert whole == pytest.approx(min(alone), rel=1e-9)
    assert landscape.stable_radius(apply_fn, params, inputs, chunk_size=2) == pytest.approx(whole, rel=1e-9)


def test_single_precision_and_integer_inputs_give_about_the_same():
    params, inputs = draw("mlp", 3)
    apply_fn, *_ = instruments("mlp")
    counts = (10 * inputs).astype(int)
    short = [landscape.stable_radius(apply_fn, params, x) for x in (inputs, counts)]
    with jax.enable_x64(True):
        params, inputs, counts = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, float)), (params, inputs, counts))
        long = [landscape.stable_radius(apply_fn, params, x) for x in (inputs, counts)]
    assert short == pytest.approx(long, rel=1e-3)


# Refusals


def batch_norm(p, x):
    return nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False).apply({}, x @ p, mutable=True)[0]


@pytest.mark.parametrize(
    "apply_fn,name",
    [
        (lambda p, x: nn.max_pool((x @ p)[:, :, None], (2,), (2,)), "reduce_window_max"),
        (lambda p, x: jnp.tanh(x @ p), "tanh"),
        (lambda p, x: jax.nn.gelu(x @ p), "integer_pow|erf|tanh|square"),
        (lambda p, x: jax.nn.leaky_relu(x @ p), "ge"),
        (batch_norm, "square|reduce_sum|over the examples"),
        (lambda p, x: nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x @ p), "square|integer_pow|mul"),
        (lambda p, x: (x @ p) * (x @ p), "mul"),
        (lambda p, x: jnp.einsum("na,nb->nab", x @ p, x), "dot_general"),
        (lambda p, x: jnp.maximum(x @ p, x), "max"),
        (lambda p, x: jnp.maximum(x, p), "an entry for each of 3 examples"),
        (lambda p, x: x @ jax.nn.relu(p), "max.*parameters"),
        (lambda p, x: x @ (p @ p), "dot_general.*parameters"),
        (lambda p, x: x @ (p * p), "mul.*parameters"),
        (lambda p, x: x[:, None] / p[None], "division by parameters"),
        (lambda p, x: jnp.maximum(x[:, None], p[None]), "max.*constant"),
        (lambda p, x: 1 / x, "div"),
        (lambda p, x: x.T @ p[:, :1], "transpose.*leading axis"),
        (lambda p, x: x[::-1] @ p, "rev.*leading axis"),
        (lambda p, x: x - x.mean(0), "sum over the examples"),
        (lambda p, x: x[None] @ p, "broadcast_in_dim.*leading axis"),
        (lambda p, x: jnp.round(x @ p).astype(int).astype(float) @ p, "round|convert_element_type"),
        (lambda p, x: (x @ p).astype(int).astype(float), "rounding of 'convert_element_type' to int"),
        (lambda p, x: (x @ p).astype(jnp.float16), "rounding of 'convert_element_type' to float16"),
        (lambda p, x: x @ p.astype(jnp.float16), "convert_element_type.*parameters"),
        (lambda p, x: jax.lax.scan(lambda c, _: (c @ p, None), x, length=2)[0], "scan"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(apply_fn, name):
    params, inputs = jnp.eye(3), jnp.ones((3, 3))  # square, so that shapes alone give nothing away
    for instrument in (landscape.analyse, landscape.stable_radius):
        with pytest.raises(UnsupportedOperationError, match=name):
            instrument(apply_fn, params, inputs)


@pytest.mark.parametrize(
    "options,name",
    [
        ({"dimension_numbers": ("CHWN", "IHWO", "NHWC")}, "leading axis"),
        ({"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}, "grouped"),
    ],
)
def test_convolutions_of_other_kinds_are_refused(options, name):
    def apply_fn(p, x):
        return jax.lax.conv_general_dilated(x, p, (1, 1), "SAME", **options)

    shape = (1, 1, 1, 2) if "feature_group_count" in options else (2, 1, 1, 2)
    with pytest.raises(UnsupportedOperationError, match=name):
        landscape.analyse(apply_fn, jnp.ones(shape), jnp.ones((2, 3, 3, 2)))


# Dead layers, and what belongs to one example


def scalars(p, x):
    return nn.relu(nn.relu(x * p["slope"] + p["shift"]) * p["second slope"] + p["second shift"])


def with_skip(p, x):
    return scalars(p, x) + x


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_layer_that_is_dead_on_all_examples_leaves_rank_zero(x64, chunk_size):
    def report(shift, slopes=(1.0, 1.0), fn=scalars):
        params = {"slope": slopes[0], "shift": shift, "second slope": slopes[1], "second shift": 0.5}
        return landscape.analyse(fn, jax.tree.map(jnp.asarray, params), x, chunk_size=chunk_size)

    x = jnp.array([[1.0, 2.0], [2.0, 1.0], [-1.0, -2.0], [-2.0, -1.0]])
    assert (report(-9.0).max_rank, report(-9.0).is_constant) == (0, True)
    assert report(-9.0, fn=with_skip).max_rank == 2  # the input arrives beside the dead layer
    assert not report(9.0).is_constant
    # The first layer is dead on the last two examples, the second on the first two: no layer on all of them, and no common constant.
    mixed = report(0.0, (1.0, -1.0))
    assert mixed.active_share == 0.5
    assert not mixed.is_constant


def test_what_belongs_to_one_example_is_no_parameter(x64):
    x, params = jnp.ones((4, 2)), {"w": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}
    for fn in (
        lambda p, x: nn.relu(x @ p["w"] + p["b"]),
        lambda p, x: nn.relu(p["b"] * (x @ p["w"])),
        lambda p, x: nn.relu(x @ p["w"] + jnp.arange(12.0).reshape(4, 3)),
    ):
        with pytest.raises(UnsupportedOperationError, match=r"shape \(4, 3\) have an entry for each of 4 examples"):
            landscape.analyse(fn, params, x)
    assert landscape.analyse(lambda p, x: nn.relu(x @ p["w"] + p["c"][None]), {**params, "c": jnp.ones(3)}, x).all_active
