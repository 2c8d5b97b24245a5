"""The verdicts on a page: how many of each outcome, and each interval drawn against its rule.

The cases of a claim share an axis, so that they compare by eye; the interval that stands for the claim has one of its own, as a
single wild case would leave nothing to see of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from jaxbp import claims, stats
from jaxbp.report.text import format_interval, format_number, plural

AGAINST = "against its paper"
_Result = claims.Verdict | claims.CaseVerdict


def explanation(*, fixed: bool = True) -> str:
    """How to read a verdict, where the rules were ``fixed`` before the run or not."""
    before = ", whose limits were fixed before the run" if fixed else ""
    return (
        f"A bar is a 95 % interval over seeds, its dot the estimate. The claim holds in the shaded region{before}: a case is supported if "
        "the whole bar lies inside, contradicted if the whole bar lies outside, else undecided. A claim is supported if every case is, "
        "contradicted if some case is and none is supported, mixed if some cases are each. Where not all cases are supported, each is "
        "judged at the level 1 - 0.05 / number of cases. A claim is not tested where a premise of it is not supported, and void where a "
        "control of its study has failed."
    )


def tally(verdicts: Sequence[claims.Verdict]) -> str:
    """Count the outcomes, as in "3 claims: 1 supported, 2 contradicted, 0 undecided"; of the others those that are there."""
    counts = {outcome: sum(verdict.verdict == outcome for verdict in verdicts) for outcome in get_args(claims.Outcome)}
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count or outcome in get_args(claims.Decision))
    return f"{plural(len(verdicts), 'claim')}: {words}"


def facts(verdict: claims.Verdict) -> list[str]:
    """What else there is to know about a verdict, a sentence each: looks, the effect over cases."""
    sentences = []
    if verdict.looks and verdict.look is not None:
        level = f"{100 * verdict.looks.confidence(verdict.look):.4g} %"
        sizes = verdict.looks.sizes
        sentences.append(f"Look {verdict.look + 1} of at most {len(sizes)}, at {sizes[verdict.look]} seeds and {level}.")
    if verdict.summary:
        summary = verdict.summary
        new = f"; a new case {text_of_ends(summary.prediction)}" if summary.prediction else ""
        scale = " of arcsin √share" if summary.scale else ""
        sentences.append(f"Over cases: {format_interval(summary.mean)}, spread between cases {format_number(summary.tau, 2)}{scale}{new}.")
    return sentences


def beside_paper(verdict: claims.Verdict) -> str:
    """Whether a decided outcome is what the paper says; empty where the paper says nothing, or where nothing is decided."""
    if verdict.claim.paper_value is None:
        return ""
    return {"supported": "as its paper says", "contradicted": AGAINST}.get(verdict.verdict, "")


def control_caveat(result: claims.ControlVerdict) -> str:
    """What a negative control that has passed does not say: it passes unless it is refuted; "" where nothing is left open."""
    rule, lower, upper = result.control.rule, *result.control.rule.region
    cases = [case for case in result.verdict.cases if case.verdict != "supported"]
    if result.control.kind != "negative" or not result.passed or not cases:
        return ""
    unknown = [case.case for case in cases if case.interval is None]
    told = [f"no interval in {', '.join(unknown)}"] if unknown else []
    measured = [(rule.slack(case.interval), case.interval, case) for case in cases if case.interval]
    if measured:
        _, interval, case = min(measured, key=lambda entry: entry[0])
        farthest = interval.high if interval.high - upper > lower - interval.low else interval.low
        told.append(f"{plural(case.num_seeds, 'seed')} cannot rule out {format_number(farthest)} in {case.case}")
    power = result.verdict.power
    chance = f" {_chance_inside(rule, power)}" if power else ""
    return f"Not refuted, no more: {'; '.join(told)}.{chance}"


def _chance_inside(rule: claims.Rule, power: claims.Power) -> str:
    truth, chance = rule.inside(power.effect), f"{100 * power.chance:.0f} %"
    return f"Were it {truth:.4g} in truth, the chance of an interval inside the region is {chance}; {_needed(power)} seeds make it 80 %."


def power_sentence(power: claims.Power) -> str:
    """The chance of finding the smallest effect worth finding, and the seeds that it takes."""
    chance = f"{100 * power.chance:.0f} %"
    return f"Chance of finding an effect of {format_number(power.effect)} beyond the limit: {chance}; {_needed(power)} seeds make it 80 %."


def _needed(power: claims.Power) -> str:
    return "more than 2000" if power.seeds_needed is None else str(power.seeds_needed)


def text_of_ends(interval: stats.Interval) -> str:
    """Both ends of an interval, as `format_interval` writes them."""
    return format_interval(interval).partition(" ")[2]


@dataclass(frozen=True)
class IntervalDrawing:
    """An interval over the region of its rule, in pixels from the left.

    Attributes:
      outcome: of the verdict.
      low, high, estimate: of the interval.
      region: where the region in which the claim holds begins, and its width.
      limits: the finite ends of the region.
      labels: where the numbers at the limits stand (their middle), and the numbers.
      description: the drawing in words.
    """

    outcome: claims.Outcome
    low: float
    high: float
    estimate: float
    region: tuple[float, float]
    limits: Sequence[float]
    labels: Sequence[tuple[float, str]]
    description: str

    width: ClassVar[int] = 220
    height: ClassVar[int] = 26  # without the numbers under it


def draw_result(result: _Result, rule: claims.Rule, beside: Sequence[_Result]) -> IntervalDrawing:
    """Draw a result that has an interval on an axis that covers the intervals ``beside`` it and the limits of the rule."""
    ends = [end for other in beside if other.interval for end in (other.interval.low, other.interval.high)]
    ends += [end for end in rule.region if math.isfinite(end)]
    assert result.interval is not None
    return draw_interval(result.interval, rule, result.verdict, (min(ends), max(ends)))


def draw_interval(interval: stats.Interval, rule: claims.Rule, outcome: claims.Outcome, span: tuple[float, float]) -> IntervalDrawing:
    """Draw an interval on an axis that covers ``span``."""
    start, stop = span
    margin = 0.15 * (stop - start) or max(abs(start), 1.0)  # everything at one point: any scale will do

    def x(value: float) -> float:
        fraction = (value - start + margin) / (stop - start + 2 * margin)
        return round(IntervalDrawing.width * min(max(fraction, 0.0), 1.0), 1)

    lower, upper = rule.region
    limits = [end for end in (lower, upper) if math.isfinite(end)]
    return IntervalDrawing(
        outcome=outcome,
        low=x(interval.low),
        high=x(interval.high),
        estimate=x(interval.estimate),
        region=(x(lower), x(upper) - x(lower)),
        limits=[x(end) for end in limits],
        labels=_labels([(x(end), f"{end:.4g}") for end in limits]),
        description=_describe(interval, limits, rule),
    )


def _describe(interval: stats.Interval, limits: Sequence[float], rule: claims.Rule) -> str:
    side = "between" if len(limits) == 2 else "above" if math.isfinite(rule.region[0]) else "below"
    ends = " and ".join(f"{end:.4g}" for end in limits)
    low, high = format_number(interval.low), format_number(interval.high)
    return f"{100 * interval.confidence:.4g} % interval from {low} to {high}; the claim holds {side} {ends}"


def _labels(places: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The numbers at the limits; two that would touch become one, from the lower to the upper."""
    if len(places) == 2 and places[1][0] - places[0][0] < 7 * max(len(text) for _, text in places):
        places = [((places[0][0] + places[1][0]) / 2, f"{places[0][1]} to {places[1][1]}")]
    labels = []
    for at, text in places:
        half = 3.5 * len(text)  # about, in the drawing's 11 pixels
        labels.append((min(max(at, half), IntervalDrawing.width - half), text))
    return labels
