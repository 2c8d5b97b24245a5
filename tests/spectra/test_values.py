"""Singular values against the dense matrix that `lax.conv_general_dilated` makes, column by column."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import spectra
from jaxbp.linalg import golub_kahan
from jaxbp.spectra import Geometry


def matrix_of(kernel, spatial, *, strides=1, padding="circular", dilation=1, groups=1):
    """The operator as a matrix, from the map of each unit input; nothing of `jaxbp.spectra` is used."""
    axes = len(spatial)
    channels = kernel.shape[-2] * groups
    size = int(np.prod(spatial)) * channels
    units = jnp.eye(size, dtype=kernel.dtype).reshape(size, *spatial, channels)
    strides, dilation = ((v,) * axes if isinstance(v, int) else v for v in (strides, dilation))
    if padding == "circular":
        reach = [(w - 1) * d for w, d in zip(kernel.shape, dilation, strict=False)]
        units = jnp.pad(units, [(0, 0), *((0, r) for r in reach), (0, 0)], mode="wrap")
        padding = "VALID"
    labels = ("NHWC", "HWIO", "NHWC") if axes == 2 else ("NWC", "WIO", "NWC")
    padding = {"zero": "SAME"}.get(padding, padding) if isinstance(padding, str) else padding
    maps = lax.conv_general_dilated(
        units, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=labels
    )
    return np.asarray(maps).reshape(size, -1)


def kernel_of(*shape, dtype=np.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_close(result, matrix, rtol):
    """Relative for each value; zeros (a strided 1x1 window has some) to the rounding of the largest."""
    expected = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol * 1e-4 * expected[0])


# (kernel, map, options): every kernel and stride of the issue, groups, depthwise, dilation, rectangles, signals, windows beyond the map
CASES = [
    *(((w, w, 2, 3), (6, 6), {"strides": s}) for w, s in itertools.product((1, 2, 3, 5), (1, 2, 3))),
    *(((w, 3, 4), (12,), {"strides": s}) for w, s in itertools.product((1, 2, 3, 5), (1, 2, 3))),
    ((3, 3, 2, 6), (6, 4), {"groups": 2, "strides": (3, 2)}),
    ((3, 3, 1, 4), (4, 4), {"groups": 4}),
    ((2, 3, 5, 2), (4, 6), {"dilation": (2, 1)}),
    ((3, 2, 2), (9,), {"dilation": 4, "strides": 3}),
    ((5, 5, 2, 2), (3, 4), {}),
    ((1, 1, 3, 3), (1, 1), {}),
]


@pytest.mark.first_cases(4)
@pytest.mark.parametrize("shape, spatial, options", CASES)
def test_circular_is_the_dense_operator(x64, shape, spatial, options):
    kernel = kernel_of(*shape)
    result = spectra.singular_values(kernel, spatial, **options)
    assert result.how == "exact"
    matrix = matrix_of(kernel, spatial, **options)
    assert_close(result.values, matrix, 1e-10)
    np.testing.assert_allclose(result.frobenius, np.linalg.norm(matrix), rtol=1e-12)


@pytest.mark.parametrize("shape, spatial, options", CASES[4:10] + CASES[-6:-4])
@pytest.mark.first_cases(2)
def test_single_precision(shape, spatial, options):
    kernel = kernel_of(*shape, dtype=np.float32)
    result = spectra.singular_values(kernel, spatial, **options)
    assert result.values.dtype == jnp.float32
    assert_close(result.values, matrix_of(kernel, spatial, **options), 1e-4)


ZERO = [
    *(((w, w, 2, 3), (6, 5), {"strides": s, "padding": "zero"}) for w, s in itertools.product((1, 2, 3, 5), (1, 2, 3))),
    ((3, 2, 4), (9,), {"padding": "VALID", "strides": 2}),
    ((3, 3, 1, 4), (5, 5), {"padding": "zero", "groups": 2}),
    ((4, 2, 3), (8,), {"padding": [(0, 3)], "dilation": 2}),
    ((2, 2, 2, 2), (4, 4), {"padding": [(2, 1), (0, 0)]}),
]


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("shape, spatial, options", ZERO)
def test_zero_padding_is_exact_when_dense_and_bounded_when_circular(x64, shape, spatial, options):
    kernel = kernel_of(*shape)
    matrix = matrix_of(kernel, spatial, **options)
    expected = np.linalg.svd(matrix, compute_uv=False)
    dense = spectra.singular_values(kernel, spatial, **options)
    assert dense.how == "exact"
    assert_close(dense.values, matrix, 1e-10)
    circular = spectra.singular_values(kernel, spatial, method="circular", **options)
    if circular.how == "exact":  # no tap leaves the map
        assert shape[0] == 1
        assert_close(circular.values, matrix, 1e-10)
        return
    assert circular.how == "circular"
    room = 1e-9 * expected[0]
    assert np.all(circular.lower <= expected + room)
    assert np.all(circular.upper >= expected - room)
    assert np.linalg.norm(circular.values - expected) <= circular.gap + room
    assert abs(circular.values.sum() - expected.sum()) <= circular.nuclear_gap + room
    np.testing.assert_allclose(circular.frobenius, np.linalg.norm(matrix), rtol=1e-12)


def test_the_bound_on_the_largest_value_is_tight_on_large_maps(x64):
    result = spectra.singular_values(kernel_of(3, 3, 2, 2), (32, 32), padding="zero", method="circular")
    assert result.values[0] <= result.upper[0] <= 1.01 * result.values[0]
    ends = spectra.singular_values(kernel_of(3, 3, 2, 2), (32, 32), padding="zero", method="extremes", num_smallest=0)
    assert ends.values[0] <= result.upper[0]


def test_the_bound_on_the_largest_value_by_hand(x64):
    # y_i = x_{i-1} - x_{i+1} on 6 pixels has the values 2 cos(k pi / 7). Its symbol 2 |sin| is sqrt 3 at most at the 6 frequencies of
    # the torus, 2 between them, and that factor, 1 / cos(pi / 6), is the one allowed for.
    kernel = jnp.array([1.0, 0.0, -1.0]).reshape(3, 1, 1)
    circular, dense = (spectra.singular_values(kernel, (6,), padding="zero", method=m) for m in ("circular", "dense"))
    np.testing.assert_allclose([circular.values[0], circular.upper[0]], [3**0.5, 2], rtol=1e-12)
    np.testing.assert_allclose(dense.values[0], 2 * np.cos(np.pi / 7), rtol=1e-12)
    assert circular.values[0] < dense.values[0] < circular.upper[0]


def test_what_a_symbol_hides_between_the_frequencies_of_the_torus(x64):
    # Taps 1 and -1 three coarse pixels apart, on 9 of them: |1 - exp(-3i t)| has its maxima, 2, half-way between the frequencies, where it
    # is the square root of 3. With stride 2 the taps are 6 pixels apart; windows of 7 and 8 hold the same.
    kernel = jnp.array([1.0, 0.0, 0.0, -1.0])
    seen = np.abs(np.fft.fft(kernel, 9)).max()
    np.testing.assert_allclose(seen, 3**0.5, rtol=1e-12)
    for window, spatial, strides in ((4, 9, 1), (7, 18, 2), (8, 18, 2)):
        geometry = Geometry.of((window, 1, 1), (spatial,), strides=strides, padding="zero")
        assert geometry.torus == (9,)
        np.testing.assert_allclose(geometry.overshoot(), 2 / seen, rtol=1e-12)
    both = Geometry.of((4, 8, 1, 1), (9, 18), strides=(1, 2), padding="zero")
    np.testing.assert_allclose(both.overshoot(), (2 / seen) ** 2, rtol=1e-12)
    assert Geometry.of((5, 1, 1), (4,)).overshoot() == np.inf  # taps beyond one another's period


@pytest.mark.parametrize("strides, outputs", [pytest.param(1, 3, marks=pytest.mark.slow), (2, 2), (1, 2)])
@pytest.mark.first_cases(1)
def test_extremes_by_golub_and_kahan(x64, strides, outputs):
    kernel, options = kernel_of(3, 3, 3, outputs), {"strides": strides, "padding": "zero"}
    expected = np.linalg.svd(matrix_of(kernel, (6, 6), **options), compute_uv=False)
    ends = spectra.singular_values(kernel, (6, 6), method="extremes", num_largest=3, num_smallest=2, num_steps=200, **options)
    assert ends.how == "extremes"
    np.testing.assert_allclose(ends.values, np.r_[expected[:3], expected[-2:]], rtol=1e-9)
    few = spectra.singular_values(kernel, (6, 6), method="extremes", num_smallest=0, num_steps=8, **options)
    assert few.lower[0] <= expected[0]
    assert np.min(np.abs(expected - few.values[0])) <= few.upper[0] - few.values[0]  # a true value within the residual


def test_residuals_are_residuals(x64):
    A = kernel_of(20, 12)
    result = golub_kahan.golub_kahan(lambda x: A @ x, kernel_of(12, seed=1), num_steps=7, num_largest=2)
    np.testing.assert_allclose(result.left @ A, result.values[:, None] * result.right, atol=result.residuals.max() * 1.001)
    norms = np.linalg.norm(result.left @ A - result.values[:, None] * result.right, axis=1)
    np.testing.assert_allclose(norms, result.residuals, rtol=1e-6)


def test_dense_layers_and_the_gram_route():
    kernel = kernel_of(30, 12, dtype=np.float32)
    result = spectra.singular_values(kernel, route="gram")
    np.testing.assert_allclose(result.values, np.linalg.svd(kernel, compute_uv=False), rtol=1e-5)
    # Condition 1e5: a float32 SVD is off by 1e-7 of the largest, the float64 Gram matrix is not.
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(8, 8)))[0] for s in (1, 2))
    stiff = (left * np.geomspace(1, 1e-5, 8)) @ right
    exact = np.linalg.svd(stiff.astype(np.float32).astype(float), compute_uv=False)
    result = jax.jit(functools.partial(spectra.singular_values, route="gram"))(jnp.asarray(stiff, jnp.float32))
    assert result.values.dtype == jnp.float32
    np.testing.assert_allclose(result.values, exact, rtol=1e-5)


def test_batches_vmap_and_jit_agree(x64):
    kernels = kernel_of(2, 3, 3, 3, 2, 4)
    options = {"spatial": (4, 4), "strides": 2}
    whole = spectra.singular_values(kernels, **options)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda k: spectra.singular_values(k, **options))))(kernels)
    alone = spectra.singular_values(kernels[1, 2], **options)
    assert whole.values.shape == (2, 3, 16)
    assert whole.frobenius.shape == (2, 3)
    np.testing.assert_allclose(mapped.values, whole.values, rtol=1e-12)
    np.testing.assert_allclose(whole.values[1, 2], alone.values, rtol=1e-12)


@pytest.mark.parametrize("padding, method", [("circular", "auto"), ("zero", "dense"), ("zero", "extremes")])
@pytest.mark.first_cases(1)
def test_gradients_against_finite_differences(x64, padding, method):
    kernel, direction = kernel_of(3, 3, 2, 2), kernel_of(3, 3, 2, 2, seed=5)
    steps = {"num_steps": 32} if method == "extremes" else {}

    def measure(k):
        result = spectra.singular_values(k, (4, 4), padding=padding, method=method, **steps)
        return result.values[0] if method == "extremes" else spectra.nuclear_rank(result) + result.values[3] ** 2

    slope = jnp.vdot(jax.grad(measure)(kernel), direction)
    difference = (measure(kernel + 1e-6 * direction) - measure(kernel - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.slow
def test_the_nuclear_norm_has_finite_gradients_at_repeated_and_zero_values(x64):
    def penalty(kernel):
        return spectra.nuclear_norm(spectra.singular_values(kernel, (4, 4)))

    # A multiple of a permutation of pixels and channels: all values are equal, the gradient of c -> 2 * 16 c is exact.
    delta = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(3.0 * jnp.eye(2))
    gradient = jax.grad(penalty)(delta)
    np.testing.assert_allclose(gradient, jnp.zeros_like(delta).at[1, 1].set(16 * jnp.eye(2)), atol=1e-10)
    assert not jax.grad(penalty)(jnp.zeros((3, 3, 2, 2))).any()
    for measure in (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank, spectra.frobenius_norm):
        assert not jax.grad(lambda k, f=measure: f(spectra.singular_values(k, (4, 4))))(0 * delta).any()
        assert float(measure(jnp.zeros(4))) == 0
    rank_one = jnp.zeros((2, 2)).at[0, 0].set(2.0)
    assert jax.grad(lambda k: spectra.nuclear_norm(spectra.singular_values(k)))(rank_one).tolist() == [[1, 0], [0, 0]]


def test_the_rounding_of_zeros_has_no_gradient(x64):
    # U diag(3, 2, 0, 0, 0) V': zeros come out as rounding, along directions that mean nothing. What is left is U V' of the rest.
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(size, 2)))[0] for s, size in ((1, 7), (2, 5)))
    matrix = jnp.asarray((left * [3.0, 2.0]) @ right.T)
    result = spectra.singular_values(matrix)
    assert (result.values[2:] > 0).any()
    gradient = jax.grad(lambda m: spectra.nuclear_norm(spectra.singular_values(m)))(matrix)
    np.testing.assert_allclose(gradient, left @ right.T, atol=1e-12)


def test_ranks_by_hand():
    values = jnp.array([3.0, 4.0, 0.0])
    assert float(spectra.nuclear_rank(values)) == pytest.approx(7 / 5)
    assert float(spectra.stable_rank(values)) == pytest.approx(25 / 16)
    share = np.array([3, 4]) / 7
    assert float(spectra.entropy_rank(values)) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert int(spectra.numerical_rank(values)) == 2
    assert int(spectra.numerical_rank(values, 0.8)) == 1
    noise = jnp.finfo(values.dtype).eps * jnp.array([1.0, 3.0, 5.0])  # of four values, four times epsilon is noise
    assert int(spectra.numerical_rank(jnp.append(noise, 1.0))) == 2


@pytest.mark.parametrize(
    "message, wrong",
    list(
        {
            "strides .* must divide the map": lambda k: spectra.singular_values(k, (5, 5), strides=2),
            "must have shape .* got": lambda k: spectra.singular_values(k[0, 0], (5, 5)),
            "padding must be": lambda k: spectra.singular_values(k, (4, 4), padding="mirror"),
            "one pair for each": lambda k: spectra.singular_values(k, (4, 4), padding=[(1, 1)]),
            "groups must divide": lambda k: spectra.singular_values(k, (4, 4), groups=3),
            "method must be one of": lambda k: spectra.singular_values(k, (4, 4), method="lanczos"),
            "route must be one of": lambda k: spectra.singular_values(k, (4, 4), route="qr"),
            "strides must be a positive integer": lambda k: spectra.singular_values(k, (4, 4), strides=(1, 2, 3)),
            "extents must be at least 1, got map .0, 4.": lambda k: spectra.singular_values(k, (0, 4)),
            "reaches over": lambda k: spectra.singular_values(k, (2, 2), padding="VALID"),
            "the matrix would have shape": lambda k: spectra.singular_values(k, (99, 99), padding="zero", method="dense"),
            "must be at most num_steps": lambda k: golub_kahan.golub_kahan(lambda x: x, jnp.ones(3), num_steps=1),
        }.items()
    ),
)
def test_misuse_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong(jnp.ones((3, 3, 2, 4)))


def test_geometry_completes_itself():
    assert Geometry.of((3, 3, 4, 8), (7, 7), strides=2, padding="zero").torus == (4, 4)
    assert Geometry.of((1, 1, 4, 8), (7, 7), strides=2, padding="zero").circular


def test_ranks_of_nan_are_nan():
    values = jnp.array([2.0, jnp.nan, 1.0])
    for rank in (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank):
        assert jnp.isnan(rank(values))


def test_the_gap_of_a_small_tap_survives_float32():
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0).at[0, 0].set(1e-4)
    result = spectra.singular_values(kernel, (8, 8), padding="zero", method="circular")
    assert float(result.gap) == pytest.approx(1e-4 * 15**0.5, rel=1e-5)  # a corner tap falls off for 15 of 64 pixels
