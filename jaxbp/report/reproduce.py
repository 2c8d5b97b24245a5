"""How to reproduce a run: what to type, what it ran on, and every setting.

Reads what a run's config.json holds: facts of the run, all optional, and what decided its numbers, under "settings".
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxbp.report.text import escape
from jaxbp.runtime.progress import format_seconds
from jaxbp.runtime.store import STARTS

_DIRTY = "-dirty"  # what git describe puts behind a commit with changes on top

_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {  # what a reader asks first, in words
    "started": ("Started", str),
    "wall_seconds": ("Wall time", lambda seconds: f"{format_seconds(seconds)} (h:mm:ss)"),
    "peak_memory_mib": ("Peak memory", lambda mib: f"{mib} MiB"),
    "devices": ("Devices", lambda names: ", ".join(f"{n} × {name}" for name, n in Counter(names).items())),
    "python": ("Python", str),
    "packages": ("Packages", lambda found: ", ".join(f"{name} {version}" for name, version in found.items())),
    "host": ("Host", str),
    "machine": ("Machine", str),
    "git_commit": ("Git commit", str),
    "command": ("Started as", str),
}


def reproduce(settings: Mapping[str, Any], command: str) -> str:
    """The commands, the facts of the run and its settings, as HTML."""
    parts = []
    if command:
        parts.append(
            "<p>Typed in a copy of the project, these commands repeat the run. On the same kind of machine they give the same numbers; "
            "elsewhere they may differ in rounding.</p>"
            f'<pre role="group" tabindex="0" aria-label="Commands"><code>{escape(_commands(settings, command))}</code></pre>'
        )
    if str(settings.get("git_commit")).endswith(_DIRTY):
        parts.append("<p>The code of this run had changes that are not in the commit.</p>")
    if facts := _facts(settings):
        parts.append(_definitions(facts))
    rest = {key: value for key, value in settings.items() if key not in _FACTS and key != STARTS}
    rest |= rest.pop("settings", {})
    if every := dict(_flat(rest)):
        summary = f"<summary>Every setting ({len(every)})</summary>"
        parts.append(f"<details>{summary}{_definitions(every)}</details>")
    return "\n".join(parts)


def _commands(settings: Mapping[str, Any], command: str) -> str:
    commit = str(settings.get("git_commit") or "").removesuffix(_DIRTY)
    versions = [f"{name}=={version}" for name, version in (settings.get("packages") or {}).items() if name != "jaxbp"]
    lines = [f"git checkout {shlex.quote(commit)}"] if commit else []
    return "\n".join([*lines, f"pip install -e . {shlex.join(versions)}".rstrip(), command])


def _facts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {title: form(settings[key]) for key, (title, form) in _FACTS.items() if settings.get(key) is not None}


def _definitions(pairs: Mapping[str, Any]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in pairs.items())
    return f"<dl>{rows}</dl>"


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
