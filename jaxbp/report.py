"""Figures and tables of a study, and the one HTML page that carries them.

The page is a single file: figures are embedded, and no script, font or other resource is fetched. It fits a
phone, a dark screen and paper. Verdicts come first, each with its interval drawn against the region in which
the claim holds. Figures are plain `matplotlib.figure.Figure` objects made without pyplot, so no backend is
chosen or changed.

>>> from jaxbp import evidence, report
>>> report.format_interval(evidence.t_interval([0.931, 0.934, 0.929, 0.937]))
'0.9328 [0.9272, 0.9383]'
"""

import base64
import contextlib
import html
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; yellow is left out as it vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MAX_SVG_BYTES = 250_000  # a figure beyond this goes into the page as PNG

_STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.dpi": 170,
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "jaxbp",  # element ids are random without it
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw with the house style inside this context; settings and backend are as before after it."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=PALETTE)}):
        yield


def figure(
    num_rows: int = 1, num_cols: int = 1, *, width: float = 6.4, height: float | None = None, **subplots
) -> "tuple[Figure, Any]":
    """Make a styled figure of ``width`` inches and its axes; ``subplots`` as for ``plt.subplots``.

    Legends, titles and texts added later follow `style` only inside its context. A phone shrinks figures to
    its width: beyond 7 inches text becomes too small there, so stack panels in rows.
    """
    from matplotlib.figure import Figure

    with style():
        fig = Figure(figsize=(width, height or num_rows * min(4.2, 0.62 * width / num_cols + 0.6)))
        return fig, fig.subplots(num_rows, num_cols, **subplots)


