"""Error rates under optional stopping, by simulation of whole sequences of seeds. Slow: it takes a minute."""

import functools
import math

import numpy as np
import pytest
import scipy.stats

from jaxbp import claims, stats
from jaxbp.claims import Above, Claim
from jaxbp.stats import Looks

NUM_SEQUENCES = 10_000
LOOKS = Looks(10, most=160)
CLAIM = Claim("S0.a", "It is.", "nowhere", "gain", Above(0.0))
SHARE = Claim("S0.b", "It mostly is.", "nowhere", "share", Above(0.5))
# At most 5 % in truth leave at most 5 % + 3 standard errors in a sample.
MOST = NUM_SEQUENCES * 0.05 + 3 * math.sqrt(NUM_SEQUENCES * 0.05 * 0.95)


def running(values):
    """Mean and standard deviation of the first n values, for every n from 2 on; (sequences, n)."""
    counts = np.arange(1, values.shape[1] + 1)
    means = values.cumsum(1) / counts
    squares = np.maximum((values**2).cumsum(1) - counts * means**2, 0)
    return means[:, 1:], np.sqrt(squares[:, 1:] / (counts[1:] - 1)), counts[1:]


def decisions_by_looks(values, limit=0.0):
    """The first decision by the geometric looks, 1 above the limit, -1 below, 0 for none, and the seeds that it took."""
    means, spreads, _ = running(values)
    decided, taken = np.zeros(len(values), int), np.full(len(values), LOOKS.most)
    for look, size in enumerate(LOOKS.sizes):
        half = scipy.stats.t.ppf((1 + LOOKS.confidence(look)) / 2, size - 1) * spreads[:, size - 2] / math.sqrt(size)
        distance = means[:, size - 2] - limit
        new = (decided == 0) & (np.abs(distance) > half)
        decided[new], taken[new] = np.sign(distance[new]), size
    return decided, taken


def normal(rng, effect=0.0):
    return rng.normal(effect, 1.0, (NUM_SEQUENCES, LOOKS.most))


