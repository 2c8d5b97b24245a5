"""What README and guide show of published runs: tables and pictures of the claims, from files under version control.

``experiments/published`` holds the verdicts of a run of the whole lab, and in ``standard`` those of the larger preset, for the studies that
have been run there. `take` copies them from a run's folder; all else is made of them.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import map_tables
from experiments.__main__ import NAMES, STUDIES, name_of
from jaxbp import claims, lab, report
from jaxbp.claims import ControlVerdict, Verdict
from jaxbp.lab.verdict_changes import read
from jaxbp.report import beside_paper, format_interval
from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.outside_text import read_json

FOLDER = Path(__file__).parent / "published"
STANDARD = FOLDER / "standard"
README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "guide" / "results.md"
HEADLINES = ("S1.a", "S2.b", "S3.b", "S4.c", "S5.b", "S6.a", "S7.c", "S8.d", "S9.a", "S10.a")  # a study's claim that the README shows
BEGIN, END = "<!-- begin: python -m experiments.publish -->", "<!-- end -->"
BEGIN_STANDARD = "<!-- begin: python -m experiments.publish, standard -->"
BEGIN_MAPS = "<!-- begin: python -m experiments.publish, maps -->"
MAPS_PAGE = Path(__file__).parent / "guide" / "maps.md"
SHOWN_MAP = "S7.c"  # that the README shows
_FACTS = ("started", "python", "packages", "devices")


def write() -> None:
    """Make the pictures, and the tables of README and guide, of what was published, and say how many claims there are."""
    verdicts, larger = published(FOLDER), published(STANDARD)
    headlines = [verdict for verdict in verdicts if verdict.claim.id in HEADLINES]
    draw(verdicts, "verdicts")
    draw(headlines, "headlines")
    texts = {BEGIN: table(verdicts, facts(FOLDER))} | ({BEGIN_STANDARD: comparison(verdicts, larger, facts(STANDARD))} if larger else {})
    maps = map_tables.published()
    readme = {BEGIN: summary(headlines, larger, facts(FOLDER)), BEGIN_MAPS: map_tables.grid(maps[SHOWN_MAP])}
    for page, by_marker in ((README, readme), (RESULTS, texts), (MAPS_PAGE, {BEGIN_MAPS: map_tables.overview(maps)})):
        for marker, text in by_marker.items():
            write_atomically(page, with_table(page, text, marker).encode())
    print(f"{len(verdicts)} claims, {len(larger)} at the larger preset, {len(maps)} maps are in {README}, {RESULTS.parent} and {FOLDER}")


def take(run: Path) -> None:
    """Copy what is published of a run: a map, or verdicts, preset and versions; every study's own, whatever the lab's page shows now.

    Studies of the preset "standard" that the run lacks stay as they were published.

    Raises:
      SettingsError: it is no map, no finished run of the whole lab, and none of some studies with the preset "standard".
    """
    if map_tables.is_map(run):
        map_tables.take(run)
        return
    configs = _finished(run)
    ids = {name_of(package): package.ID for package in STUDIES}
    verdicts = [verdict for name in configs for verdict in read(run / name).values()]
    controls = [control for name in configs for control in claims.read_controls(run / name / "verdicts.json")]
    first = min(configs.values(), key=lambda config: config["started"])
    known = {name: first[name] for name in _FACTS if name in first} | {"preset": first["settings"]["preset"]}
    known["commits"] = {ids[name]: str(config.get("git_commit")) for name, config in configs.items()}
    folder = STANDARD if known["preset"] == "standard" else FOLDER
    if folder == STANDARD and published(folder):
        verdicts, controls, known = _with_other_studies(verdicts, controls, known)
    order = list(ids.values())
    verdicts.sort(key=lambda verdict: order.index(_study(verdict.claim.id)))
    controls.sort(key=lambda control: order.index(_study(control.control.id)))
    folder.mkdir(exist_ok=True)
    claims.write_verdicts(folder / "verdicts.json", verdicts, controls)
    write_atomically(folder / "facts.json", (json.dumps(known, indent=2) + "\n").encode())
    for name in configs:
        (folder / name).mkdir(exist_ok=True)
        shutil.copyfile(run / name / "measurements.parquet", folder / name / "measurements.parquet")


def _finished(run: Path) -> dict[str, dict[str, Any]]:
    """The config of each finished study by the name of its folder, in the page's order; refused if they cannot be published together."""
    finished = [name for name in NAMES if all((run / name / file).exists() for file in ("config.json", "verdicts.json"))]
    configs = {name: _config(run / name / "config.json") for name in finished}
    presets = {config["settings"]["preset"] for config in configs.values()}
    if "smoke" in presets:
        raise lab.SettingsError(f"{run} is a smoke run, which decides nothing: publish one of another preset")
    if len(presets) > 1:
        raise lab.SettingsError(f"{run} holds runs of the presets {', '.join(sorted(presets))}: publish runs of one preset")
    if presets != {"standard"} and finished != list(NAMES):
        raise lab.SettingsError(
            f"{run} is no finished run of the whole lab, it has no verdicts of {', '.join(n for n in NAMES if n not in finished)}: name "
            "the folder that `python -m experiments` wrote, without --only"
        )
    return configs


