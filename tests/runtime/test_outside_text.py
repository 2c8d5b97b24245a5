"""Text and JSON from files: no bytes reach a terminal as commands, and damage is told."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp.runtime import progress
from jaxbp.runtime.outside_text import DamagedFileError, plain_text, read_json

QUICK = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@QUICK
@given(st.text())
def test_no_control_and_no_mark_of_direction_is_left(text):
    plain = plain_text(text)
    assert len(plain) == len(text)
    assert not set(plain) & {*map(chr, (*range(32), *range(127, 160))), "\u202e", "\u2066", "\u2028"}


@QUICK
@given(st.binary(max_size=200))
def test_bytes_are_json_or_an_error_of_ours(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("status")
    (folder / "status.json").write_bytes(content)
    with contextlib.suppress(DamagedFileError):
        read_json(folder / "status.json")
    with pytest.raises(progress.StatusError):
        progress.read(folder)


def test_names_and_values_are_cleaned(tmp_path):
    (tmp_path / "a.json").write_text('{"a\\u001b[31m": ["b\\n", 1]}')
    assert read_json(tmp_path / "a.json") == {"a\ufffd[31m": ["b\ufffd", 1]}
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DamagedFileError):
        read_json(tmp_path / "a.json")
