"""How to reproduce a run: what to type, what it ran on, and every setting.

Reads what a run's config.json holds: facts of the run, all optional, and what decided its numbers, under "settings".
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxbp.runtime.progress import format_seconds
from jaxbp.runtime.store import STARTS

_NO_SETTINGS = (STARTS, "rules_changed", "own_files")  # what else config.json holds
_DIRTY = "-dirty"  # what git describe puts behind a commit with changes on top


def _without_folders(command: str) -> str:
    """A command without the folders of absolute paths, which name people and machines."""
    return re.sub(r"(?<!\S)/\S*/(?=\S)", ".../", command)


_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {  # what a reader asks first, in words
    "started": ("Started", str),
    "wall_seconds": ("Wall time", lambda seconds: f"{format_seconds(seconds)} (h:mm:ss)"),
    "peak_memory_mib": ("Peak memory", lambda mib: f"{mib} MiB"),
    "devices": ("Devices", lambda names: ", ".join(f"{n} × {name}" for name, n in Counter(names).items())),
    "python": ("Python", str),
    "packages": ("Packages", lambda versions: ", ".join(f"{name} {version}" for name, version in versions.items())),
    "host": ("Host", str),
    "machine": ("Machine", str),
    "git_commit": ("Git commit", str),
    "command": ("Started as", _without_folders),
}


@dataclass(frozen=True)
class Recipe:
    """How to reproduce a run.

    Attributes:
      commands: what to type; empty if that is not known.
      call: what to call in Python, where no command was typed.
      has_uncommitted_changes: the code had changes that are not in the commit.
      own_files: files that the commit does not hold, a sentence each.
      facts: what the run ran on, in words.
      settings: every setting by its path, such as ``cases[0].width``.
    """

    commands: str
    call: str
    has_uncommitted_changes: bool
    own_files: Sequence[str]
    facts: Mapping[str, str]
    settings: Mapping[str, str]


def recipe(settings: Mapping[str, Any], command: str, call: str = "") -> Recipe:
    """Read what a run's config.json holds; ``command`` repeats the run, or ``call`` does from Python."""
    rest = {key: value for key, value in settings.items() if key not in (*_FACTS, *_NO_SETTINGS)}
    rest |= rest.pop("settings", {})
    return Recipe(
        commands=_commands(settings, command) if command or call else "",
        call=call,
        has_uncommitted_changes=str(settings.get("git_commit")).endswith(_DIRTY),
        own_files=[_own_file(entry) for entry in settings.get("own_files") or ()],
        facts={title: form(settings[key]) for key, (title, form) in _FACTS.items() if settings.get(key) is not None},
        settings=dict(_flat(rest)),
    )


def _commands(settings: Mapping[str, Any], command: str) -> str:
    commit = str(settings.get("git_commit") or "").removesuffix(_DIRTY)
    versions = [f"{name}=={version}" for name, version in (settings.get("packages") or {}).items() if name != "jaxbp"]
    lines = [f"git checkout {shlex.quote(commit)}"] if commit else []
    return "\n".join([*lines, f"pip install -e . {shlex.join(versions)}".rstrip(), *filter(None, [command])])


def _own_file(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['path']} is not in the commit, or not as it was run: sha256 {entry['sha256']}. "
        f"The folder of the run keeps a copy, {entry['kept']}; the paths are those of the folder where the run was started."
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Settings by path, as ``cases[0].width``; values as JSON but for text, which needs no quotes."""
    if isinstance(value, Mapping) and (value or not name):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
