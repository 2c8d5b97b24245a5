"""Upper bounds against the complexity itself: all signs listed, suprema found by ascent, witnesses on data."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import bounds, data
from jaxbp.bounds import lower

RNG = np.random.default_rng(0)


def stack(params, inputs, *, stride=1):
    """Convolutions and a dense layer, by their order."""
    *kernels, top = params
    for kernel in kernels:
        inputs = lax.conv_general_dilated(inputs, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        inputs = jax.nn.relu(inputs)
    return inputs.reshape(len(inputs), -1) @ top


def unit(*shape):
    return lower.unit_frobenius(jnp.asarray(RNG.normal(size=shape)))


def mlp(params, inputs):
    *kernels, top = params
    for kernel in kernels:
        inputs = jax.nn.relu(inputs @ kernel)
    return inputs @ top


def pixel_net(num_pixels, depth, width=2):
    """Windows of one pixel on one channel, norms 1, one output."""
    channels = [1, *[width] * (depth - 1)]
    kernels = [unit(1, 1, inner, outer) for inner, outer in itertools.pairwise(channels)]
    return [*kernels, unit(num_pixels * width, 1)]


def exact_one_channel(pixels):
    """The supremum for windows of one pixel, one channel, norms 1: a channel of the first layer sees relu(x) or relu(-x)."""
    positive, negative = np.maximum(pixels, 0), np.maximum(-pixels, 0)

    def sup_fn(signs):
        return np.maximum(*(np.linalg.norm(signs[:, :, 0] @ part, axis=1) for part in (positive, negative)))

    return lower.exact(sup_fn, len(pixels))


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("num_pixels", [1, 16, 625])
@pytest.mark.first_cases(3)
def test_all_signs_and_the_published_formula_that_lies_below(depth, num_pixels):
    pixels = np.random.default_rng(num_pixels).uniform(size=(10, num_pixels)) * 0.9  # as raw images: in deeper nets too relu(x) = x
    images = pixels[:, :, None, None]
    net = bounds.anatomy(stack, pixel_net(num_pixels, depth), images)
    truth = exact_one_channel(pixels)
    path, union, best = (bounds.sparse(net, images, form=form) for form in ("path", "union", "best"))
    assert truth <= path.value
    assert truth <= union.value
    assert best.log_value == min(path.log_value, union.log_value)
    assert truth <= bounds.peeling(net, images).value
    published = bounds.sparse(net, images, form="published")
    assert published.status == "as published"
    assert path.status == union.status == "proven"
    # The fan-in of the last layer is missing from the published formula: with 625 pixels it lies below a fifth of the complexity.
    assert (truth > published.value) == (num_pixels == 625 or (num_pixels, depth) == (16, 2))
    if num_pixels == 625:
        assert truth > 5 * published.value


@pytest.mark.parametrize("num_pixels, lies_below", [(7, False), (8, True)])
def test_the_smallest_image_for_which_the_published_formula_is_no_bound(num_pixels, lies_below):
    """By hand: one white image, one filter of one weight; R = sqrt(pixels), the formula 1 + sqrt(4 log 2) = 2.665 for any number."""
    image = np.ones((1, num_pixels, 1, 1))
    net = bounds.anatomy(stack, [jnp.ones((1, 1, 1, 1)), jnp.ones((num_pixels, 1)) / math.sqrt(num_pixels)], image)
    truth, published = exact_one_channel(image[:, :, 0, 0]), bounds.sparse(net, image, form="published").value
    assert truth == pytest.approx(math.sqrt(num_pixels))
    assert published == pytest.approx(1 + math.sqrt(4 * math.log(2)))
    assert (published < truth) == lies_below
    assert bounds.sparse(net, image).value >= truth


def test_signed_pixels_and_all_signs():
    pixels = RNG.normal(size=(10, 4))
    net = bounds.anatomy(stack, pixel_net(4, 2), pixels[:, :, None, None])
    assert 0.5 < exact_one_channel(pixels) / bounds.sparse(net, pixels[:, :, None, None]).value < 1


@pytest.mark.parametrize("dataset, published, ratio", [("digits", 0.946, 0.7), ("mnist5k", 0.491, 0.18)])
@pytest.mark.first_cases(1)
def test_the_published_formula_lies_below_a_witness_on_data(dataset, published, ratio):
    """Three layers of 2 x 2 averaging filters of norm 1 are members of the class: what their features reach is a lower bound."""
    images = data.load(dataset).train.inputs
    side = images.shape[1] - 3
    averages = [jnp.full((2, 2, 1, 1), 0.5)] * 3
    params = [*averages, jnp.ones((side * side, 10)) / (side * math.sqrt(10))]
    net = bounds.anatomy(stack, params, images[:4])
    features = stack([*averages, jnp.eye(side * side)], jnp.asarray(images))
    witness = lower.top_layer(features, 1.0, 10, jax.random.key(0), num_draws=16)
    formula, path = (bounds.sparse(net, images, form=form) for form in ("published", "path"))
    assert math.exp(net.log_norms("frobenius")) == pytest.approx(1)
    assert formula.value == pytest.approx(published, abs=5e-4)
    assert formula.value < ratio * (witness.value - 3 * witness.standard_error)
    assert witness.value + 3 * witness.standard_error < path.value < 4 * witness.value


@pytest.mark.slow
def test_ascent_stays_below_the_bounds_of_a_tree():
    """A tree of four pixels, windows of two, m = 6: nearly tight at this size."""
    images = RNG.normal(size=(6, 4, 1, 1))
    params = [unit(2, 1, 1, 2), unit(2, 1, 2, 2), unit(2, 1)]

    def tree(params, inputs):
        for kernel in params[:-1]:
            inputs = lax.conv_general_dilated(inputs, kernel, (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            inputs = jax.nn.relu(inputs)
        return inputs.reshape(len(inputs), -1) @ params[-1]

    net = bounds.anatomy(tree, params, images)
    reached = lower.search(tree, params, jnp.asarray(images, jnp.float32), jax.random.key(1), num_draws=24, num_starts=6)
    path, union = (bounds.sparse(net, images, form=form).value for form in ("path", "union"))
    assert 0.3 * path < reached.value < path < union
    shuffled = images[:, [2, 3, 0, 1]]  # pixels with their windows
    assert bounds.sparse(net, shuffled, form="path").value == pytest.approx(path)


def test_ascent_over_dense_layers_stays_below_all_bounds():
    inputs = RNG.normal(size=(8, 3))
    params = [unit(3, 4), unit(4, 2)]
    net = bounds.anatomy(mlp, params, inputs)
    reached = lower.search(mlp, params, jnp.asarray(inputs, jnp.float32), jax.random.key(0), num_draws=16)
    for bound in (bounds.peeling(net, inputs), bounds.sparse(net, inputs)):
        assert 0.2 * bound.value < reached.value < bound.value

    def spectral_ball(params):
        return jax.tree.map(lambda kernel: kernel / jnp.maximum(jnp.linalg.norm(kernel, 2), 1e-30), params)

    balls = bounds.anatomy(mlp, spectral_ball(params), inputs)
    reached = lower.search(mlp, params, jnp.asarray(inputs, jnp.float32), jax.random.key(0), project_fn=spectral_ball, num_draws=16)
    for bound in (*(bounds.low_rank(balls, inputs, form=form) for form in ("one_scale", "dudley")), bounds.counting(balls, inputs)):
        assert reached.value < bound.value


def test_one_layer_is_the_linear_class():
    inputs = RNG.normal(size=(30, 5))
    net = bounds.anatomy(lambda p, x: x @ p, unit(5, 1), inputs)
    for form in ("root", "union"):
        assert bounds.peeling(net, inputs, form=form).value == pytest.approx(np.linalg.norm(inputs) / 30)
    images = inputs[:, None, None, :]
    one_node = bounds.anatomy(stack, [unit(1, 1, 5, 1), unit(1, 1)], images)
    assert bounds.sparse(one_node, images, form="path").value == pytest.approx(math.sqrt(2) * np.linalg.norm(inputs) / 30)


def test_a_dense_network_is_one_node_a_layer():
    inputs = RNG.normal(size=(20, 6))
    net = bounds.anatomy(mlp, [unit(6, 5), unit(5, 5), unit(5, 3)], inputs)
    for form, sparse_form in (("root", "path"), ("union", "union")):
        peeled = bounds.peeling(net, inputs, form=form)
        assert bounds.sparse(net, inputs, form=sparse_form).log_value == pytest.approx(peeled.log_value)
        assert sum(peeled.factors.values()) == pytest.approx(peeled.log_value, abs=1e-12)


def test_paths_are_those_that_a_program_would_list():
    """Ones as energies: the path form counts all paths from the output to pixels."""
    images = np.ones((1, 5, 5, 1))
    net = bounds.anatomy(stack, [unit(2, 2, 1, 2), unit(2, 2, 2, 2), unit(3 * 3 * 2, 1)], images)
    count = 0
    for row, column in itertools.product(range(3), range(3)):  # the top reads every node
        for a, b in itertools.product(range(2), repeat=2):
            for c, d in itertools.product(range(2), repeat=2):
                assert row + a + c < 5
                assert column + b + d < 5
                count += 1
    paths = math.exp(2 * bounds.sparse(net, images, form="path").factors["paths and data"])
    assert paths == pytest.approx(count) == 144


def test_one_layer_of_low_rank_by_monte_carlo():
    """L = 1: the supremum is the sum of the r largest singular values of g X^T, for Gaussian g."""
    inputs, draws = RNG.normal(size=(200, 16)), RNG.normal(size=(300, 16, 200))
    signs = np.sign(draws)
    for rank in (1, 4, 16):
        left, _, right = np.linalg.svd(RNG.normal(size=(16, 16)))
        kernel = left[:, :rank] @ right[:rank]  # spectral norm 1
        net = bounds.anatomy(lambda p, x: x @ p, kernel, inputs)
        gaussian = np.linalg.svd(draws @ inputs, compute_uv=False)[:, :rank].sum(1).mean() / 200
        rademacher = np.linalg.svd(signs @ inputs, compute_uv=False)[:, :rank].sum(1).mean() / 200
        chain = bounds.low_rank(net, inputs, form="chain", ranks=[rank])
        assert (chain.complexity, chain.status) == ("gaussian", "as published")
        assert 0.3 * chain.value < gaussian < chain.value
        assert (
            rademacher < bounds.low_rank(net, inputs, ranks=[rank]).value < bounds.low_rank(net, inputs, form="dudley", ranks=[rank]).value
        )


@pytest.fixture(scope="module")
def two_layers():
    inputs = RNG.normal(size=(40, 6))
    params = [np.linalg.qr(RNG.normal(size=(6, 6)))[0][:, :4] * 3.0, RNG.normal(size=(4, 2))]
    params[0] = params[0] @ np.diag([1.0, 0.5, 0.0, 0.0])
    with jax.enable_x64(True):
        return bounds.anatomy(mlp, list(map(jnp.asarray, params)), inputs), params, inputs


def test_orthogonal_changes_leave_low_rank_bounds_alone(two_layers):
    net, params, inputs = two_layers
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    with jax.enable_x64(True):
        turned = bounds.anatomy(mlp, [jnp.asarray(rotation.T @ params[0]), jnp.asarray(params[1])], inputs @ rotation)
    assert bounds.low_rank(turned, inputs @ rotation).log_value == pytest.approx(bounds.low_rank(net, inputs).log_value)


def test_ranks_are_exact_or_given(two_layers):
    net, _, inputs = two_layers
    assert [layer.rank for layer in net.layers] == [2, 2]
    assert bounds.low_rank(net, inputs, ranks=[2, 2]) == bounds.low_rank(net, inputs)
    assert "needs no cover" in bounds.low_rank(net, inputs).note  # 40 examples
    assert bounds.low_rank(net, inputs, ranks=[4, 2]).log_value >= bounds.low_rank(net, inputs).log_value
    with pytest.raises(ValueError, match="ranks must not be below those of the layers, got 1 for 0 of rank 2: truncate it"):
        bounds.low_rank(net, inputs, ranks=[1, 2])
    with pytest.raises(ValueError, match="ranks must be one for each of 2 layers"):
        bounds.low_rank(net, inputs, ranks=[1])
    with pytest.raises(ValueError, match="chain_constants must be at least 1"):
        bounds.low_rank(net, inputs, form="chain", chain_constants=(0.5, 1.0))


def test_the_chain_forms_constants(two_layers):
    net, _, inputs = two_layers
    plain, deep = (bounds.low_rank(net, inputs, form="chain", chain_constants=c) for c in ((1.0, 1.0), (2.0, 3.0)))
    terms = math.sqrt(2 * 4), math.sqrt(2 * 2)
    assert math.exp(plain.factors["ranks"]) == pytest.approx(terms[0] + 2 * terms[1])
    assert math.exp(deep.factors["ranks"]) == pytest.approx(2 * terms[0] + 2 * 3 * terms[1])


def test_unknown_forms_are_refused(two_layers):
    net, _, inputs = two_layers
    for bound_fn in (bounds.peeling, bounds.sparse, bounds.low_rank):
        with pytest.raises(ValueError, match="form must be"):
            bound_fn(net, inputs, form="other")


def test_pooled_nodes_count_by_their_mean():
    """The witness of one-pixel windows and global averages: sup = |sum_i xi_i mean_j x_ij|."""
    pixels = RNG.uniform(size=(10, 9))
    images = pixels.reshape(10, 3, 3, 1)

    def pooled(params, inputs):
        maps = lax.conv_general_dilated(inputs, params[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(maps).mean((1, 2)) @ params[1]

    net = bounds.anatomy(pooled, [unit(1, 1, 1, 2), unit(2, 1)], images)
    truth = lower.exact(lambda signs: np.abs(signs[:, :, 0] @ pixels.mean(1)), 10)
    flat = bounds.anatomy(stack, [unit(1, 1, 1, 2), unit(18, 1)], images)
    for bound_fn in (bounds.peeling, bounds.sparse):
        assert truth < bound_fn(net, images).value < 8 * truth
        assert bound_fn(net, images).value == pytest.approx(bound_fn(flat, images).value / 3)
