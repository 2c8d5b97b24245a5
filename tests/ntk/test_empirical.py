"""The empirical kernel against the dense contraction of Jacobians, for every kind of layer, mode and block."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, ntk
from jaxbp.jaxprs import linear_layers
from jaxbp.ntk import _blocks, _contraction, empirical

C = 3


pytestmark = pytest.mark.usefixtures("x64")


def dense_kernel(fn, params, x1, x2=None):
    """Theta from the materialised Jacobians."""

    def jacobian(x):
        parts = jax.tree.leaves(jax.jacobian(lambda p: fn(p, x))(params))
        return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    @jax.jit
    def kernel(x1, x2):
        return jnp.einsum("ikp,jlp->ijkl", jacobian(x1), jacobian(x2))

    return np.asarray(kernel(x1, x1 if x2 is None else x2))


def off(found, truth):
    assert found.shape == truth.shape
    found, truth = np.asarray(found), np.asarray(truth)  # they may lie on different devices
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def drawn(init, x):
    """What ``init`` returns for ``x``, drawn by NumPy: a network's own initialisation compiles as long as its kernel."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim < 2:  # scales and variances about 1; biases and means away from 0, so that they count
            return np.asarray((path[-1].key in ("scale", "var")) + 0.01 * rng.normal(1, 1, leaf.shape))
        return 0.01 + rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0), x))


def examples(*shape):
    return np.random.default_rng(1).normal(size=shape)


def ready(net, shape, num_examples=5):
    x = examples(num_examples, *shape)
    params = drawn(net.init, x)["params"]
    return lambda p, inputs: net.apply({"params": p}, inputs), params, x


