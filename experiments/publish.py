"""Tables and pictures of the claims in README and guide, from a run of the whole lab; never by hand.

``python -m experiments.publish RUN`` copies the verdicts of a finished ``python -m experiments`` and what is worth knowing about it to
``experiments/published``, which is kept under version control, draws the pictures there, and writes the tables between the markers of the
README (a claim a study) and of the guide's page of results (all claims). Without RUN tables and pictures are made anew from what was
published last.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxbp import lab
from jaxbp.runtime.outside_text import read_json

if TYPE_CHECKING:
    from jaxbp.claims import Verdict

FOLDER = Path(__file__).parent / "published"
README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "guide" / "results.md"
HEADLINES = ("S1.a", "S2.b", "S3.b", "S4.c", "S5.b", "S6.a", "S7.c", "S8.d", "S9.a", "S10.a")  # a study's claim that the README shows
BEGIN, END = "<!-- begin: python -m experiments.publish -->", "<!-- end -->"
_FACTS = ("started", "python", "packages", "devices", "git_commit")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Publish a run of the whole lab in README and guide, or make tables and pictures anew from what was published."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a finished `python -m experiments`."""


def main() -> None:
    """Parse the command line, publish."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.publish")
    with lab.guarded(FOLDER):
        from jaxbp import claims
        from jaxbp.runtime.files import write_atomically

        if arguments.run:
            take(arguments.run)
        verdicts = claims.read_verdicts(FOLDER / "verdicts.json")
        headlines = [verdict for verdict in verdicts if verdict.claim.id in HEADLINES]
        draw(verdicts, "verdicts")
        draw(headlines, "headlines")
        for page, text in ((README, summary(headlines, facts())), (RESULTS, table(verdicts, facts()))):
            write_atomically(page, with_table(page, text).encode())
        print(f"{len(verdicts)} claims are in {README}, {RESULTS} and {FOLDER}")


def take(run: Path) -> None:
    """Copy verdicts, preset and versions of a run to the published ones; every study's own, whatever the lab's page shows now.

    Raises:
      SettingsError: it is no finished run of the whole lab.
    """
    from experiments.__main__ import NAMES
    from jaxbp import claims
    from jaxbp.lab.verdict_changes import read
    from jaxbp.runtime.files import write_atomically

    files = ("config.json", "verdicts.json")
    lacking = [name for name in NAMES if not all((run / name / file).exists() for file in files)]
    if lacking:
        raise lab.SettingsError(
            f"{run} is no finished run of the whole lab, it has no verdicts of {', '.join(lacking)}: name the folder that "
            "`python -m experiments` wrote, without --only"
        )
    verdicts = [verdict for name in NAMES for verdict in read(run / name).values()]
    by_time = sorted((_config(run / name / "config.json") for name in NAMES), key=lambda config: config["started"])
    first = by_time[0]
    known = {name: first[name] for name in _FACTS if name in first}
    known["git_commit"] = ", ".join(dict.fromkeys(str(config.get("git_commit")) for config in by_time))
    known["preset"] = first["settings"]["preset"]
    if known["preset"] == "smoke":
        raise lab.SettingsError(f"{run} is a smoke run, which decides nothing: publish one of another preset")
    controls = [control for name in NAMES for control in claims.read_controls(run / name / "verdicts.json")]
    claims.write_verdicts(FOLDER / "verdicts.json", verdicts, controls)
    write_atomically(FOLDER / "facts.json", (json.dumps(known, indent=2) + "\n").encode())


def _config(path: Path) -> dict[str, Any]:
    """What is in the config.json of a study's run."""
    try:
        config = read_json(path)
        if not isinstance(config["started"], str) or not isinstance(config["settings"]["preset"], str):
            raise TypeError("started and preset must be texts")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise lab.SettingsError(f"{path} is no config.json of a finished study ({error!r}): name another run, or run it again") from error
    return config


def facts() -> dict[str, Any]:
    """What is known about the published run."""
    return json.loads((FOLDER / "facts.json").read_text("utf-8"))


