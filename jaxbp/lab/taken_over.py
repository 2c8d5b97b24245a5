"""Which results a run has from runs nearby, when those began, and by which rules their results were to be judged.

The note lies beside the results, so that it stays true when a run goes on, and when its results are taken over in turn: a job is told to
be of the run that computed it.
"""

import collections
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbp.lab import recorded_rules
from jaxbp.lab.archive import FOLDER
from jaxbp.lab.recorded_rules import Change, Rules
from jaxbp.report.text import plural
from jaxbp.runtime.outside_text import DamagedFileError, read_json
from jaxbp.runtime.store import CONFIG, SETTINGS, Store, StoreError

NOTE = f"{FOLDER}/taken_over.json"


class Source(NamedTuple):
    """A run that computed results which another one has taken over.

    Attributes:
      folder: where it was.
      started: when it began; "" if that is not known.
      study: the id of its study; "" if that is not known.
      rules: that were written down when it began; None if there are none.
    """

    folder: str
    started: str
    study: str
    rules: Rules | None

    def told(self, run: Path) -> str:
        """The folder as it is seen from that of a run."""
        return os.path.relpath(self.folder, run.absolute().parent)


def source_at(folder: Path) -> Source:
    """The run in a folder, as far as its config.json can be read."""
    try:
        config = read_json(folder / CONFIG)
        study = config[SETTINGS].get("study") or config[SETTINGS].get("map")
        return Source(str(folder.absolute()), str(config.get("started") or ""), str(study or ""), recorded_rules.read(config, folder))
    except (DamagedFileError, StoreError, OSError, LookupError, TypeError, AttributeError):
        return Source(str(folder.absolute()), "", "", None)


def read(folder: Path) -> dict[str, Source]:
    """The sources of the results that the run in a folder has taken over, by file; none where nothing that can be read was noted."""
    try:
        entry = read_json(folder / NOTE)
        sources = [_source(source) for source in entry["sources"]]
        return {str(file): sources[number] for file, number in entry["jobs"].items()}
    except (DamagedFileError, OSError, LookupError, TypeError, AttributeError, ValueError, StoreError):
        return {}


def _source(entry: Mapping[str, Any]) -> Source:
    rules = entry["rules"]
    folder, started, study = (str(entry[name]) for name in ("folder", "started", "study"))
    return Source(folder, started, study, None if rules is None else recorded_rules.read(rules, Path(folder)))


def forget(store: Store, files: Iterable[str]) -> None:
    """Take the results in some files off the note: they could not be copied, so this run computes them."""
    known, gone = read(store.folder), set(files)
    if gone & known.keys():
        _write(store, {file: source for file, source in known.items() if file not in gone})


def note(store: Store, files: Mapping[str, Path]) -> None:
    """Write down from which folders the results in some files are, given by name."""
    if not files and not (store.folder / NOTE).exists():
        return
    of_folders = {folder: (source_at(folder), read(folder)) for folder in set(files.values())}
    known = read(store.folder) | {file: of_folders[folder][1].get(file, of_folders[folder][0]) for file, folder in files.items()}
    _write(store, known)


def _write(store: Store, known: Mapping[str, Source]) -> None:
    sources = _distinct(known.values())
    entries = [{**source._asdict(), "rules": source.rules and source.rules._asdict()} for source in sources]
    jobs = {file: sources.index(source) for file, source in known.items()}
    store.write(NOTE, json.dumps({"sources": entries, "jobs": jobs}, indent=0).encode())


def sentence(count: int, total: int, place: str, started: str) -> str:
    """How many of a run's jobs are from another run, and when that began."""
    begun = f", begun {started[:10]}" if started else ""
    return f"{count} of {plural(total, 'job')} {'was' if total == 1 else 'were'} taken over from {place}{begun}."


def sentences(folder: Path, files: Sequence[str]) -> list[str]:
    """From where those of a run's files are that it has not computed, a `sentence` for each source."""
    counts = collections.Counter((source.told(folder), source.started) for source in _of_files(folder, files))
    return [sentence(count, len(files), *source) for source, count in counts.items()]


def changes(folder: Path, files: Sequence[str], present: Rules, study: str) -> list[Change]:
    """How the rules of a study differ from those that were written down where the results in its files were computed."""
    told: dict[Change, None] = {}
    for source in _distinct(_of_files(folder, files)):
        run = f"the run in {source.told(folder)}"
        if source.rules is None:
            told |= {
                Change(claim, f"No rule was written down in {source.told(folder)}, whose results are used."): None
                for claim in present.rules
            }
        else:
            told |= dict.fromkeys(recorded_rules.changes(source.rules, present, run, subset=source.study != study))
    return list(told)


def _of_files(folder: Path, files: Sequence[str]) -> list[Source]:
    known = read(folder)
    return [known[file] for file in files if file in known]


def _distinct(sources: Iterable[Source]) -> list[Source]:
    distinct: list[Source] = []
    for source in sources:
        if source not in distinct:
            distinct.append(source)
    return distinct