def stack(*parts):
    """A net of the parts, pooled to C logits."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            for part in parts:
                x = part.copy(name=None)(x) if isinstance(part, nn.Module) else part(x)
            return nn.Dense(C, name="head")(x.reshape(len(x), -1) if x.size // len(x) < 40 else x.mean((1, 2)))

    return Stack()


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6)
        return nn.Dense(C)(jnp.tanh(layer(jnp.tanh(layer(x)))))


class Foreign(nn.Module):
    """Weights on the left, rearranged, scaled, squared, scanned, handed out and left alone."""

    @nn.compact
    def __call__(self, x):
        left = self.param("left", nn.initializers.normal(), (2, 3, 6))
        x = jnp.einsum("oi,ni->no", -0.3 * left.reshape(6, 6).T / 2.0, x)
        twice = self.param("twice", nn.initializers.normal(), (6, 6))
        x = jnp.tanh(x @ (twice + twice.T))
        scanned = self.param("scanned", nn.initializers.normal(), (2, 6, 6))
        x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, scanned)
        x = nn.remat(nn.Dense)(6)(x)
        self.param("unused", nn.initializers.normal(), (4,))
        shift = self.param("shift", nn.initializers.normal(), (1, C))
        return nn.Dense(C)(x) * self.param("scale", nn.initializers.ones, ()) + shift


class Experts(nn.Module):
    """A weight for each slice of the data: groups of a matrix product."""

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.normal(), (2, 3, 5))
        y = jnp.einsum("nsgi,gio->nsgo", x.reshape(len(x), 2, 2, 3), weight)
        return nn.Dense(C)(jnp.tanh(y).reshape(len(x), -1))


NETS = {
    "mlp": (models.create("mlp", num_classes=C, width=16, depth=3).module, (6,)),
    "mlp, ntk": (models.create("mlp", num_classes=C, width=16, depth=2, parametrisation="ntk").module, (6,)),
    "house convolution": (models.create("convnet", num_classes=C, width=4, depth=2, parametrisation="ntk").module, (8, 8, 2)),
    "plain convolution": (
        models.create("convnet", num_classes=C, width=4, depth=2, formulation="xla", pool="stride").module,
        (8, 8, 2),
    ),
    "stride, padding": (stack(nn.Conv(5, (3, 2), (2, 1), padding=((1, 0), (0, 3))), jnp.tanh), (7, 6, 2)),
    "crop": (stack(nn.Conv(5, (3, 3), padding=((-1, 0), (-1, 1))), jnp.tanh), (7, 6, 2)),
    "dilation": (stack(nn.Conv(5, (3, 2), kernel_dilation=(2, 3), padding="VALID"), jnp.tanh), (7, 6, 2)),
    "input dilation": (stack(nn.Conv(4, (3, 3), input_dilation=(2, 1), padding=((1, 1), (1, 1))), jnp.tanh), (5, 6, 2)),
    "transposed": (stack(nn.ConvTranspose(4, (3, 3), (2, 2)), jnp.tanh), (4, 4, 2)),
    "groups": (stack(nn.Conv(6, (3, 3), feature_group_count=2), jnp.tanh), (6, 6, 4)),
    "depthwise": (stack(nn.Conv(8, (3, 3), feature_group_count=4), jnp.tanh), (6, 6, 4)),
    "one dimension": (stack(nn.Conv(4, (5,), (2,)), jnp.tanh), (16, 3)),
    "three dimensions": (stack(nn.Conv(4, (2, 3, 2)), jnp.tanh, lambda x: x.mean(1)), (3, 4, 4, 2)),
    "circular": (stack(nn.Conv(4, (3, 3), padding="CIRCULAR"), jnp.tanh), (6, 6, 2)),
    "attention": (stack(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4), nn.LayerNorm()), (6, 4)),
    "shared": (Shared(), (6,)),
    "foreign": (Foreign(), (6,)),
    "experts": (Experts(), (12,)),
    "embedding": (stack(lambda x: (10 * jnp.abs(x)).astype(jnp.int32) % 7, nn.Embed(7, 4)), (5,)),
}


# The other kinds are with the slow tests.
KINDS = ("house convolution", "stride, padding", "groups", "attention", "foreign", "experts", "embedding")


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in NETS])
def test_every_kind_of_layer(name):
    net, shape = NETS[name]
    fn, params, x = ready(net, shape)
    truth = dense_kernel(fn, params, x)
    assert off(ntk.empirical_ntk(fn, params, x), truth) < 1e-12
    if name in ("mlp, ntk", "stride, padding", "one dimension", "input dilation", "foreign"):
        for method in _contraction.METHODS:
            assert off(ntk.empirical_ntk(fn, params, x, method=method), truth) < 1e-12, method


def test_the_kernel_is_symmetric_and_positive_semidefinite():
    fn, params, x = ready(*NETS["house convolution"], num_examples=9)
    kernel = np.asarray(ntk.empirical_ntk(fn, params, x)).transpose(0, 2, 1, 3).reshape(9 * C, 9 * C)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-13 * np.abs(kernel).max())
    eigenvalues = np.linalg.eigvalsh(kernel)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


LOGITS = ("full", "trace", "diagonal", "sum", 0, C - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "chosen"),
    [("gradients", LOGITS)]
    + [(method, ("full", "trace")) for method in _contraction.METHODS if method != "gradients"]
    + [pytest.param(method, LOGITS[2:], marks=pytest.mark.slow) for method in _contraction.METHODS if method != "gradients"],
)
def test_logits_and_pairs(method, chosen):
    fn, params, x = ready(*NETS["stride, padding"])
    other = 0.5 * x[:3] + 0.2
    truth = dense_kernel(fn, params, x, other)
    wanted = {
        "full": truth,
        "trace": np.einsum("ijkk->ij", truth),
        "diagonal": np.einsum("ijkk->ijk", truth),
        "sum": truth.sum((2, 3)),
        0: truth[:, :, 0, 0],
        C - 1: truth[:, :, -1, -1],
    }
    own = dense_kernel(fn, params, x)
    for logits in chosen:
        expected = wanted[logits]
        run = functools.partial(ntk.empirical_ntk, fn, params, logits=logits, method=method)
        assert off(run(x, other), expected) < 1e-12, logits
        square = {"full": own, "trace": np.einsum("ijkk->ij", own), "diagonal": np.einsum("ijkk->ijk", own)}.get(logits)
        if square is not None:
            assert off(run(x), square) < 1e-12, logits
            assert off(run(x, pairs="same"), np.moveaxis(np.diagonal(square), -1, 0)) < 1e-12, logits


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow if m == "gradients" else []) for m in _contraction.METHODS])
def test_a_symmetric_kernel_is_computed_by_halves(method, monkeypatch):
    monkeypatch.setattr(_contraction, "PART", 1000)
    fn, params, x = ready(*NETS["stride, padding"], num_examples=13)
    truth = dense_kernel(fn, params, x)
    for logits, wanted in {
        "full": truth,
        "trace": np.einsum("ijkk->ij", truth),
        "diagonal": np.einsum("ijkk->ijk", truth),
    }.items():
        assert off(ntk.empirical_ntk(fn, params, x, logits=logits, method=method), wanted) < 1e-12


@pytest.mark.parametrize("part", [10, 10_000_000])  # entries that may be formed: parts of a weight's gradient; all of it at once
@pytest.mark.parametrize("num_outputs", [3, 20])  # a product for each output; one for all
def test_weight_gradients_in_parts_and_at_once(part, num_outputs, monkeypatch):
    monkeypatch.setattr(_contraction, "PART", part)
    grouped = nn.Conv(6, (3, 3), feature_group_count=2, padding="VALID")
    net = nn.Sequential([grouped, lambda x: jnp.tanh(x).reshape(len(x), -1), nn.Dense(num_outputs)])
    fn, params, x = ready(net, (3, 4, 4))
    truth = dense_kernel(fn, params, x)
    assert off(ntk.empirical_ntk(fn, params, x, method="gradients"), truth) < 1e-12
    assert off(ntk.empirical_ntk(fn, params, x, method="gradients", logits="trace"), np.einsum("ijkk->ij", truth)) < 1e-12


def test_weight_gradients_that_are_many_are_not_kept(monkeypatch):
    """Those of the first of three wide layers are within what may be more to keep; those of narrow layers are less to keep."""
    more = 5 * C * 9 * 32 * 32 - 5 * (1 + C) * 4 * 4 * 32  # of 5 examples: C gradients, over data and C output gradients
    monkeypatch.setattr(_contraction, "PART", 3 * more // 2)

    def flows(channels, side):
        net = stack(*[nn.Conv(channels, (3, 3)) for _ in range(3)])
        fn, params, x = ready(net, (side, side, channels))
        spec = _blocks.KernelSpec(fn, "full", "all", False, "gradients")
        return [rule.at_once for rule in _blocks.plan_flows(spec, params, None, x, np.eye(C)).rules[:3]]

    assert flows(2, 16) == [True] * 3
    assert flows(32, 4) == [True, False, False]


@pytest.mark.parametrize("length", [3 * 4608, 4 * 2309, 2 * 4621])  # parts of the longest size, of a shorter one, none
def test_inner_products_of_long_rows(length):
    rows, columns = examples(3, 2, length), examples(4, 2, length)[1:]
    for logits, product in {"full": "ikf,jlf->ijkl", "diagonal": "ikf,jkf->ijk", "trace": "ikf,jkf->ij"}.items():
        wanted = np.einsum(product, rows, columns)
        np.testing.assert_allclose(jax.jit(_contraction.gram, static_argnums=2)(rows, columns, logits), wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("num_examples", [9, 10, 12, 15])
def test_each_pair_is_met_once(num_examples):
    met = []

    def contract(rows, columns):
        jax.debug.callback(lambda r, c: met.append(len(r) * len(c)), rows, columns)
        pairs = rows[:, None, :, None] * columns[None, :, None, :] + rows[:, None, :, None] ** 2
        return pairs + columns[None, :, None, :] ** 2

    rows = jnp.asarray(examples(num_examples, 2))
    found = jax.jit(functools.partial(_contraction.symmetric_gram, contract))(rows)
    jax.effects_barrier()
    assert sum(met) <= (num_examples**2 if num_examples < 10 else 0.6 * (num_examples + 4) ** 2)
    np.testing.assert_allclose(found, jax.jit(contract)(rows, rows), rtol=1e-15)


@pytest.mark.parametrize("chunk_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_flows_some_examples_chunk_size(chunk_size, monkeypatch):
    fn, params, x = ready(*NETS["plain convolution"], num_examples=6)
    whole = dense_kernel(fn, params, x)
    num_outputs = whole.shape[-1]
    found = linear_layers.find(lambda p, e: fn(p, e[None])[0], params, x[0]).layers
    largest = max(layer.output.size * layer.output.dtype.itemsize for layer in found)
    monkeypatch.setattr(_blocks, "_CACHE_BYTES", chunk_size * largest * num_outputs)
    spec = _blocks.KernelSpec(fn, "full", "all", False, "auto")
    assert _blocks.plan_flows(spec, params, None, x, spec.directions(6, num_outputs)).chunk_size == chunk_size
    assert off(ntk.empirical_ntk(fn, params, x), whole) < 1e-12


@pytest.mark.parametrize("logits", [pytest.param("trace", marks=pytest.mark.slow), "diagonal"])
def test_logits_are_split_before_examples(logits, monkeypatch):
    fn, params, x = ready(*NETS["plain convolution"], num_examples=6)
    seen = []
    program = empirical.compiled_kernel

    def noted(spec, params, state, left, right):
        compiled, needed = program(spec, params, state, left, right)
        seen.append((len(left[0]), len(left[1]), needed))
        return compiled, needed

    whole = ntk.empirical_ntk(fn, params, x, logits=logits)
    monkeypatch.setattr(empirical, "compiled_kernel", noted)
    ntk.empirical_ntk(fn, params, x, logits=logits)
    num_logits, needed = seen[0][1:]
    found = ntk.empirical_ntk(fn, params, x, logits=logits, memory=0.95 * needed)
    assert off(found, whole) < 1e-13
    assert seen[-1][0] == 6
    assert seen[-1][1] < num_logits
    assert seen[-1][2] <= 0.95 * needed


SHORT = (("stored", "full"), ("stored", "trace"), ("batch", "full"), ("batch", 1))  # the others are with the slow tests


@pytest.mark.first_cases(1)
@pytest.mark.parametrize(
    ("batch_norm", "logits"),
    [
        pytest.param(batch_norm, logits, marks=[] if (batch_norm, logits) in SHORT else pytest.mark.slow)
        for batch_norm in ("stored", "batch")
        for logits in ("full", "trace", "diagonal", "sum", 1)
    ],
)
def test_batch_norm_in_both_modes(batch_norm, logits):
    net, variables, x = batch_normalised()
    truth = normalised_kernel(batch_norm == "batch")
    wanted = {
        "full": truth,
        "trace": np.einsum("ijkk->ij", truth),
        "diagonal": np.einsum("ijkk->ijk", truth),
        "sum": truth.sum((2, 3)),
        1: truth[:, :, 1, 1],
    }[logits]
    found = flax_ntk(net, variables, x, 0.5 * x[:3] + 0.2, batch_norm=batch_norm, logits=logits)
    assert off(found, wanted) < 1e-12


@functools.cache
def normalised_kernel(train):
    """Of the network with BatchNorm and two sets of examples, from the Jacobians."""
    net, variables, x = batch_normalised()

    def fn(params, inputs):
        both = {"params": params, "batch_stats": variables["batch_stats"]}
        return net.apply(both, inputs, train, mutable=["batch_stats"])[0]

    return dense_kernel(fn, variables["params"], x, 0.5 * x[:3] + 0.2)


def flax_ntk(net, variables, *inputs, batch_norm, **options):
    """The kernel of a module with BatchNorm in one of its modes."""
    network, coupled = models.from_linen(net), batch_norm == "batch"
    fn = models.with_batch_statistics(network) if coupled else network.apply
    state = {"batch_stats": variables["batch_stats"]}
    return ntk.empirical_ntk(fn, variables["params"], *inputs, state=state, coupled=coupled, **options)


class BatchNormalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for features, stride in ((4, 1), (5, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(C)(x.mean((1, 2)))


def batch_normalised():
    net = BatchNormalised()
    x = examples(5, 6, 6, 2)
    return net, drawn(net.init, x), x


def test_coupled_examples_are_refused_and_named():
    net, variables, x = batch_normalised()

    def hidden(p, inputs):
        return net.apply({"params": p}, inputs, True, mutable=["batch_stats"])[0]

    with pytest.raises(ntk.BatchCouplingError, match="coupled=True"):
        ntk.empirical_ntk(hidden, variables["params"], x)


def test_coupling_is_found_in_later_calls_too():
    def coupled_by(params, x):
        return x @ params["w"] + params["mixing"] * x.mean(0) @ params["w"]

    images = jax.random.normal(jax.random.key(0), (4, 3))
    params = {"w": jnp.ones((3, 2)), "mixing": jnp.zeros(())}
    for _ in range(2):
        ntk.empirical_ntk(coupled_by, params, images)
    with pytest.raises(ntk.BatchCouplingError):
        ntk.empirical_ntk(coupled_by, params | {"mixing": jnp.ones(())}, images)


def test_the_mode_of_a_free_batch_norm_is_steered():
    class Free(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(C)(nn.BatchNorm()(x))

    net = Free()
    x = examples(4, 6)
    params, state = drawn(models.from_linen(net).init, x)

    def fn(p, inputs):  # by hand
        norm, head = p["BatchNorm_0"], p["Dense_0"]
        scaled = (inputs - inputs.mean(0)) / jnp.sqrt(inputs.var(0) + 1e-5) * norm["scale"] + norm["bias"]
        return scaled @ head["kernel"] + head["bias"]

    truth = dense_kernel(fn, params, x)
    found = flax_ntk(net, {"params": params, **state}, x, batch_norm="batch")
    assert off(found, truth) < 1e-9  # Flax computes the variance as mean of squares minus square of mean


@pytest.mark.slow
@pytest.mark.parametrize("coupled", [False, True])
def test_blocks_keep_to_the_memory_and_change_nothing(coupled, monkeypatch):
    net, variables, x = batch_normalised()
    run = functools.partial(flax_ntk, net, variables, x, batch_norm="batch" if coupled else "stored")
    whole, cross, same = run(), run(0.3 * x[:4]), None if coupled else run(pairs="same")
    used = []
    original = empirical.compiled_kernel

    def watched(*arguments):
        program, needed = original(*arguments)
        used.append((needed, program))
        return program, needed

    monkeypatch.setattr(empirical, "compiled_kernel", watched)
    run()
    everything = used[-1][0]
    for share in (0.9, 0.5):
        used.clear()
        assert off(run(memory=share * everything), whole) < 1e-12
        assert len({id(program) for _, program in used}) > 1
        assert used[-1][0] <= share * everything
        assert off(run(0.3 * x[:4], memory=share * everything), cross) < 1e-12
        if not coupled:
            assert off(run(pairs="same", memory=share * everything), same) < 1e-12
    with pytest.raises(ntk.InsufficientMemoryError, match=r"a block of 1 (outputs|examples) needs .* bytes"):
        run(memory=1000)


def test_what_stays_on_a_device_is_no_tracer():
    def fn(params, x):
        return jnp.tanh(x @ params["w"])

    params = {"w": jax.random.normal(jax.random.key(0), (3, 11))}  # as many outputs as no other test has
    x = jax.random.normal(jax.random.key(1), (2, 3))
    inside = jax.jit(lambda p: ntk.empirical_ntk(fn, p, x))(params)
    np.testing.assert_allclose(inside, ntk.empirical_ntk(fn, params, x), rtol=1e-5, atol=1e-6)


def test_inside_other_transformations():
    fn, params, x = ready(*NETS["mlp"])
    truth = dense_kernel(fn, params, x)
    assert off(jax.jit(lambda p: ntk.empirical_ntk(fn, p, x))(params), truth) < 1e-12
    several = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), params)
    assert off(jax.jit(jax.vmap(lambda p: ntk.empirical_ntk(fn, p, x)))(several)[0], truth) < 1e-12


@pytest.mark.slow
def test_the_rows_are_shared_by_devices():
    fn, params, x = ready(*NETS["house convolution"])
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("one device")
    for logits in ("full", "trace"):
        split = ntk.empirical_ntk(fn, params, x, logits=logits, devices=devices)
        assert off(split, ntk.empirical_ntk(fn, params, x, logits=logits)) < 1e-12
        cross = ntk.empirical_ntk(fn, params, x, x[:2], logits=logits, devices=devices)
        assert off(cross, ntk.empirical_ntk(fn, params, x, x[:2], logits=logits)) < 1e-12
    net, variables, x = batch_normalised()
    split = flax_ntk(net, variables, x, devices=devices, batch_norm="batch")
    assert off(split, flax_ntk(net, variables, x, batch_norm="batch")) < 1e-12


@pytest.mark.parametrize(("activation", "tolerance"), [(jnp.tanh, 1e-5), (nn.relu, 1e-3)])  # a kink may flip
@pytest.mark.first_cases(1)
def test_float32(activation, tolerance):
    net = stack(nn.Conv(8, (3, 3)), activation, nn.Conv(8, (3, 3), 2), activation)
    fn, params, x = ready(net, (8, 8, 2))
    low = jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, x))
    found = ntk.empirical_ntk(fn, *low)
    assert found.dtype == jnp.float32
    assert off(found, dense_kernel(fn, params, x)) < tolerance


def test_parameters_kept_in_float32_and_used_in_bfloat16():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = jnp.tanh(nn.Dense(16, dtype=jnp.bfloat16)(x))
            return nn.Dense(C, dtype=jnp.bfloat16)(hidden)

    fn, params, x = ready(Mixed(), (6,))
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
    found = ntk.empirical_ntk(fn, params, x)
    assert found.dtype == jnp.float32

    def exact(p, inputs):
        hidden = jnp.tanh(inputs @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    truth = dense_kernel(exact, params, x)
    assert off(found, truth) < 0.05  # eight bits


def test_methods_are_chosen_by_counting():
    """Early layers (many positions, few channels) by gradients, late ones (few positions, many channels) not."""
    net = stack(nn.Conv(4, (3, 3)), jnp.tanh, nn.Conv(64, (3, 3), 8), jnp.tanh, nn.Conv(64, (3, 3)), jnp.tanh)
    fn, params, x = ready(net, (16, 16, 3))
    found = linear_layers.find(lambda p, example: fn(p, example[None])[0], params, x[0])
    methods = [_contraction.plan(layer, 25, 10, "full").method for layer in found.layers]
    assert methods[0] == "gradients"
    assert "gradients" not in methods[2:]
    size = _contraction.sizes(found.layers[2])
    assert (size.positions, size.inputs, size.outputs, size.pixels) == (4, 9 * 64, 64, 16)
    assert _contraction.operations(size, 2, 3, "full")["gradients"] == 2 * 2 * 3 * 4 * 576 * 64 + 4 * 9 * 576 * 64


def test_no_weight_gradient_is_formed_for_layers():
    """The largest array of a wide layer's program is far smaller than its Jacobian."""
    fn, params, x = ready(models.create("mlp", num_classes=C, width=256, depth=2).module, (256,))
    problem = _blocks.KernelSpec(fn, "full", "all", False, "auto")
    params, x = jax.tree.map(jnp.asarray, (params, x))
    _, needed = empirical.compiled_kernel(problem, params, None, (x, jnp.eye(C)), None)
    jacobian = 5 * C * sum(leaf.size for leaf in jax.tree.leaves(params)) * 8
    assert needed < 0.1 * jacobian


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits": "all"}, "logits must be full, trace, diagonal, sum or from 0 to 2, got 'all'"),
        ({"logits": 3}, "from 0 to 2, got 3"),
        ({"pairs": "each"}, 'pairs must be "all" or "same"'),
        ({"method": "fast"}, "method must be auto or one of gradients"),
        ({"pairs": "same", "x2": np.ones((2, 6))}, "leave out x2"),
        ({"x2": np.ones((2, 5))}, "examples of x1 and x2 must have one shape"),
        ({"x1": np.ones((0, 6))}, "x1 must hold examples"),
        ({"params": {"w": np.ones(3, int)}}, "params must be arrays of real floating-point numbers, got int"),
        ({"apply_fn": lambda p, x: x.sum(-1)}, r"must return logits \(N, C\), got shape \(5,\)"),
    ],
)
def test_misuse_is_named(options, message):
    fn, params, x = ready(*NETS["mlp"])
    arguments = {"apply_fn": fn, "params": params, "x1": x, **options}
    with pytest.raises(ValueError, match=message):
        ntk.empirical_ntk(**arguments)


def test_equal_calls_are_compiled_once():
    fn, params, x = ready(*NETS["mlp"])
    traces = []

    def counted(p, inputs):
        traces.append(inputs.shape)
        return fn(p, inputs)

    ntk.empirical_ntk(counted, params, x)
    first = len(traces)
    ntk.empirical_ntk(counted, jax.tree.map(lambda leaf: 2 * leaf, params), x)
    assert len(traces) == first
