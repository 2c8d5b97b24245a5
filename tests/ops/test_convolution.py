import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbp.ops.convolution import FORMULATIONS, choose, conv_general_dilated, conv_with

NHWC = ("NHWC", "HWIO", "NHWC")
NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: NHWC, 3: ("NDHWC", "DHWIO", "NDHWC")}
FAST = ("vjp", "im2col")

# name: input (N, *spatial, C), kernel (*window, C, O), strides, padding, dilation of the kernel
GEOMETRIES = {
    "3x3": ((2, 6, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", None),
    "3x3 stride 2, even map": ((2, 6, 6, 3), (3, 3, 3, 2), (2, 2), "SAME", None),
    "3x3 stride 2, odd map": ((2, 7, 5, 3), (3, 3, 3, 2), (2, 2), "SAME", None),
    "3x3 stride 3, pixels left over": ((2, 8, 9, 2), (3, 3, 2, 3), (3, 3), "VALID", None),
    "3x3 one channel to one": ((2, 5, 5, 1), (3, 3, 1, 1), (1, 1), "SAME", None),
    "3x3 one image": ((1, 5, 5, 2), (3, 3, 2, 3), (1, 1), "SAME", None),
    "1x1": ((2, 4, 5, 3), (1, 1, 3, 2), (1, 1), "SAME", None),
    "1x1 stride 2, pixels never read": ((2, 6, 5, 3), (1, 1, 3, 2), (2, 2), "VALID", None),
    "2x2": ((2, 5, 6, 2), (2, 2, 2, 3), (1, 1), "SAME", None),
    "2x2 stride 2, low": ((2, 5, 6, 2), (2, 2, 2, 3), (2, 2), "SAME_LOWER", None),
    "2x2 stride 3": ((2, 7, 8, 2), (2, 2, 2, 3), (3, 3), "VALID", None),
    "5x5": ((2, 7, 6, 2), (5, 5, 2, 2), (1, 1), "SAME", None),
    "5x3 strides 2 and 1": ((2, 9, 6, 2), (5, 3, 2, 2), (2, 1), "VALID", None),
    "5x5 on 3x3: wider than the image": ((2, 3, 3, 2), (5, 5, 2, 2), (1, 1), "SAME", None),
    "3x3 on 4x4: wider than the output": ((2, 4, 4, 2), (3, 3, 2, 2), (2, 2), "VALID", None),
    "3x3 on 1x6": ((2, 1, 6, 2), (3, 3, 2, 2), (1, 1), "SAME", None),
    "asymmetric padding": ((2, 5, 6, 2), (3, 3, 2, 2), (1, 2), ((2, 0), (1, 3)), None),
    "padding wider than the window": ((2, 4, 4, 2), (2, 3, 2, 2), (1, 1), ((3, 4), (0, 5)), None),
    "negative padding": ((2, 7, 8, 2), (3, 2, 2, 2), (1, 2), ((-1, 2), (-2, -1)), None),
    "dilated": ((2, 8, 9, 2), (3, 2, 2, 2), (1, 1), "SAME", (2, 3)),
    "dilated, stride 2": ((2, 9, 8, 2), (3, 3, 2, 2), (2, 2), ((1, 2), (0, 1)), (2, 1)),
    "signal": ((2, 9, 3), (5, 3, 2), (2,), "SAME", None),
    "signal, dilated": ((2, 9, 2), (3, 2, 3), (1,), ((4, 0),), (2,)),
    "volume": ((2, 4, 3, 5, 2), (3, 2, 1, 2, 2), (1, 2, 2), "SAME", None),
}
FEW = ("3x3 stride 2, odd map", "1x1", "dilated", "signal")  # where every combination would take too long


def bind(geometry, formulation):
    """The convolution of inputs and kernels; ``lax`` names the reference."""
    lhs_shape, _, strides, padding, dilation = GEOMETRIES[geometry]
    options = {"rhs_dilation": dilation, "dimension_numbers": NUMBERS[len(lhs_shape) - 2]}
    if formulation == "lax":
        return lambda x, k: lax.conv_general_dilated(x, k, strides, padding, **options)
    return lambda x, k: conv_general_dilated(x, k, strides, padding, **options, formulation=formulation)


def operands(geometry, *leading, seed=0, dtype=float):
    """Inputs and kernels, with leading axes to be vmapped."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(*leading, *shape)), dtype) for shape in GEOMETRIES[geometry][:2])


def products(conv, x, k):
    """The three products of a convolution: output, input and kernel."""
    value, pullback = jax.vjp(conv, x, k)
    return value, *pullback(jnp.cos(value))


def gradients(conv, x, k):
    """Both gradients of a loss with curvature, so that its derivatives hold every product."""
    return jax.grad(lambda x, k: jnp.sin(conv(x, k)).sum(), (0, 1))(x, k)


def derivatives(conv, x, k, tangents):
    """Forward mode and the Hessian product twice over."""
    gradient = functools.partial(gradients, conv)

    def slope(x, k):
        return sum(jnp.vdot(g, t) for g, t in zip(gradient(x, k), tangents, strict=True))

    return {
        "forward mode": jax.jvp(conv, (x, k), tangents)[1],
        "forward over reverse": jax.jvp(gradient, (x, k), tangents)[1],
        "reverse over reverse": jax.grad(slope, (0, 1))(x, k),
    }


@functools.cache
def reference(geometry):
    return jax.jit(functools.partial(products, bind(geometry, "lax")))


def assert_close(found, expected, tolerance=1e-12):
    """Compare relative to the largest entry: sums of at most some hundred terms, 1e-12 is 5,000 roundings of float64."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape, path
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), (jax.tree_util.keystr(path), np.abs(a - b).max())


# Values and derivatives


@pytest.mark.first_cases(4)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_products(geometry, x64):
    arrays = operands(geometry)
    for formulation in FAST:
        found = jax.jit(functools.partial(products, bind(geometry, formulation)))(*arrays)
        assert_close(found, reference(geometry)(*arrays))


@pytest.mark.parametrize("geometry", FEW)
@pytest.mark.first_cases(1)
def test_every_mix_of_forward_and_reverse_mode(geometry, x64):
    arrays, tangents = operands(geometry), operands(geometry, seed=1)
    expected = jax.jit(functools.partial(derivatives, bind(geometry, "lax")))(*arrays, tangents)
    for formulation in FAST:
        found = jax.jit(functools.partial(derivatives, bind(geometry, formulation)))(*arrays, tangents)
        assert_close(found, expected)


@pytest.mark.parametrize("formulation", ["auto", "vjp"])
def test_a_kernel_gradient_in_parts(formulation, x64):
    rng = np.random.default_rng(0)
    x, k = jnp.asarray(rng.normal(size=(5, 64, 64, 5))), jnp.asarray(rng.normal(size=(2, 3, 3, 5, 2)))
    # 20,480 positions make 2 parts of unequal size, and patches beyond the cache, so that `auto` is `vjp` or `loop`.
    plain = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    ours = functools.partial(conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC, formulation=formulation)
    expected = [jax.jit(functools.partial(products, plain))(x, each) for each in k]
    assert_close(jax.jit(functools.partial(products, ours))(x, k[0]), expected[0])
    found = jax.jit(jax.vmap(functools.partial(products, ours), (0, 0)))(jnp.stack([x, x]), k)
    assert_close(found, jax.tree.map(lambda *each: jnp.stack(each), *expected))


# Batching


@pytest.mark.first_cases(4)
@pytest.mark.parametrize(
    "levels",  # of nested vmaps, the outermost first: whether inputs and kernels are mapped
    [
        [(True, False)],
        [(False, True)],
        [(True, True)],
        [(True, False), (False, True)],
        [(False, True), (True, False)],
        [(True, True), (True, True)],
        [(True, True), (True, False)],
        [(True, False), (True, True)],
        [(False, True), (False, True)],
    ],
    ids=lambda levels: "of ".join("x" * a + "k" * b + " " for a, b in levels).strip(),
)
def test_vmap_is_a_loop(levels, x64):
    geometry = "3x3 stride 2, odd map"
    sizes = (2, 3)[: len(levels)]
    mapped = [tuple(axis for axis, level in enumerate(levels) if level[side]) for side in (0, 1)]
    x, _ = operands(geometry, *(sizes[axis] for axis in mapped[0]))
    _, k = operands(geometry, *(sizes[axis] for axis in mapped[1]))
    indices = [[tuple(index[axis] for axis in axes) for axes in mapped] for index in np.ndindex(sizes)]
    one_by_one = [reference(geometry)(x[at_x], k[at_k]) for at_x, at_k in indices]
    expected = jax.tree.map(lambda *each: jnp.stack(each).reshape(*sizes, *each[0].shape), *one_by_one)
    for formulation in FAST:
        found = functools.partial(products, bind(geometry, formulation))
        for level in reversed(levels):
            found = jax.vmap(found, tuple(0 if each else None for each in level))
        assert_close(jax.jit(found)(x, k), expected)


@pytest.mark.parametrize("in_axes", [(2, None), (None, -1), (-1, 1), (1, 0)])
def test_vmap_over_any_axis(in_axes, x64):
    x, k = operands("2x2", 3)
    arrays = [a[0] if axis is None else jnp.moveaxis(a, 0, axis) for a, axis in zip((x, k), in_axes, strict=True)]
    at = [[0 if axis is None else i for axis in in_axes] for i in range(3)]
    expected = jnp.stack([bind("2x2", "lax")(x[i], k[j]) for i, j in at], 1)
    for formulation in FAST:
        assert_close(jax.vmap(bind("2x2", formulation), in_axes, 1)(*arrays), expected)


def test_vmap_over_directions_of_a_hessian_product(x64):
    arrays, directions = operands("3x3"), operands("3x3", 3, seed=1)

    def product_with(formulation):
        gradient = functools.partial(gradients, bind("3x3", formulation))
        return lambda *tangents: jax.jvp(gradient, arrays, tangents)[1]

    expected = jax.jit(functools.partial(lax.map, lambda tangents: product_with("lax")(*tangents)))(directions)
    for formulation in FAST:
        assert_close(jax.jit(jax.vmap(product_with(formulation)))(*directions), expected)


def test_vmap_over_nothing():
    x, k = operands("3x3", dtype="float32")
    for formulation in FORMULATIONS:
        found = jax.vmap(bind("3x3", formulation), (None, 0))(x, jnp.zeros((0, *k.shape)))
        assert found.shape == (0, 2, 6, 6, 4)


# Loops, compilation and devices


@pytest.mark.parametrize("formulation", FAST)
def test_descent_in_a_scan_and_the_gradient_through_it(formulation, x64):
    geometry, num_steps = "3x3 stride 2, odd map", 3
    xs, _ = operands(geometry, num_steps)
    k = operands(geometry, seed=1)[1]

    def step(conv, k, x):
        return k - 0.01 * gradients(conv, x, k)[1], conv(x, k).sum()

    def scanned(k):
        k, sums = lax.scan(functools.partial(step, bind(geometry, formulation)), k, xs)
        return sums.sum() + (k**2).sum()

    def unrolled(k):
        total = 0.0
        for x in xs:
            k, value = step(bind(geometry, "lax"), k, x)
            total += value
        return total + (k**2).sum()

    assert_close(jax.jit(jax.value_and_grad(scanned))(k), jax.jit(jax.value_and_grad(unrolled))(k))


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("formulation", FAST)
def test_lax_map_and_eager_evaluation(formulation, x64):
    x, k = operands("2x2", 2)
    one = functools.partial(products, bind("2x2", formulation))
    expected = [reference("2x2")(*each) for each in zip(x, k, strict=True)]
    assert_close(one(x[0], k[0]), expected[0])
    with jax.disable_jit():
        assert_close(one(x[0], k[0]), expected[0])
    found = lax.map(lambda arrays: one(*arrays), (x, k))
    assert_close(found, jax.tree.map(lambda *each: jnp.stack(each), *expected))


def test_backward_products_are_plain_convolutions_or_none():
    x, k = operands("3x3 stride 2, odd map", dtype="float32")

    def labels(formulation):  # the dimension labels of every convolution in the program
        gradient = jax.jit(functools.partial(gradients, bind("3x3 stride 2, odd map", formulation)))
        text = gradient.lower(x, k).as_text()
        return {line.split("dim_numbers = ")[1].split(", window")[0] for line in text.splitlines() if "dim_num" in line}

    plain = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert labels("vjp") == {plain}
    assert labels("im2col") == set()
    assert labels("xla") > {plain}  # those which XLA leaves to naive code in a loop
    assert labels("auto") <= {plain}


def test_one_trace_for_equal_convolutions():
    assert conv_with("auto") == conv_with("auto")
    assert hash(conv_with("auto")) == hash(conv_with("auto"))
    assert conv_with("auto") != conv_with("vjp")
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(conv, x, k):
        traces.append(conv)
        return conv(x, k, (1, 1), "SAME", dimension_numbers=NHWC)

    x, k = operands("3x3", dtype="float32")
    for formulation in ("auto", "auto", "vjp", "auto", "vjp"):
        run(conv_with(formulation), x, k)
    assert traces == [conv_with("auto"), conv_with("vjp")]


@pytest.mark.parametrize("formulation", FAST)
def test_shard_map_over_the_batch(formulation, x64):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    x, k = operands("2x2", 2)

    def value_and_gradients(x, k):
        def loss(x, k):
            return jnp.sin(bind("2x2", formulation)(x, k)).sum()

        return jax.value_and_grad(lambda x, k: jax.vmap(loss)(x, k).sum() + loss(x[0], k[1]), (0, 1))(x, k)

    def shard(x, k):
        value, (to_inputs, to_kernels) = value_and_gradients(x, k)
        return lax.psum(value, "batch"), (to_inputs, to_kernels)  # kernels are the same everywhere: JAX sums theirs

    specs = (P(None, "batch"), P())
    found = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(P(), specs)))(x, k)
    assert_close(found, jax.jit(value_and_gradients)(x, k))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch(axis_type, x64):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
    x, k = operands("2x2")
    expected = reference("2x2")(x, k)
    x, k = jax.device_put(x, NamedSharding(mesh, P("batch"))), jax.device_put(k, NamedSharding(mesh, P()))
    for formulation in ("auto", *(FAST if axis_type == AxisType.Auto else ())):
        found = jax.jit(functools.partial(products, bind("2x2", formulation)))(x, k)
        assert found[1].sharding.spec[0] == "batch"
        assert_close(found, expected)


