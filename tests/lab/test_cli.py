"""How a study's command ends on errors that are the user's or the machine's."""

import errno

import pytest

from jaxbp.lab import cli


def test_a_full_disk_ends_in_one_line(monkeypatch):
    left = []
    monkeypatch.setattr(cli, "_leave", lambda *args: left.append(args))
    with pytest.raises(OSError, match="No space"), cli.guarded("runs/mine"):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/mine/report.html")
    ((code, message),) = left
    assert code == 2
    assert message.startswith("error: No space left on device: runs/mine/report.html. Make room. Finished jobs are in runs/mine;")
    left.clear()
    with pytest.raises(OSError, match="odd"), cli.guarded("runs/mine"):  # any other is a defect, and keeps its traceback
        raise OSError(errno.EIO, "odd")
    assert not left