def table(verdicts: Sequence["Verdict"], known: Mapping[str, Any]) -> str:
    """The claims in Markdown: what the paper found, what we measured, the verdict, the command."""
    from experiments.__main__ import STUDIES
    from jaxbp.report import format_interval

    commands = {package.ID: f"python -m {package.__name__}" for package in STUDIES}
    lines = ["| claim | paper | ours, 95 % interval | verdict | command |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        paper = "not tested" if claim.paper_value is None else claim.paper_value
        ours = f"{claim.measure}: {format_interval(verdict.interval)}, {verdict.num_seeds} seeds"
        if len(verdict.cases) > 1:
            ours += f", least favourable of {len(verdict.cases)} cases"
        command = f"`{commands[claim.id.partition('.')[0]]}`"
        cells = (f"{claim.id} {claim.statement}", paper, ours, _outcome(verdict), command)
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, "", _note(known)])


def summary(verdicts: Sequence["Verdict"], known: Mapping[str, Any]) -> str:
    """A few claims in Markdown, in short: the claim, the outcome, and whether that is what its paper says."""
    from jaxbp.report import beside_paper, format_interval

    lines = ["| claim | measured | outcome |", "|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        told = beside_paper(verdict)
        outcome = f"{_outcome(verdict)}{f' ({told})' * bool(told)}"
        cells = (f"{claim.id} {claim.statement}", f"{claim.measure}: {format_interval(verdict.interval)}", outcome)
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, "", _note(known)])


def _note(known: Mapping[str, Any]) -> str:
    """Which run it was."""
    packages = ", ".join(f"{name} {known['packages'][name]}" for name in ("jaxbp", "jax") if name in known["packages"])
    devices = f"{len(known['devices'])} x {known['devices'][0]}"
    return f"Preset {known['preset']}, {known['started'][:10]}, {packages}, commit {known['git_commit']}, {devices}."


def _outcome(verdict: "Verdict") -> str:
    """The outcome, and the counts of the cases where they say more."""
    counts = verdict.headline.partition(": ")[2] if len(verdict.counts) > 1 else ""
    return f"**{verdict.verdict}**" + f": {counts}" * bool(counts)


def with_table(page: Path, new: str) -> str:
    """A page's text with ``new`` between its markers.

    Raises:
      SettingsError: the markers are not there once each, in order.
    """
    before, found, rest = page.read_text("utf-8").partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed) or BEGIN in after:
        raise lab.SettingsError(f"{page} needs the lines {BEGIN} and {END}, once, around the table")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def draw(verdicts: Sequence["Verdict"], name: str) -> None:
    """A picture: a row a claim, its interval over the region in which the claim holds, each row on a scale of its own."""
    from jaxbp import report

    colours = {"supported": "#009E73", "contradicted": "#D55E00", "mixed": "#CC79A7"}
    fig, ax = report.figure(width=11, height=0.36 * len(verdicts) + 1.1)
    with report.style():
        for row, verdict in enumerate(verdicts):
            _draw_row(ax, row, verdict, colours.get(verdict.verdict, "#777777"))
        ax.set_xlim(0, 1.6)
        ax.set_ylim(len(verdicts) - 0.4, -0.6)
        ax.set_yticks(range(len(verdicts)), [f"{v.claim.id}  {_shortened(v.claim.statement)}" for v in verdicts], fontsize=9)
        ax.set_xticks([])
        ax.grid(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.tick_params(length=0)
        ax.set_title(
            "Shaded: where the claim holds. Bar: what was measured, 95 % interval over seeds; scales differ.",
            fontsize=10,
            x=-1.0,
        )
    report.save_figure(fig, FOLDER, name)
    (FOLDER / f"{name}.png").unlink()  # the pages show the other


def _draw_row(ax: Any, row: int, verdict: "Verdict", colour: str) -> None:
    import numpy as np

    interval, region = verdict.interval, verdict.claim.rule.region
    ends = [end for end in (*region, *((interval.low, interval.high) if interval else ())) if np.isfinite(end)]
    start, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return float(np.clip(0.1 + 0.8 * (value - start) / width, 0.0, 1.0))

    left, right = map(place, region)
    ax.barh(row, right - left, left=left, height=0.8, color="#e8eef4", linewidth=0)
    if interval:
        ax.plot([place(interval.low), place(interval.high)], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot(place(interval.estimate), row, "o", color=colour, markeredgecolor="white", markersize=7)
    ax.text(1.04, row, verdict.verdict, color=colour, va="center", fontsize=10, fontweight="bold")


def _shortened(text: str, most: int = 92) -> str:
    """A statement cut at a word."""
    text = text.rstrip(".")
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]} …"


if __name__ == "__main__":
    main()
