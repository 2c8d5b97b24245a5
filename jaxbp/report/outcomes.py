"""The verdicts on a page: claim, belief, what the paper found, the interval drawn against its rule, outcome.

The cases of a claim share an axis, so that they compare by eye; the interval that stands for the claim has one of its own, as a
single wild case would leave nothing to see of it.
"""

import math
from collections.abc import Sequence

from jaxbp import claims, stats
from jaxbp.report.text import escape, format_interval, format_number, link, plural, prose

# Outcomes are told apart without colour: tick in a disc, cross in a square, dash in a ring.
BADGES = {
    "supported": '<circle cx="8" cy="8" r="8"/><path d="M4.3 8.3 7 11l4.8-5.6"/>',
    "contradicted": '<rect width="16" height="16" rx="2"/><path d="M4.8 4.8l6.4 6.4M11.2 4.8l-6.4 6.4"/>',
    "undecided": '<circle cx="8" cy="8" r="7" class="ring"/><path d="M4.8 8h6.4" class="ring"/>',
}
EXPLANATION = (
    "A bar is a 95 % interval over seeds, its dot the estimate. The claim holds in the shaded region, whose limits were fixed before "
    "the run: it is supported if the whole bar lies inside, contradicted if the whole bar lies outside, else undecided."
)
_COLUMNS = ("Id", "Claim", "Theory or folklore", "The paper", "Measured", "Verdict")
_Result = claims.Verdict | claims.CaseVerdict
_WIDTH, _HEIGHT, _MIDDLE = 220, 26, 13  # of a drawing, without the numbers under it


def badge(outcome: claims.Outcome) -> str:
    """The outcome as a word with its sign."""
    icon = f'<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{BADGES[outcome]}</svg>'
    return f'<span class="badge {outcome}">{icon}{outcome}</span>'


def tally(verdicts: Sequence[claims.Verdict]) -> str:
    """Count the outcomes, as in "3 claims: 1 supported, 2 contradicted, 0 undecided"."""
    counts = [sum(verdict.verdict == outcome for verdict in verdicts) for outcome in BADGES]
    words = ", ".join(f"{count} {outcome}" for count, outcome in zip(counts, BADGES, strict=True))
    return f"{plural(len(verdicts), 'claim')}: {words}"


def table(verdicts: Sequence[claims.Verdict], name: str) -> str:
    """A body of rows for each claim, whose anchor is its id. Roles are spelled out since a phone lays the cells out anew."""
    head = "".join(f'<th scope="col" role="columnheader">{column}</th>' for column in _COLUMNS)
    return (
        f'<table class="verdicts" role="table" aria-label="{escape(name)}">'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f"{''.join(map(_rows, verdicts))}</table>"
    )


def _rows(verdict: claims.Verdict) -> str:
    claim = verdict.claim
    note = f'<p class="small">{prose(verdict.note)}</p>' if verdict.note else ""
    paper = "not tested" if claim.paper_value is None else escape(claim.paper_value)
    cells = {
        "claim": f"<p>{prose(claim.statement)}</p>"
        f'<p class="small">{escape(claim.source)}</p>'
        f'<p class="small">Holds if {prose(claim.rule.text(claim.measure))}.</p>',
        "belief": f"<p>{escape(claim.belief) or '–'}</p>",
        "paper": f"<p>{paper}</p>",
        "ours": f"{_result(verdict, claim.rule, [verdict])}{note}",
        "outcome": badge(verdict.verdict),
    }
    labels = dict(zip(cells, _COLUMNS[1:], strict=True))
    written = "".join(f'<td class="{kind}" role="cell" data-label="{labels[kind]}">{cell}</td>' for kind, cell in cells.items())
    head = f'<th scope="row" role="rowheader">{link(claim.id, claim.id)}</th>'
    return f'<tbody id="{escape(claim.id)}" role="rowgroup"><tr role="row">{head}{written}</tr>{_cases(verdict)}</tbody>'


