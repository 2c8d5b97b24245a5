"""Norm-bias against finite differences, closed forms and optax; angles and rates against their definitions."""

import itertools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import models, norms, training
from tests.helpers.typechecked import check_fields, refuses_shapes, typechecked

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.3, -0.7])},
    "scale": jnp.array(1.5),
}


def f64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def gradient(params, *args, **options):
    """What norm-bias adds to an update of zeros."""
    link = norms.norm_bias(*args, **options)
    return link.update(jax.tree.map(jnp.zeros_like, params), link.init(params), params)[0]


@pytest.mark.parametrize("mu", [2.0, 6.0])
@pytest.mark.parametrize(
    "form, convention, mask, per_layer",
    list(itertools.product(norms.FORMS, norms.CONVENTIONS, [None, norms.kernels_only], [False, True])),
)
def test_the_update_is_the_gradient_of_the_penalty(x64, mu, form, convention, mask, per_layer):
    options = {"form": form, "convention": convention, "mask": mask, "per_layer": per_layer}
    params = f64(PARAMS)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    result = jax.flatten_util.ravel_pytree(gradient(params, 0.3, mu, **options))[0]

    def penalty(vector):
        return float(norms.norm_penalty(unravel(vector), mu, 0.3, **options))

    steps = 1e-6 * np.eye(flat.size)
    differences = [(penalty(flat + step) - penalty(flat - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(result, differences, rtol=1e-7, atol=1e-8)
    assert np.count_nonzero(result) == (4 if mask else flat.size)


def test_the_penalty_is_the_papers(x64):
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    assert float(norms.squared_norm(params)) == 169
    assert float(norms.norm_penalty(params, 10.0, 0.5, convention="text")) == 0.5 * 69
    assert float(norms.norm_penalty(params, 10.0, 0.5)) == 0.5 * 69 / 2
    assert float(norms.norm_penalty(params, 14.0, 1.0, form="squared", convention="text")) == 27.0**2
    each = norms.norm_penalty(params, {"a": jnp.array(6.0), "b": jnp.array(11.0)}, 2.0, per_layer=True)
    assert float(each) == (11 + 23)
    result = gradient(params, 2.0, {"a": jnp.array(6.0), "b": jnp.array(11.0)}, per_layer=True)
    np.testing.assert_array_equal(result["a"], -2.0 * params["a"])
    np.testing.assert_array_equal(result["b"], 2.0 * params["b"])


@pytest.mark.parametrize("decoupled", [False, True])
def test_mu_of_zero_is_weight_decay_to_the_last_bit(decoupled):
    params = jax.tree.map(lambda p: p * 1.1, PARAMS)
    plain = training.sgd(0.1, momentum=0.9, weight_decay=3e-3, decoupled=decoupled)
    ours = training.sgd(0.1, momentum=0.9, regulariser=norms.norm_bias(3e-3, 0.0), decoupled=decoupled)
    ends = []
    for optimizer in (plain, ours):
        end, state = params, optimizer.init(params)
        for _ in range(20):
            updates, state = optimizer.update(jax.tree.map(jnp.sin, end), state, end)
            end = optax.apply_updates(end, updates)
        ends.append(end)
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_coupled_is_in_the_momentum_and_decoupled_is_not():
    params = {"kernel": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    steps = {}
    for decoupled in (False, True):
        optimizer = training.sgd(0.1, momentum=0.5, regulariser=norms.norm_bias(0.1, 0.0), decoupled=decoupled)
        state = optimizer.init(params)
        _, state = optimizer.update(zeros, state, params)
        steps[decoupled] = float(optimizer.update(zeros, state, params)[0]["kernel"][0])
    assert steps[False] == pytest.approx(-0.1 * 0.1 * 1.5)
    assert steps[True] == pytest.approx(-0.1 * 0.1)


def test_it_is_safe_at_its_kinks():
    at_mu = {"w": jnp.array([3.0, 4.0])}
    assert not gradient(at_mu, 0.1, 5.0)["w"].any()
    zero = {"w": jnp.zeros(2)}
    for mu, form in itertools.product((0.0, 2.0), norms.FORMS):
        assert not gradient(zero, 0.1, mu, form=form)["w"].any()
    tiny = {"w": jnp.full(2, 1e-30)}  # its square is 0 in float32
    np.testing.assert_array_equal(gradient(tiny, 0.1, 0.0)["w"], jnp.float32(0.1) * tiny["w"])


@pytest.mark.parametrize("form, coefficient", [("absolute", 0.05), ("squared", 4e-3)])
@pytest.mark.parametrize("mu", [1.0, 12.0])
def test_on_a_flat_loss_the_norm_goes_to_mu(form, coefficient, mu):
    optimizer = training.sgd(0.1, momentum=0.5, regulariser=norms.norm_bias(coefficient, mu, form=form))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=3000)
    assert math.sqrt(norms.squared_norm(params)) == pytest.approx(mu, rel=0.02)


def test_settings_share_one_program():
    traces = []

    @jax.jit
    def run(coefficient, mu):
        traces.append(1)
        return gradient(PARAMS, coefficient, mu)

    for coefficient, mu in ((0.1, 0.0), (0.2, 3.0), (0.0, 9.0)):
        wanted = gradient(PARAMS, coefficient, mu)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(coefficient, mu), wanted)
    assert len(traces) == 1


def test_kernels_only_knows_the_house_networks():
    net = models.create("resnet", num_classes=3, width=4, stages=2, depth=1)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))[0]
    flags = jax.tree_util.tree_leaves_with_path(norms.kernels_only(params))
    assert {str(path[-1].key) for path, flag in flags if flag} == {"kernel"}
    assert {str(path[-1].key) for path, flag in flags if not flag} == {"bias", "scale"}