def save_figure(fig: "Figure", folder: str | os.PathLike, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.png`` and ``.svg``, the same bytes for the same figure; close it, return paths."""
    if Path(name).name != name:
        raise ValueError(f"a figure's name is a file name without its ending, got {name!r}")
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with style():
            fig.savefig(buffer, format=kind, metadata=metadata)
        paths.append(Path(folder) / f"{name}.{kind}")
        evidence.write_atomically(paths[-1], buffer.getvalue())
    if pyplot := sys.modules.get("matplotlib.pyplot"):  # a figure of the caller's own may be registered there
        pyplot.close(fig)
    return paths[0], paths[1]


def panels(titles: Sequence[str], **subplots) -> "tuple[Figure, list[Axes]]":
    """A figure of small panels, two a row, one for each title, and their axes; ``subplots`` as for `figure`."""
    fig, axes = figure(-(-len(titles) // 2), 2, width=7.0, squeeze=False, **subplots)
    shown, hidden = list(axes.ravel())[: len(titles)], list(axes.ravel())[len(titles) :]
    for ax in hidden:
        ax.set_visible(False)
    with style():
        for ax, title in zip(shown, titles, strict=True):
            ax.set_title(title, fontsize=9)
    return fig, shown


def save_all(
    makers: Mapping[str, "Callable[[], tuple[Figure, str, str]]"], folder: str | os.PathLike
) -> "list[Picture]":
    """Draw figures by name, each by a function that returns it with its alternative text and caption, and save them."""
    pictures = []
    for name, make in makers.items():
        fig, alternative, caption = make()
        pictures.append(Picture(save_figure(fig, folder, name)[1], alternative, caption))
    return pictures


def _summary(values: np.ndarray, log: bool) -> tuple[float, float, float]:
    """Mean and 95 % t interval, on a log axis those of the logarithms; one value has no interval."""
    values = np.log(values) if log else values
    if len(values) < 2:
        ends = [values[0] if len(values) else math.nan] * 3
    else:
        interval = evidence.t_interval(values)
        ends = [interval.estimate, interval.low, interval.high]
    return tuple(np.exp(ends) if log else ends)


def _usable(values: np.ndarray, log: bool) -> np.ndarray:
    return np.isfinite(values) & ((values > 0) | (not log))


@style()
def strip(ax: "Axes", groups: Mapping[str, ArrayLike], *, log: bool = False) -> None:
    """Draw one row a group: a dot for every seed, the mean and its 95 % t interval (of logs with ``log``).

    Values that cannot be drawn (not finite; not positive with ``log``) are counted beside the group's name.
    """
    names = []
    for row, (label, values) in enumerate(groups.items()):
        values = np.asarray(values, np.float64)
        shown = values[_usable(values, log)]
        colour = PALETTE[row % len(PALETTE)]
        golden = (np.arange(len(shown)) * 0.618034 + 0.5) % 1  # spreads evenly, the same in every run
        jitter = 0.3 * (golden - 0.5)
        ax.scatter(shown, row + jitter, s=22, color=colour, alpha=0.55, linewidths=0)
        if len(shown):
            mean, low, high = _summary(shown, log)
            ax.plot([low, high], [row + 0.32] * 2, color=colour, linewidth=3, solid_capstyle="butt")
            ax.plot(mean, row + 0.32, "o", color=colour, markeredgecolor="white", markersize=7)
        missing = len(values) - len(shown)
        names.append(f"{label}\n({missing} of {len(values)} not shown)" if missing else label)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.5)  # first group on top
    ax.grid(False, axis="y")
    if log:
        ax.set_xscale("log")
        _label_log_axis(ax.xaxis)


def _label_log_axis(axis: Any) -> None:
    """Label decades only, or, within less than one and a half, also twos and fives: never labels that overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < 10**1.5:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@style()
def curve(ax: "Axes", x: ArrayLike, values: ArrayLike, *, label: str | None = None, log: bool = False) -> None:
    """Draw ``values`` (num_seeds, num_points) over ``x``: a thin line a seed, the mean, its 95 % band.

    Seeds that are missing at a point (not finite; not positive with ``log``) are left out there. The colour
    is the next of the axes' cycle.
    """
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    usable = _usable(values, log)
    points = [_summary(column[keep], log) for column, keep in zip(values.T, usable.T, strict=True)]
    mean, low, high = np.array(points).T
    (line,) = ax.plot(x, mean, "o-", label=label, markersize=4)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    lines = np.where(usable, values, np.nan).T
    ax.plot(x, lines, color=line.get_color(), linewidth=0.7, alpha=0.35)
    if log:
        ax.set_yscale("log")


@style()
def paired_lines(ax: "Axes", before: ArrayLike, after: ArrayLike, *, labels: tuple[str, str]) -> None:
    """Join the two values of every seed, both (num_seeds,); lines that do not rise are dashed."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    for left, right in zip(before, after, strict=True):
        rises = right > left
        ax.plot([0, 1], [left, right], "o-" if rises else "o--", color=PALETTE[not rises], alpha=0.75)
    ax.set_xticks([0, 1], labels)
    ax.set_xlim(-0.25, 1.25)
    ax.set_title(f"higher with {labels[1]} in {np.count_nonzero(after > before)} of {len(before)} seeds")


def format_number(value: float | None, digits: int = 3) -> str:
    """Write ``value`` to so many significant digits, whole numbers in full; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, Integral) or not math.isfinite(value):
        return str(value)
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if -4 <= exponent < 6:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 1}e}"


def format_interval(interval: evidence.Interval | None) -> str:
    """Write "estimate [low, high]" with two digits of the interval's half width; a dash for None."""
    if interval is None:
        return "–"
    ends = (interval.estimate, interval.low, interval.high)
    half, largest = (interval.high - interval.low) / 2, max(map(abs, ends))
    decimals = 1 - math.floor(math.log10(half)) if half else 4
    if decimals <= 6 and largest < 1e6:
        estimate, low, high = (f"{end:.{max(decimals, 0)}f}" for end in ends)
    else:
        digits = 1 + decimals + math.floor(math.log10(largest)) if half else 4
        estimate, low, high = (f"{end:.{min(max(digits - 1, 1), 8)}e}" for end in ends)
    return f"{estimate} [{low}, {high}]"