def _cases(verdict: claims.Verdict) -> str:
    """A row as wide as the table with all cases of a claim, folded."""
    if len(verdict.cases) < 2:
        return ""
    rows = "".join(
        f"<li><p><span>{escape(case.case)}</span> {badge(case.verdict)}</p>{_result(case, verdict.claim.rule, verdict.cases)}</li>"
        for case in verdict.cases
    )
    folded = f"<details><summary>All {len(verdict.cases)} cases of {escape(verdict.claim.id)}</summary><ul>{rows}</ul></details>"
    return f'<tr role="row"><td class="cases" role="cell" colspan="6" aria-colspan="6">{folded}</td></tr>'


def _result(result: _Result, rule: claims.Rule, beside: Sequence[_Result]) -> str:
    """A result drawn and in numbers, on the axis of those ``beside`` it."""
    seeds = f'<span class="small">{plural(result.num_seeds, "seed")}</span>'
    if result.interval is None:
        return f"<p>no interval {seeds}</p>"
    ends = [end for other in beside if other.interval for end in (other.interval.low, other.interval.high)]
    ends += [end for end in rule.region if math.isfinite(end)]
    drawn = drawn_interval(result.interval, rule, result.verdict, (min(ends), max(ends)))
    return f'{drawn}<p><span class="numbers">{format_interval(result.interval)}</span> {seeds}</p>'


def drawn_interval(interval: stats.Interval, rule: claims.Rule, outcome: claims.Outcome, span: tuple[float, float]) -> str:
    """Draw an interval over the region of its rule (shaded, dashed ends with their numbers) on an axis that covers ``span``."""
    start, stop = span
    margin = 0.15 * (stop - start) or max(abs(start), 1.0)  # everything at one point: any scale will do

    def x(value: float) -> float:
        fraction = (value - start + margin) / (stop - start + 2 * margin)
        return round(_WIDTH * min(max(fraction, 0.0), 1.0), 1)

    lower, upper = rule.region
    limits = [end for end in (lower, upper) if math.isfinite(end)]
    low, high = x(interval.low), x(interval.high)
    dashes = "".join(f"M{x(end)} 0V{_HEIGHT}" for end in limits)
    bar = f"M{low} {_MIDDLE - 5}v10M{high} {_MIDDLE - 5}v10M{low} {_MIDDLE}H{high}"
    return (
        f'<svg class="interval {outcome}" viewBox="0 0 {_WIDTH} {_HEIGHT + 15}" role="img" '
        f'aria-label="{_told(interval, limits, rule)}">'
        f'<rect class="holds" x="{x(lower)}" width="{x(upper) - x(lower):.1f}" height="{_HEIGHT}"/>'
        f'<path class="axis" d="M0 {_MIDDLE}H{_WIDTH}"/>'
        f'<path class="limit" d="{dashes}"/><path class="bar" d="{bar}"/>'
        f'<circle cx="{x(interval.estimate)}" cy="{_MIDDLE}" r="4.5"/>{_labels([(x(end), f"{end:.4g}") for end in limits])}</svg>'
    )


def _told(interval: stats.Interval, limits: Sequence[float], rule: claims.Rule) -> str:
    """The drawing in words."""
    side = "between" if len(limits) == 2 else "above" if math.isfinite(rule.region[0]) else "below"
    ends = " and ".join(f"{end:.4g}" for end in limits)
    low, high = format_number(interval.low), format_number(interval.high)
    return f"95 % interval from {low} to {high}; the claim holds {side} {ends}"


def _labels(places: Sequence[tuple[float, str]]) -> str:
    """The numbers at the limits; two that would touch become one, from the lower to the upper."""
    if len(places) == 2 and places[1][0] - places[0][0] < 7 * max(len(text) for _, text in places):
        places = [((places[0][0] + places[1][0]) / 2, f"{places[0][1]} to {places[1][1]}")]
    labels = []
    for at, text in places:
        half = 3.5 * len(text)  # about, in the drawing's 11 pixels
        middle = min(max(at, half), _WIDTH - half)
        labels.append(f'<text x="{middle:.1f}" y="{_HEIGHT + 11}">{text}</text>')
    return "".join(labels)