def _with_other_studies(
    verdicts: list[Verdict], controls: list[ControlVerdict], known: dict[str, Any]
) -> tuple[list[Verdict], list[ControlVerdict], dict[str, Any]]:
    """What a run of the preset "standard" found, with what was published of the studies that it lacks."""
    old, facts_of_old = claims.read_controls(STANDARD / "verdicts.json"), facts(STANDARD)
    verdicts = verdicts + [verdict for verdict in published(STANDARD) if _study(verdict.claim.id) not in known["commits"]]
    controls = controls + [control for control in old if _study(control.control.id) not in known["commits"]]
    return verdicts, controls, facts_of_old | {"commits": facts_of_old["commits"] | known["commits"]}


def _study(id_: str) -> str:
    """The id of the study of a claim or control, such as "S1" of "S1.a"."""
    return id_.partition(".")[0]


def _commits(by_study: Mapping[str, str]) -> str:
    """The commit, or each with the studies that it ran."""
    commits = dict.fromkeys(by_study.values())
    if len(commits) == 1:
        return next(iter(commits))
    of_commit = {commit: sorted((id_ for id_ in by_study if by_study[id_] == commit), key=lambda id_: int(id_[1:])) for commit in commits}
    return ", ".join(f"{commit} ({', '.join(ids)})" for commit, ids in of_commit.items())


def _config(path: Path) -> dict[str, Any]:
    """What is in the config.json of a study's run."""
    try:
        config = read_json(path)
        if not isinstance(config["started"], str) or not isinstance(config["settings"]["preset"], str):
            raise TypeError("started and preset must be texts")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise lab.SettingsError(f"{path} is no config.json of a finished study ({error!r}): name another run, or run it again") from error
    return config


def published(folder: Path) -> list[Verdict]:
    """The verdicts that were published; none where no run was."""
    path = folder / "verdicts.json"
    return claims.read_verdicts(path) if path.exists() else []


def facts(folder: Path) -> dict[str, Any]:
    """What is known about the published run."""
    return json.loads((folder / "facts.json").read_text("utf-8"))


