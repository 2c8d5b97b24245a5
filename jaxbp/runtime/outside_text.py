"""Text from files: data that anybody may have written, made fit for a terminal and a page.

>>> from jaxbp.runtime.outside_text import plain_text
>>> plain_text("loss \\x1b[31m0.5\\u202e")
'loss \\ufffd[31m0.5\\ufffd'
"""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARK = "\ufffd"
_REPLACED = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, separators of lines and paragraphs
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # overrides and isolates of direction


class DamagedFileError(ValueError):
    """A file does not hold JSON."""


def plain_text(text: str, keep: str = "") -> str:
    """Replace control characters, ends of lines and marks of direction by U+FFFD, but for those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _MARK if letter not in keep and (letter in _DIRECTIONS or unicodedata.category(letter) in _REPLACED) else letter for letter in text
    )


def read_json(path: Path) -> Any:
    """Read a JSON file; all text in it, names of entries included, becomes `plain_text`.

    Raises:
      DamagedFileError: the file is no JSON in UTF-8, or nests too deep.
      OSError: it cannot be read.
    """
    try:
        return _plain(json.loads(path.read_text("utf-8")))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({plain_text(str(error))})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {plain_text(name): _plain(entry) for name, entry in value.items()}
    return value