def test_angles_of_steps(x64):
    params = f64({"kernel": jnp.array([3.0, 0.0]), "more": {"kernel": jnp.array([[1.0, 1.0]])}, "bias": jnp.ones(2)})
    optimizer = optax.chain(optax.sgd(1.0), norms.track_angular_updates())
    gradients = f64({"kernel": jnp.array([0.0, -3.0]), "more": {"kernel": jnp.array([[-1e-9, 1e-9]])}, "bias": jnp.ones(2)})
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(norms.angular_updates(state), [math.pi / 4, 1e-9], rtol=1e-9)
    with pytest.raises(ValueError, match="track_angular_updates"):
        norms.angular_updates(optax.sgd(0.1).init(params))


@pytest.mark.parametrize("step,angle", [((-1.0, 1.0), math.pi / 4), ((-2.0, -2.0), math.pi / 2), ((1.0, 0.0), 0.0), ((-3.0, 0.0), math.pi)])
def test_angles_of_steps_that_change_the_length(x64, step, angle):
    assert float(norms._angle(jnp.array([2.0, 0.0]), jnp.array(step))) == pytest.approx(angle, abs=1e-15)


def test_the_effective_rate_is_the_rate_on_the_sphere(x64):
    # For f(w) = g(w / |w|), a step of learning rate r from w turns as one of r / |w|^2 turns from w / |w|.
    def loss(w):
        return jnp.sin(3 * w / jnp.linalg.norm(w)).sum()

    w = f64({"kernel": jnp.array([1.0, 2.0, -0.5])})
    rate = 1e-6
    (effective,) = norms.effective_learning_rates(w, rate)
    unit = w["kernel"] / jnp.linalg.norm(w["kernel"])
    turned = [float(norms._angle(p, -r * jax.grad(loss)(p))) for p, r in ((w["kernel"], rate), (unit, effective))]
    assert turned[0] == pytest.approx(turned[1], rel=1e-9)
    assert turned[0] > 0


def test_annotated_shapes():
    assert typechecked(norms.squared_norm)(PARAMS).shape == ()
    assert typechecked(norms.norm_penalty)(PARAMS, 2.0, 0.1).shape == ()
    rates = typechecked(norms.effective_learning_rates)({"kernel": jnp.ones(3)}, 0.1)
    assert rates.shape == (1,)
    state = norms.track_angular_updates().init({"kernel": jnp.ones(3)})
    check_fields(state)
    assert typechecked(norms.angular_updates)(state).shape == (1,)
    for wrong in (jnp.ones(3), "0.1"):
        with refuses_shapes():
            typechecked(norms.norm_bias)(wrong, 1.0)


