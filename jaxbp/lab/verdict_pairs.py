"""The verdicts of one claim in two runs, seed by seed: what changed in the case that stands for the claim.

Two runs of one study are not independent where they have seeds in common, since a seed decides data and random numbers. So the values
of a seed are compared with each other wherever both runs have noted them (`jaxbp.claims.CaseVerdict`); a run of other seeds is independent.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxbp import stats
from jaxbp.claims import CaseVerdict, Verdict
from jaxbp.report import format_interval
from jaxbp.stats import Interval


class Change(NamedTuple):
    """A claim in two runs.

    Attributes:
      case: the name of the case that is compared; "" where the runs have no case in common, and each is shown by its own.
      a, b: the intervals of the two runs.
      difference: b - a, None where there is none.
      basis: how the difference was found, or what stands in its place, in words.
    """

    case: str
    a: Interval | None
    b: Interval | None
    difference: Interval | None
    basis: str

    @property
    def told(self) -> str:
        """The difference and its basis in words."""
        return f"{format_interval(self.difference)}, {self.basis}" if self.difference else self.basis


def compared(a: Verdict, b: Verdict) -> Change:
    """What changed from ``a`` to ``b`` in the case that stands for ``a``, else in the one that stands for ``b``."""
    of_a, of_b = ({case.case: case for case in verdict.cases} for verdict in (a, b))
    shared = [case.case for verdict in (a, b) for case in verdict.cases if case.interval and case.interval == verdict.interval]
    name = next((case for case in shared if case in of_a and case in of_b), None)
    if name is None:
        independent = difference(a.interval, b.interval)
        return Change("", a.interval, b.interval, independent, "of different cases, unpaired" if independent else "-")
    one, other = of_a[name], of_b[name]
    if basis := _sameness(a, b, one, other):
        return Change(name, one.interval, other.interval, None, basis)
    seeds = [dict(case.by_seed).keys() for case in (one, other)]
    if not seeds[0].isdisjoint(seeds[1]) and (paired := paired_difference(one, other)):
        return Change(name, one.interval, other.interval, paired, f"paired, {paired.num_seeds} seeds")
    independent = difference(one.interval, other.interval)
    others = all(seeds) and seeds[0].isdisjoint(seeds[1])
    return Change(name, one.interval, other.interval, independent, "other seeds" if others else "unpaired" if independent else "-")


def _sameness(a: Verdict, b: Verdict, one: CaseVerdict, other: CaseVerdict) -> str:
    """What is equal in both runs, in words; "" if something differs."""
    if one.by_seed and other.by_seed:
        values, others = dict(one.by_seed), dict(other.by_seed)
        common = values.keys() & others.keys()
        if not common or any(values[seed] != others[seed] for seed in common):
            return ""
        if len(common) < max(len(values), len(others)):
            return f"identical for the {len(common)} seeds of both"
        alike = {case.case: case.by_seed for case in a.cases} == {case.case: case.by_seed for case in b.cases}
        return "identical" if alike or len(a.cases) < 2 else "identical in this case"
    numbers = [[(case.case, case.num_seeds, case.interval) for case in verdict.cases] for verdict in (a, b)]
    return "the same numbers" if numbers[0] == numbers[1] else ""


def difference(a: Interval | None, b: Interval | None) -> Interval | None:
    """b - a of two independent estimates, with an interval whose half width is the root of the sum of both squared ones.

    That is exact for normal means with known variances, and a little too narrow for few seeds. None where one has no interval.
    """
    if a is None or b is None:
        return None
    estimate = b.estimate - a.estimate
    below = math.hypot(b.estimate - b.low, a.high - a.estimate)
    above = math.hypot(b.high - b.estimate, a.estimate - a.low)
    seeds = min(a.num_seeds, b.num_seeds)
    return Interval(estimate, estimate - below, estimate + above, min(a.confidence, b.confidence), seeds, "independent runs")


def paired_difference(a: CaseVerdict, b: CaseVerdict) -> Interval | None:
    """b - a over the seeds that both have: the mean of the differences, or the median where medians were judged.

    None where fewer than two seeds have a value in both, or where the estimates are neither.
    """
    values, others = dict(a.by_seed), dict(b.by_seed)
    pairs = [(values[seed], others[seed]) for seed in values if seed in others and None not in (values[seed], others[seed])]
    if len(pairs) < 2:
        return None
    before, after = np.array(pairs, float).T
    changes = after - before
    try:
        if np.isin([before, after], (0, 1)).all():
            share = stats.mean_interval(changes, resolution=1.0)
            return Interval(share.estimate, max(share.low, -1.0), min(share.high, 1.0), share.confidence, share.num_seeds, "paired")
        if _is(np.mean, a, b):
            return stats.t_interval(changes)
        return stats.median_interval(changes) if _is(np.median, a, b) else None
    except stats.SampleError:
        return None


def _is(statistic: Callable, *cases: CaseVerdict) -> bool:
    """Whether the estimates of cases are a statistic of their values."""
    return all(case.interval and _near(statistic(_judged(case)), case.interval.estimate) for case in cases)


def _judged(case: CaseVerdict) -> Sequence[float]:
    return [math.nan if value is None else value for _, value in case.by_seed[: case.num_seeds]]


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