LAWS = {
    "normal": normal,
    "t with 3 degrees of freedom": lambda rng: rng.standard_t(3, (NUM_SEQUENCES, LOOKS.most)),
    "Laplace": lambda rng: rng.laplace(size=(NUM_SEQUENCES, LOOKS.most)),
    "uniform": lambda rng: rng.uniform(-1, 1, (NUM_SEQUENCES, LOOKS.most)),
    "Cauchy": lambda rng: rng.standard_cauchy((NUM_SEQUENCES, LOOKS.most)),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_looks_decide_wrongly_in_one_run_of_twenty_at_most(law):
    decided, _ = decisions_by_looks(LAWS[law](np.random.default_rng(0)))
    wrong = np.count_nonzero(decided)
    print(f"{law}: {wrong / NUM_SEQUENCES:.4f} by looks")
    assert wrong <= MOST


@pytest.mark.slow
def test_what_breaks_the_looks_is_a_skewed_law():
    """Exponential seeds about their mean, and events of a rare large value: as the documentation says."""
    rng = np.random.default_rng(1)
    decided, _ = decisions_by_looks(rng.exponential(size=(NUM_SEQUENCES, LOOKS.most)) - 1)
    rare, _ = decisions_by_looks((rng.uniform(size=(NUM_SEQUENCES, LOOKS.most)) < 0.02) * 1.0 + 0.01 * normal(rng), 0.02)
    print(f"exponential {np.mean(decided != 0):.3f}, rare {np.mean(rare != 0):.3f}")
    assert 0.05 < np.mean(decided != 0) < 0.20
    assert np.mean(rare != 0) > 0.5


@pytest.mark.slow
def test_the_rule_in_vectors_is_the_rule_of_judge():
    rng = np.random.default_rng(2)
    values = rng.normal(rng.uniform(-0.5, 0.5, (60, 1)), 1.0, (60, LOOKS.most))
    words = {1: "supported", -1: "contradicted", 0: "undecided"}
    for row, decision, taken in zip(values, *decisions_by_looks(values), strict=True):
        verdict = claims.judge(CLAIM, {"a": row}, looks=LOOKS)
        assert (verdict.verdict, verdict.num_seeds) == (words[decision], taken)


@pytest.mark.slow
def test_power_and_cost_of_looks():
    for effect, least, most_seeds in ((0.25, 0.3, 150), (0.5, 0.97, 75), (1.0, 1.0, 25), (2.0, 1.0, 13)):
        decided, taken = decisions_by_looks(normal(np.random.default_rng(3), effect))
        print(f"effect {effect}: right {np.mean(decided == 1):.3f}, wrong {np.mean(decided == -1):.4f}, seeds {taken.mean():.0f}")
        assert np.mean(decided == 1) >= least - 1e-3
        assert taken.mean() < most_seeds


@pytest.mark.slow
def test_the_t_sequence_holds_after_every_seed():
    means, spreads, counts = running(normal(np.random.default_rng(4)))
    a = (np.sqrt(1 + counts) / 0.05) ** (2 / counts)
    with np.errstate(invalid="ignore"):
        half = np.where(a < 1 + counts, spreads * np.sqrt((counts - 1) * (a - 1) / (counts * (1 - a / (1 + counts)))), np.inf)
    example = normal(np.random.default_rng(4))[0, :30]
    assert stats.anytime_t_interval(example).high == pytest.approx(means[0, 28] + half[0, 28])
    wrong = (np.abs(means) > half).any(1).sum()
    print(f"t sequence, every seed: {wrong / NUM_SEQUENCES:.4f}")
    assert wrong <= MOST
    naive = np.abs(means) > scipy.stats.t.ppf(0.975, counts - 1) * spreads / np.sqrt(counts)
    print(f"naive, every seed from 5: {naive[:, 3:].any(1).mean():.3f}")
    assert naive[:, 3:].any(1).mean() > 0.3  # what this is for


@functools.cache
def share_decision(count, size, confidence):
    interval = stats.proportion_interval(count, size, confidence=confidence)
    return (interval.low > 0.5) - (interval.high < 0.5)


@functools.cache
def share_excluded(count, size, share):
    return math.exp(stats.anytime._log_mixture(count, size, (1.0, 1.0), share)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_shares_by_looks_and_after_every_seed(share):
    events = np.random.default_rng(5).uniform(size=(NUM_SEQUENCES, LOOKS.most)) < share
    counts = events.cumsum(1)
    wrong = np.zeros(NUM_SEQUENCES, bool)
    for look, size in enumerate(LOOKS.sizes):
        intervals = [stats.proportion_interval(k, size, confidence=LOOKS.confidence(look)) for k in range(size + 1)]
        missed = np.array([not interval.low <= share <= interval.high for interval in intervals])
        wrong |= missed[counts[:, size - 1]]
    tables = [[share_excluded(k, n, share) for k in range(n + 1)] for n in range(1, LOOKS.most + 1)]
    bets = np.any([np.array(table)[counts[:, n]] for n, table in enumerate(tables)], axis=0)
    print(f"share {share}: looks {wrong.mean():.4f}, beta-binomial after every seed {bets.mean():.4f}")
    assert wrong.sum() <= MOST
    assert bets.sum() <= MOST


@pytest.mark.slow
def test_one_wrong_case_among_several_is_as_rare():
    """Seven cases on the threshold that share half of their noise: some case is decided in at most one run of twenty."""
    rng, wrong, num_runs = np.random.default_rng(6), 0, 300
    for _ in range(num_runs):
        values = (rng.normal(size=(1, LOOKS.most)) + rng.normal(size=(7, LOOKS.most))) / math.sqrt(2)
        verdict = claims.judge(CLAIM, dict(enumerate(values)), looks=LOOKS)
        wrong += any(case.verdict != "undecided" for case in verdict.cases)
    print(f"some of seven cases: {wrong / num_runs:.3f}")
    assert wrong <= 0.05 * num_runs + 3 * math.sqrt(0.05 * 0.95 * num_runs)


@pytest.mark.slow
def test_events_are_judged_by_looks():
    verdict = claims.judge(SHARE, {"a": [1] * 10}, interval_fn=stats.event_interval, looks=LOOKS)
    assert (verdict.verdict, verdict.look) == ("supported", 0)
    verdict = claims.judge(SHARE, {"a": [1] * 8 + [0] * 2}, interval_fn=stats.event_interval, looks=LOOKS)
    assert (verdict.verdict, verdict.is_open) == ("undecided", True)