# Number formats


@pytest.mark.parametrize("formulation", ["auto", "xla", *FAST])
def test_float32(formulation):
    x, k = operands("3x3 stride 2, odd map", dtype="float32")
    found = jax.jit(functools.partial(products, bind("3x3 stride 2, odd map", formulation)))(x, k)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        expected = reference("3x3 stride 2, odd map")(*(np.asarray(each, "float64") for each in (x, k)))
    assert_close(found, expected, 100 * np.finfo("float32").eps)  # sums of some hundred terms, twice over


@pytest.mark.parametrize("formulation", FAST)
@pytest.mark.parametrize("dtype,bits", [("bfloat16", 8), ("float16", 11)])
def test_half_precision_rounds_once(formulation, dtype, bits):
    x, k = operands("3x3 stride 2, odd map", dtype=dtype)
    value, pullback = jax.vjp(bind("3x3 stride 2, odd map", formulation), x, k)
    found = [value, *pullback(value)]
    assert {each.dtype for each in found} == {jnp.dtype(dtype)}
    with jax.enable_x64(True):
        plain = bind("3x3 stride 2, odd map", "lax")
        expected, pullback = jax.vjp(plain, *(np.asarray(each, "float64") for each in (x, k)))
        expected = [expected, *pullback(np.asarray(value, "float64"))]
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, float), np.asarray(b)
        # Half a unit in the last place, and before that the sums in float32.
        assert (np.abs(a - b) <= 2.0**-bits * np.abs(b) + 1e-5 * np.abs(b).max()).all()