def mean_cell(values: ArrayLike, otherwise: str) -> evidence.Interval | str:
    """The mean over seeds with its 95 % t interval, for a table; or how many of ``values`` are not finite, called ``otherwise``."""
    values = np.asarray(values)
    if num_bad := np.count_nonzero(~np.isfinite(values)):
        return f"{num_bad} of {len(values)} {otherwise}"
    return evidence.t_interval(values)


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers are written to three digits, an Interval as such, None as a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str

    def __post_init__(self):
        lengths = {len(row) for row in self.rows} - {len(self.columns)}
        if lengths:
            raise ValueError(f"every row needs {len(self.columns)} cells, one per column, got {sorted(lengths)}")

    def to_html(self) -> str:
        """Write the table in a box that scrolls sideways where it does not fit."""
        by_column = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        kinds = [' class="number"' if cells and all(map(_is_number, cells)) else "" for cells in by_column]
        head = _row("th", ' scope="col"', self.columns, kinds)
        body = "".join(_row("td", "", map(_written, row), kinds) for row in self.rows)
        caption = _escape(self.caption)
        return (
            f"<figure><figcaption>{caption}</figcaption>"
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
            f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div></figure>"
        )


def _row(tag: str, attributes: str, texts: Iterable[str], kinds: Sequence[str]) -> str:
    cells = (f"<{tag}{attributes}{kind}>{_escape(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, Real | evidence.Interval) and not isinstance(value, bool))


def _written(value: Any) -> str:
    if not _is_number(value):
        return str(value)
    return format_interval(value) if isinstance(value, evidence.Interval) else format_number(value)


@dataclass(frozen=True)
class Picture:
    """A saved figure (a path of `save_figure`), ``alt`` for those who cannot see it, and a caption."""

    path: str | os.PathLike
    alt: str
    caption: str

    def to_html(self) -> str:
        """Embed the figure as an image: the ids in several inline SVGs of matplotlib would collide."""
        path, bitmap = Path(self.path), Path(self.path).with_suffix(".png")
        if path.suffix == ".svg" and path.stat().st_size > MAX_SVG_BYTES and bitmap.exists():
            path = bitmap
        kind = {".svg": "svg+xml", ".png": "png"}.get(path.suffix)
        if kind is None:
            raise ValueError(f"a picture is a .svg or .png file, got {path}")
        data = base64.b64encode(path.read_bytes()).decode()
        return (
            f'<figure><img src="data:image/{kind};base64,{data}" alt="{_escape(self.alt)}">'
            f"<figcaption>{_escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A heading over ``blocks``: text (a paragraph each), Table, Picture, or Sections one level down."""

    title: str
    blocks: "Sequence[str | Table | Picture | Section]"

    def __post_init__(self):
        if isinstance(self.blocks, str):
            raise TypeError(f"blocks is a list, got the text {self.blocks[:30]!r}: put brackets around it")

    def to_html(self, level: int = 2) -> str:
        """Write the section with a heading of ``level``."""
        parts = [f"<section><h{level}>{_escape(self.title)}</h{level}>"]
        for block in self.blocks:
            if isinstance(block, Section):
                parts.append(block.to_html(min(level + 1, 6)))
            else:
                parts.append(f"<p>{_escape(block)}</p>" if isinstance(block, str) else block.to_html())
        return "\n".join([*parts, "</section>"])


# Outcomes are told apart without colour: tick in a disc, cross in a square, dash in a ring.
_BADGES = {
    "supported": '<circle cx="8" cy="8" r="8"/><path d="M4.3 8.3 7 11l4.8-5.6"/>',
    "contradicted": '<rect width="16" height="16" rx="2"/><path d="M4.8 4.8l6.4 6.4M11.2 4.8l-6.4 6.4"/>',
    "undecided": '<circle cx="8" cy="8" r="7" class="ring"/><path d="M4.8 8h6.4" class="ring"/>',
}


def _badge(outcome: evidence.Outcome) -> str:
    icon = f'<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{_BADGES[outcome]}</svg>'
    return f'<span class="badge {outcome}">{icon}{outcome}</span>'


def _drawn_interval(interval: evidence.Interval, rule: evidence.Rule, outcome: str, span: tuple) -> str:
    """Draw an interval over the region of its rule (shaded, dashed ends) on an axis that covers ``span``."""
    width, height, middle = 220, 26, 13
    start, stop = span
    margin = 0.08 * (stop - start) or max(abs(start), 1.0)  # everything at one point: any scale will do

    def x(value: float) -> str:
        fraction = (value - start + margin) / (stop - start + 2 * margin)
        return f"{width * min(max(fraction, 0.0), 1.0):.1f}"

    lower, upper = rule.region
    left, right = x(lower), x(upper)
    low, high, estimate = x(interval.low), x(interval.high), x(interval.estimate)
    ends = [f"M{x(end)} 0V{height}" for end in (lower, upper) if math.isfinite(end)]
    caps = f"M{low} {middle - 5}v10M{high} {middle - 5}v10M{low} {middle}H{high}"
    return (
        f'<svg class="interval {outcome}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="95 % interval from {format_number(interval.low)} to {format_number(interval.high)}">'
        f'<path class="axis" d="M0 {middle}H{width}"/>'
        f'<rect class="holds" x="{left}" width="{float(right) - float(left):.1f}" height="{height}"/>'
        f'<path class="limit" d="{"".join(ends)}"/><path class="bar" d="{caps}"/>'
        f'<circle cx="{estimate}" cy="{middle}" r="4.5"/></svg>'
    )


def _result(result: evidence.Verdict | evidence.Case, rule: evidence.Rule, span: tuple) -> str:
    seeds = f'<span class="small">{result.num_seeds} seed{"s" * (result.num_seeds != 1)}</span>'
    if result.interval is None:
        return f"no interval {seeds}"
    drawn = _drawn_interval(result.interval, rule, result.verdict, span)
    return f'{drawn}<span class="numbers">{format_interval(result.interval)}</span> {seeds}'


def _verdict_rows(verdict: evidence.Verdict) -> str:
    claim, rule = verdict.claim, verdict.claim.rule
    found = [result.interval for result in (verdict, *verdict.cases) if result.interval]
    ends = [*rule.region, *(end for interval in found for end in (interval.low, interval.high))]
    ends = [end for end in ends if math.isfinite(end)]
    span = min(ends), max(ends)
    paper = "–" if claim.paper_value is None else _escape(claim.paper_value)
    note = f'<p class="small">{_escape(verdict.note)}</p>' if verdict.note else ""
    cells = (
        f'<td class="claim"><p>{_escape(claim.statement)} '
        f'<span class="small">({_escape(claim.source)})</span></p>'
        f'<p class="small">Holds if {_escape(rule.text(claim.measure))}.</p>'
        f'{note}</td><td class="paper" data-label="Paper">{paper}</td>'
        f'<td class="ours" data-label="Ours">{_result(verdict, rule, span)}{_case_list(verdict, span)}</td>'
        f'<td class="outcome">{_badge(verdict.verdict)}</td>'
    )
    return f'<tr><th scope="row">{_escape(claim.id)}</th>{cells}</tr>'


def _case_list(verdict: evidence.Verdict, span: tuple) -> str:
    if len(verdict.cases) < 2:
        return ""
    rows = "".join(
        f"<li><p><span>{_escape(case.case)}</span> {_badge(case.verdict)}</p>"
        f"{_result(case, verdict.claim.rule, span)}</li>"
        for case in verdict.cases
    )
    return f"<details><summary>All {len(verdict.cases)} cases</summary><ul>{rows}</ul></details>"


def _verdict_table(verdicts: Sequence[evidence.Verdict]) -> str:
    counts = [sum(v.verdict == outcome for v in verdicts) for outcome in _BADGES]
    tally = ", ".join(f"{count} {outcome}" for count, outcome in zip(counts, _BADGES, strict=True))
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Id", "Claim", "Paper", "Ours", "Verdict"))
    return (
        f"<section><h2>Verdicts</h2><p>{len(verdicts)} claim{'s' * (len(verdicts) != 1)}: {tally}. "
        "A bar is a 95 % interval over seeds, its dot the estimate; the claim holds on the shaded side of a "
        "dashed line. These limits were fixed before the run.</p>"
        f'<table class="verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(map(_verdict_rows, verdicts))}</tbody></table></section>"
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    verdicts: Iterable[evidence.Verdict],
    sections: Iterable[Section] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a study's page: ``lead`` paragraph, verdicts, ``sections``, and ``settings``, which may nest."""
    verdicts = list(verdicts)
    body = [f"<header><h1>{_escape(title)}</h1><p>{_escape(lead)}</p></header><main>"]
    body += [_verdict_table(verdicts)] if verdicts else []
    body += [section.to_html() for section in sections]
    if settings:
        pairs = "".join(f"<dt>{_escape(key)}</dt><dd>{_escape(value)}</dd>" for key, value in _flat(settings))
        body.append(f"<section><h2>Settings</h2><details><summary>Every setting</summary><dl>{pairs}</dl></details>")
        body.append("</section>")
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_escape(title)}</title><style>{_CSS}</style></head>\n<body>"
    )
    evidence.write_atomically(path, "\n".join([page, *body, "</main></body></html>\n"]).encode("utf-8", "replace"))


_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --line: #d5d9de; --paper: #fff;
  --supported: #007a57; --contradicted: #c04a00; --undecided: #59626d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a5aeb8; --line: #3a424b;
  --paper: #14181c; --supported: #3ecf9b; --contradicted: #ff9152; --undecided: #a5aeb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 72rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; }
h3, h4, h5, h6 { font-size: 1.1rem; margin: 1.75rem 0 .4rem; }
p, figcaption { max-width: 46rem; }
header p { font-size: 1.1rem; }
.small, figcaption { color: var(--soft); font-size: .875rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { font-size: .875rem; color: var(--soft); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.scroll { overflow-x: auto; margin-top: .5rem; }
.scroll table { width: max-content; }
.scroll td { max-width: 22rem; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { margin-top: .5rem; }
.verdicts { width: 100%; }
.verdicts p { margin: 0 0 .3rem; }
.claim { min-width: 18rem; }
.numbers, .badge, .ours .small, .verdicts th { white-space: nowrap; }
.badge { display: inline-flex; align-items: center; gap: .4rem; font-weight: 600; }
.icon { width: 1rem; height: 1rem; flex: none; fill: currentColor; }
.icon path { fill: none; stroke: var(--paper); stroke-width: 2; }
.icon .ring { fill: none; stroke: currentColor; stroke-width: 2; }
.supported { color: var(--supported); }
.contradicted { color: var(--contradicted); }
.undecided { color: var(--undecided); }
.interval { display: block; width: 13.75rem; max-width: 100%; margin: .2rem 0; fill: currentColor; }
.interval path { fill: none; stroke: currentColor; stroke-width: 2.5; }
.interval .axis { stroke: var(--line); stroke-width: 1; }
.interval .holds { fill: var(--soft); opacity: .18; }
.interval .limit { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 3 2; }
summary { cursor: pointer; padding: .3rem 0; }
.verdicts summary { font-size: .875rem; }
.verdicts ul { list-style: none; margin: 0; padding: 0; }
.verdicts li { padding: .5rem 0; border-top: 1px solid var(--line); font-size: .9rem; }
.verdicts li p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.ours { width: 17rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1.5rem;
  font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 56rem) {
  .verdicts, .verdicts tbody, .verdicts th, .verdicts td { display: block; border: 0; padding: 0; }
  .verdicts thead { display: none; }
  .verdicts tr { display: grid; gap: .5rem 1.5rem; padding: 1rem 0; border-top: 1px solid var(--line);
    grid-template: "id outcome" "claim claim" "paper ours" / minmax(4.5rem, auto) 1fr; }
  .verdicts .outcome { grid-area: outcome; justify-self: end; }
  .verdicts .claim { grid-area: claim; min-width: 0; }
  .verdicts .paper { max-width: 6rem; }
  .verdicts .ours { width: auto; min-width: 0; }
  .verdicts td[data-label]::before { content: attr(data-label); display: block; color: var(--soft);
    font-size: .8rem; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --supported: #007a57;
    --contradicted: #c04a00; --undecided: #444; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; }
  figure, tr, li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  .scroll table { width: 100%; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