@pytest.mark.parametrize(
    "message, wrong",
    list(
        {
            "form must be one of absolute, squared, got 'l1'": lambda: norms.norm_bias(0.1, 1.0, form="l1"),
            "convention must be one of code, text, got 'paper'": lambda: norms.norm_bias(0.1, 1.0, convention="paper"),
            "needs the parameters": lambda: norms.norm_bias(0.1, 1.0).update(PARAMS, optax.EmptyState()),
            "mask must have the structure": lambda: gradient(PARAMS, 0.1, 1.0, mask={"dense": True}),
            "leaves no parameter": lambda: norms.squared_norm(PARAMS, jax.tree.map(lambda _: False, PARAMS)),
            "mu must be one number": lambda: gradient(PARAMS, 0.1, jnp.ones(3)),
            "regulariser or weight_decay": lambda: training.sgd(0.1, weight_decay=0.1, regulariser=norms.norm_bias(0.1, 1.0)),
        }.items()
    ),
)
def test_misuse_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong()


# Leaves of every kind


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_short_floats_are_squared_in_float32(dtype):
    params = {"k": jnp.full((1000,), 10.0, dtype)}  # the squared norm is 100,000, more than float16 holds
    assert float(norms.squared_norm(params)) == 1e5
    assert float(norms.norm_penalty(params, 400.0, 2.0)) == 400.0**2 - 1e5
    outwards = gradient(params, 1.0, 400.0)["k"]
    assert outwards.dtype == dtype
    assert (outwards == -10).all()
    assert (gradient(params, 1.0, jnp.asarray(400.0, dtype))["k"] == -10).all()
    assert float(norms.effective_learning_rates(params, 1.0, None)[0]) == pytest.approx(1e-5)
    angles = norms.track_angular_updates(None)
    _, state = angles.update({"k": params["k"] * jnp.tile(jnp.array([1, -1], dtype), 500)}, angles.init(params), params)
    assert float(state.last[0]) == pytest.approx(math.pi / 4, rel=1e-5)


@pytest.mark.parametrize(
    "leaf, message",
    [
        (jnp.array([3 + 4j]), r"got complex64 at \['w'\]: split real and imaginary parts"),
        (jnp.arange(3), r"got int32 at \['w'\]: pass it as state"),
        (jnp.ones(2, bool), "got bool"),
    ],
)
def test_leaves_of_other_kinds_are_refused_where_they_count(leaf, message):
    params = {"w": leaf, "kernel": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    angles = norms.track_angular_updates(None)
    for call in (
        lambda: norms.squared_norm(params),
        lambda: norms.norm_penalty(params, 5.0, 1.0),
        lambda: norms.effective_learning_rates(params, 0.1, None),
        lambda: gradient(params, 1.0, 2.0),
        lambda: gradient(params, 1.0, 2.0, per_layer=True),
        lambda: angles.update(zeros, angles.init(params), params),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert float(norms.squared_norm(params, norms.kernels_only)) == 2  # a step counter outside the mask does no harm
    assert (gradient(params, 1.0, 2.0, mask=norms.kernels_only)["kernel"] == -1).all()


@pytest.mark.parametrize("per_layer", [False, True])
def test_updates_of_frozen_parameters_stay_none_as_in_optax(per_layer):
    params = {"bias": jnp.ones(2), "kernel": jnp.full(4, 1.5)}
    updates = {"bias": None, "kernel": jnp.full(4, 0.25)}
    decay = optax.add_decayed_weights(0.1)
    expected, _ = decay.update(updates, decay.init(params), params)
    link = norms.norm_bias(0.1, 0.0, per_layer=per_layer)
    result, _ = link.update(updates, link.init(params), params)
    assert result["bias"] is None
    np.testing.assert_array_equal(result["kernel"], expected["kernel"])
    angles = norms.track_angular_updates(None)
    _, state = angles.update(updates, angles.init(params), params)
    np.testing.assert_allclose(state.last, [0, 0], atol=1e-6)