# Use in Flax


@pytest.mark.first_cases(3)
@pytest.mark.parametrize(
    "options,fast",
    [
        ({}, True),
        ({"strides": 2, "use_bias": False}, True),
        ({"padding": "CIRCULAR"}, True),
        ({"padding": "REFLECT", "kernel_dilation": 2}, True),
        ({"padding": 1}, True),
        ({"dtype": "bfloat16"}, True),
        ({"feature_group_count": 2}, False),
        ({"input_dilation": 2, "padding": 1}, False),
    ],
    ids=str,
)
def test_a_foreign_conv_layer(options, fast):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 2))
    plain = nn.Conv(4, (3, 3), **options)
    variables = plain.init(jax.random.key(1), x)
    expected = plain.apply(variables, x)
    for formulation in FORMULATIONS:
        layer = nn.Conv(4, (3, 3), **options, conv_general_dilated=conv_with(formulation))
        applies = fast and not (formulation == "winograd" and {"strides", "kernel_dilation"} & {*options})
        if formulation in (*FAST, "winograd") and not applies:
            with pytest.raises(ValueError, match=f"formulation '{formulation}' does not apply"):
                layer.init(jax.random.key(1), x)
            continue
        jax.tree.map(np.testing.assert_array_equal, layer.init(jax.random.key(1), x), variables)
        found = layer.apply(variables, x)
        assert found.dtype == expected.dtype
        # One rounding of the format, beside those of float32 sums.
        assert_close(found, expected, 1e-5 if found.dtype == jnp.float32 else 2.0**-7)
        primitive_is_used = "jaxbp_conv" in str(jax.make_jaxpr(layer.apply)(variables, x))
        assert primitive_is_used == (fast and formulation != "xla")


