"""What grids say: shares of variance against the textbook's sums of squares, boundaries against curves that are known."""

import itertools

import numpy as np
import pytest

from jaxbp import stats

GRID = list(itertools.product(range(3), range(4), range(2)))
LEVELS = {name: [cell[axis] for cell in GRID] for axis, name in enumerate("abc")}
ABOVE = (0.0, float("inf"))


def shares(parts):
    return {part.axes: part.share for part in parts}


def test_shares_are_the_sums_of_squares_of_the_textbook():
    values = np.random.default_rng(0).standard_normal((3, 4, 2))
    parts = stats.functional_anova(LEVELS, values.ravel(), errors=np.zeros(24))
    centred = values - values.mean()
    means = {axes: centred.mean(tuple(set(range(3)) - set(axes)), keepdims=True) for axes in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]}
    total, found = (centred**2).mean(), shares(parts)
    for axis, name in enumerate("abc"):
        assert found[name,] == pytest.approx((means[axis,] ** 2).mean() / total)
    for first, second in itertools.combinations(range(3), 2):
        both = means[first, second] - means[first,] - means[second,]
        assert found["abc"[first], "abc"[second]] == pytest.approx((both**2).mean() / total)
    assert sum(found.values()) == pytest.approx(1.0)


def test_an_additive_effect_is_found_where_cells_are_missing():
    effects = np.array([2.0 * a - b + 3 * c for a, b, c in GRID])
    kept = [number for number in range(24) if number not in (0, 7, 13)]
    parts = shares(stats.functional_anova({n: [v[k] for k in kept] for n, v in LEVELS.items()}, effects[kept], errors=np.zeros(21)))
    variances = {("a",): 4 * 2 / 3, ("b",): 1.25, ("c",): 9 / 4}
    for axes, variance in variances.items():
        assert parts[axes] == pytest.approx(variance / sum(variances.values()))
    assert sum(abs(share) for axes, share in parts.items() if axes not in variances) < 1e-12


def test_an_axis_that_another_decides_is_left_out_and_of_twins_the_first_stays():
    loss = [b // 2 for b in LEVELS["b"]]  # as a case has its loss
    effects = np.random.default_rng(0).standard_normal(24)
    alone = stats.functional_anova(LEVELS, effects, errors=np.ones(24))
    beside = stats.functional_anova({"loss": loss, **LEVELS, "again": LEVELS["a"]}, effects, errors=np.ones(24))
    assert shares(beside) == pytest.approx(shares(alone))


def test_an_axis_whose_levels_are_seen_once_decides_no_other():
    rng = np.random.default_rng(0)
    norm = [0, 1, 0, 1, 1, 0, 1, 0]
    levels = {"rate": list(range(8)), "norm": norm}
    parts = shares(stats.functional_anova(levels, 3.0 * np.array(norm) + 0.01 * rng.standard_normal(8), errors=np.ones(8)))
    assert ("norm",) in parts


def test_pairs_that_cells_do_not_tell_apart_do_not_enter():
    cells = [cell for cell in GRID if cell[0] < 2 or cell[2] == 0]  # at the last level of a there is but one of c
    levels = {name: [cell[axis] for cell in cells] for axis, name in enumerate("abc")}
    parts = shares(stats.functional_anova(levels, [float(a + 2 * b) for a, b, _ in cells], errors=np.zeros(20)))
    assert set(parts) == {("a",), ("b",), ("c",), ()}
    assert parts[()] == pytest.approx(0.0, abs=1e-12)


def test_noise_is_the_share_that_errors_alone_give():
    rng = np.random.default_rng(1)
    sizes = {}
    for _ in range(100):
        parts = stats.functional_anova(LEVELS, rng.standard_normal(24), errors=np.ones(24))
        for part in parts:
            sizes.setdefault(part.axes, []).append((part.share, part.noise))
    for values in sizes.values():
        share, noise = np.array(values).T
        scaled = share / noise  # the variance of a part over what errors give it, on average 1
        assert scaled.mean() == pytest.approx(1.0, abs=4 * scaled.std() / 10)


def test_effects_that_are_alike_explain_nothing():
    assert stats.functional_anova({"a": [0, 1]}, [1.0, 1.0], errors=[0.1, 0.1]) == []
    assert stats.functional_anova({"a": [0, 0]}, [1.0, 2.0], errors=[0.1, 0.1]) == []


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("shape_fn", [lambda x: x - 0.43, lambda x: 0.43**3 - x**3, lambda x: np.where(x < 0.43, -1.0, 1.0)])
@pytest.mark.parametrize("error", [0.02, 0.3])
def test_the_interval_covers_the_boundary_of_any_monotone_effect(shape_fn, error):
    points, rng, covered, trials = np.linspace(0, 1, 8), np.random.default_rng(2), 0, 20
    for _ in range(trials):
        effects = shape_fn(points) + error * rng.standard_normal(8)
        place = stats.boundary(points, effects, errors=np.full(8, error), region=ABOVE)
        covered += place is None or place.low <= 0.43 <= place.high  # no boundary is claimed where none is found
    assert covered >= 0.85 * trials  # 95 % less two standard errors


def test_a_boundary_has_a_side_and_may_lie_beyond_the_grid():
    place = stats.boundary([1, 2, 3], [0.5, 0.1, -0.02], errors=[0.1, 0.1, 0.1], region=ABOVE)
    assert place.holds_below
    assert (place.high, place.at) == (np.inf, pytest.approx(2 + 0.1 / 0.12))
    assert stats.boundary([1, 2, 3], [0.5, 0.1, 0.2], errors=[0.1] * 3, region=ABOVE) is None
    within = stats.boundary([1, 2, 3], [0.9, 0.3, 0.1], errors=[0.01] * 3, region=(-0.5, 0.5))
    assert not within.holds_below
    assert (within.low, within.high) == (1, 2)
    with pytest.raises(ValueError, match="increasing points, got"):
        stats.boundary([2, 1], [0.1, 0.2], errors=[1, 1], region=ABOVE)