def table(verdicts: Sequence[Verdict], known: Mapping[str, Any]) -> str:
    """The claims in Markdown: what the paper found, what we measured, where the claim holds, the chance of finding it, the outcome."""
    lines = ["| claim | paper | ours, 95 % interval | holds | power | outcome |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        paper = "not tested" if claim.paper_value is None else claim.paper_value
        ours = f"{claim.measure}: {format_interval(verdict.interval)}, {verdict.num_seeds} seeds"
        if len(verdict.cases) > 1:
            ours += f", least favourable of {len(verdict.cases)} cases"
        cells = (f"{claim.id} {claim.statement}", paper, ours, claim.rule.where, _power(verdict), _outcome(verdict))
        lines.append(_row(cells))
    commands = ", ".join(f"{package.ID} `{package.__name__}`" for package in STUDIES)
    return "\n".join([*lines, "", _note(known), "", f"`python -m experiments` runs all, `python -m MODULE` one: {commands}."])


def summary(verdicts: Sequence[Verdict], larger: Sequence[Verdict], known: Mapping[str, Any]) -> str:
    """A few claims in Markdown, in short: the claim, the outcome, whether that is what its paper says, and the larger preset's outcome."""
    at_scale = {verdict.claim.id: f"**{verdict.verdict}**" for verdict in larger}
    lines = ["| claim | measured | holds | outcome | on Fashion-MNIST |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        told = beside_paper(verdict)
        outcome = f"{_outcome(verdict)}{f' ({told})' * bool(told)}"
        measured = f"{claim.measure}: {format_interval(verdict.interval)}"
        cells = (f"{claim.id} {claim.statement}", measured, claim.rule.where, outcome, at_scale.get(claim.id, "not yet run"))
        lines.append(_row(cells))
    return "\n".join([*lines, "", _note(known)])


def comparison(quick: Sequence[Verdict], standard: Sequence[Verdict], known: Mapping[str, Any]) -> str:
    """The claims of the larger preset in Markdown, beside the smaller one: effects, seeds and outcomes."""
    smaller = {verdict.claim.id: verdict for verdict in quick}
    lines = ["| claim | quick | standard | seeds | the outcome |", "|---|---|---|---|---|"]
    for verdict in standard:
        beside = smaller.get(verdict.claim.id)
        effects = [f"{_outcome(each)}, {format_interval(each.interval)}" if each else "–" for each in (beside, verdict)]
        told = "stays" if beside and beside.verdict == verdict.verdict else "moved" if beside else "is new"
        lines.append(_row((f"{verdict.claim.id} {verdict.claim.statement}", *effects, verdict.num_seeds, told)))
    return "\n".join([*lines, "", _note(known)])


def _row(cells: Sequence[Any]) -> str:
    escaped = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _note(known: Mapping[str, Any]) -> str:
    """Which run it was."""
    packages = ", ".join(f"{name} {known['packages'][name]}" for name in ("jaxbp", "jax") if name in known["packages"])
    devices = f"{len(known['devices'])} x {known['devices'][0]}"
    return f"Preset {known['preset']}, {known['started'][:10]}, {packages}, commit {_commits(known['commits'])}, {devices}."


def _power(verdict: Verdict) -> str:
    """The chance of finding the smallest effect worth finding, and the seeds for one of 80 %."""
    if not verdict.power:
        return "–"
    return f"{100 * verdict.power.chance:.0f} %; 80 % takes {verdict.power.seeds_needed or 'over 2000'}"


def _outcome(verdict: Verdict) -> str:
    """The outcome, and the counts of the cases where they say more."""
    counts = verdict.headline.partition(": ")[2] if len(verdict.counts) > 1 else ""
    return f"**{verdict.verdict}**" + f": {counts}" * bool(counts)


def with_table(page: Path, new: str, begin: str = BEGIN) -> str:
    """A page's text with ``new`` between its markers, of which ``begin`` is the first.

    Raises:
      SettingsError: the markers are not there once each, in order.
    """
    before, found, rest = page.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(END)
    if not (found and closed) or begin in after:
        raise lab.SettingsError(f"{page} needs the lines {begin} and {END}, once, around the table")
    return f"{before}{begin}\n\n{new}\n\n{END}{after}"


def draw(verdicts: Sequence[Verdict], name: str) -> None:
    """A picture: a row a claim, its interval over the region in which the claim holds, each row on a scale of its own."""

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


def _draw_row(ax: Any, row: int, verdict: Verdict, colour: str) -> None:

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