def test_a_foreign_conv_layer_on_one_signal_without_a_batch():
    x = jnp.arange(14.0).reshape(7, 2)
    plain, ours = nn.Conv(3, 3), nn.Conv(3, 3, conv_general_dilated=conv_with("im2col"))
    variables = plain.init(jax.random.key(0), x)
    assert_close(ours.apply(variables, x), plain.apply(variables, x), 1e-5)


# Choice, fallback and errors


@pytest.mark.parametrize(
    "expected,backend,lhs,rhs,options",
    [
        ("xla", "gpu", (64, 28, 28, 16), (3, 3, 16, 16), {}),
        ("xla", "tpu", (64, 8, 8, 16), (1, 1, 16, 16), {"num_kernels": 8}),
        ("vjp", "cpu", (64, 28, 28, 16), (3, 3, 16, 16), {}),  # patches of 29 MB
        ("vjp", "cpu", (64, 8, 8, 16), (3, 3, 16, 16), {}),
        ("im2col", "cpu", (64, 8, 8, 8), (3, 3, 8, 8), {}),  # patches of 1.2 MB
        ("vjp", "cpu", (64, 8, 8, 8), (3, 3, 8, 8), {"product": "kernel"}),
        ("vjp", "cpu", (256, 8, 8, 8), (3, 3, 8, 8), {}),  # 4.7 MB
        ("vjp", "cpu", (128, 8, 8, 8), (3, 3, 8, 8), {"itemsize": 8}),
        ("vjp", "cpu", (64, 8, 8, 8), (3, 3, 8, 8), {"strides": (2, 2)}),
        ("vjp", "cpu", (64, 28, 28, 16), (3, 3, 16, 16), {"strides": (2, 2), "product": "input"}),
        ("im2col", "cpu", (64, 28, 28, 16), (3, 3, 16, 16), {"strides": (2, 2), "product": "kernel"}),
        ("winograd", "cpu", (64, 14, 14, 32), (3, 3, 32, 32), {}),
        ("winograd", "cpu", (8, 4, 4, 512), (3, 3, 512, 512), {"product": "kernel"}),
        ("im2col", "cpu", (8, 4, 4, 512), (3, 3, 512, 512), {}),  # 32 tiles
        ("vjp", "cpu", (64, 14, 14, 31), (3, 3, 31, 32), {}),
        ("vjp", "cpu", (64, 14, 14, 32), (3, 3, 32, 32), {"dilation": (1, 2)}),
        ("vjp", "cpu", (64, 14, 14, 32), (5, 5, 32, 32), {}),
        ("im2col", "cpu", (64, 28, 28, 64), (1, 1, 64, 64), {}),
        ("im2col", "cpu", (64, 32, 32, 3), (3, 3, 3, 64), {}),
        ("im2col", "cpu", (64, 28, 28, 1), (5, 5, 1, 16), {}),
        ("im2col", "cpu", (500, 40, 1, 64), (3, 1, 64, 64), {}),
        ("im2col", "cpu", (500, 40, 64), (3, 64, 64), {}),
        ("im2col", "cpu", (8, 8, 8, 16), (3, 3, 16, 16), {"num_kernels": 8}),
        ("loop", "cpu", (64, 8, 8, 16), (3, 3, 16, 16), {"num_kernels": 8}),
        ("loop", "cpu", (64, 28, 28, 64), (1, 1, 64, 64), {"num_kernels": 2}),
    ],
)
def test_choice(expected, backend, lhs, rhs, options):
    assert choose(backend, lhs, rhs, (*lhs[:-1], rhs[-1]), **options) == expected


def test_auto_lowers_to_its_choice():
    def text(shape, *, stacked):
        conv = functools.partial(conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
        x, k = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct((3, 3, 16, 16), "float32")
        if stacked:
            conv = jax.vmap(conv)
            x, k = (jax.ShapeDtypeStruct((4, *each.shape), each.dtype) for each in (x, k))
        return jax.jit(conv).lower(x, k).as_text()

    small, large = (32, 8, 8, 16), (64, 28, 28, 16)
    assert "stablehlo.convolution" in text(small, stacked=False)
    assert "stablehlo.convolution" in text(large, stacked=False)
    assert "stablehlo.while" not in text((8, 8, 8, 16), stacked=True)
    assert "stablehlo.convolution" not in text((8, 8, 8, 16), stacked=True)  # a batch of matrix products
    assert "stablehlo.while" in text(large, stacked=True)
    assert "stablehlo.convolution" in text(large, stacked=True)


def test_auto_is_xla_off_the_cpu(monkeypatch):
    arrays = operands("3x3", dtype="float32")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "jaxbp_conv" not in str(jax.make_jaxpr(bind("3x3", "auto"))(*arrays))
    assert "jaxbp_conv" in str(jax.make_jaxpr(bind("3x3", "vjp"))(*arrays))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # on the host of an accelerator
        assert "jaxbp_conv" in str(jax.make_jaxpr(bind("3x3", "auto"))(*arrays))


@pytest.mark.parametrize(
    "message,options,dtype",
    [
        ("dimension_numbers must be channels last", {"dimension_numbers": None}, "float32"),
        ("dimension_numbers must be channels last", {"dimension_numbers": ("NHWC", "HWIO", "NCHW")}, "float32"),
        ("groups must be 1, got .* = 2", {"feature_group_count": 2}, "float32"),
        ("groups must be 1, got .* = 2", {"batch_group_count": 2}, "float32"),
        (r"lhs_dilation must be 1, got \(1, 2\)", {"lhs_dilation": (1, 2), "padding": ((0, 1), (1, 1))}, "float32"),
        ("operands and result must be of one floating dtype, got int32 -> int32", {}, "int32"),
        (
            "operands and result must be of one floating dtype, got bfloat16 -> float32",
            {"preferred_element_type": jnp.float32},
            "bfloat16",
        ),
    ],
)
def test_beyond_the_fast_formulations_auto_falls_back_and_names_refuse(message, options, dtype):
    x, k = jnp.arange(4 * 4 * 4 * 4, dtype=dtype).reshape(4, 4, 4, 4) % 5, jnp.ones((2, 2, 4, 4), dtype)
    if "feature_group_count" in options:
        k = k[:, :, :2]
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | options
    if options["dimension_numbers"] is None:
        k = k.transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(conv_general_dilated(x, k, **options), lax.conv_general_dilated(x, k, **options))
    for formulation in FAST:
        with pytest.raises(ValueError, match=f"'{formulation}' does not apply: {message}.*use formulation='auto'"):
            conv_general_dilated(x, k, **options, formulation=formulation)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("shape,expected", [((0, 5, 5, 2), (0, 3, 3, 4)), ((2, 1, 5, 2), (2, 0, 3, 4))], ids=str)
def test_empty_arrays(formulation, shape, expected):  # no images; a window that fits nowhere
    conv = functools.partial(conv_general_dilated, window_strides=(1, 1), padding="VALID", formulation=formulation)
    x, k = jnp.ones(shape), jnp.ones((3, 3, 2, 4))
    value, to_inputs, to_kernels = products(functools.partial(conv, dimension_numbers=NHWC), x, k)
    assert (value.shape, to_inputs.shape) == (expected, shape)
    assert not to_inputs.any()
    assert not to_kernels.any()


def test_shapes_known_only_later_are_exported():
    (size,) = jax.export.symbolic_shape("size")
    x, k = operands("3x3", dtype="float32")
    later = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    exported = jax.export.export(jax.jit(bind("3x3", "auto")))(later, k)
    assert_close(exported.call(x, k), bind("3x3", "lax")(x, k), 1e-5)
    with pytest.raises(ValueError, match="shapes must be known"):
        jax.export.export(jax.jit(bind("3x3", "vjp")))(later, k)


def test_errors():
    x, k = operands("3x3", dtype="float32")
    with pytest.raises(ValueError, match="unknown formulation 'fft': choose one of auto, xla, vjp, im2col"):
        conv_with("fft")
    with pytest.raises(ValueError, match="unknown formulation 'fft'"):
        conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, formulation="fft")
    with pytest.raises(TypeError, match="same dtypes"):
        conv_general_dilated(x, k.astype("bfloat16"), (1, 1), "SAME", dimension_numbers=NHWC, formulation="vjp")
    with pytest.raises(ValueError, match="window and window_strides"):
        conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=NHWC, formulation="vjp")
