"""The status of a run, as seen from another process, and the command that prints it."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxbp.runtime.progress import Progress, StatusError, Work, progress, read

WORK = {"a 0": ("a", 1.0), "a 1": ("a", 1.0), "b 0": ("b", 6.0)}


def status_of(folder, name="status.json"):
    return json.loads((folder / name).read_text())


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_status_at_each_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_STATUS_EVERY", 0.0)
    monkeypatch.setattr(progress, "_STATUS_COST", 0.0)
    work = {**WORK, "c": Work(weight=2.0)}
    with Progress(work, tmp_path, done_before=["a 0"], print_fn=print) as tracker:
        first = status_of(tmp_path)
        assert (first["done"], first["left"], first["running"]) == (["a 0"], ["a 1", "b 0", "c"], {})
        assert (first["state"], first["pid"], first["process"]) == ("running", os.getpid(), 0)
        assert first["seconds_left"] is None
        tracker.start("a 1")
        tracker.advance("a 1", 0.5)
        assert read(tmp_path).running == {"a 1": 0.5}
        tracker.diverged("a 1", "NaN")
        tracker.failed("c", "disk")
        tracker.start("b 0")
        found = status_of(tmp_path)
        assert found["counts"] == {"total": 4, "left": 0, "running": 1, "failed": 1, "diverged": 1, "done": 1}
        assert (found["diverged"], found["failed"], found["running"]) == ({"a 1": "NaN"}, {"c": "disk"}, {"b 0": 0.0})
        assert found["settings"]["a"]["done"] == found["settings"]["a"]["diverged"] == 1
        assert found["started"] <= found["updated"]
        live = read(tmp_path)
        assert live.state == "running"
        assert live.counts == found["counts"]
        assert live.settings["b"] == {"total": 1, "left": 0, "running": 1, "failed": 0, "diverged": 0, "done": 0}
        assert live.seconds_left > 0
    ended = read(tmp_path)
    assert (ended.state, ended.running, ended.left, ended.seconds_left) == ("stopped", {}, ("b 0",), None)
    with Progress(work, tmp_path, done_before=["a 0", "a 1", "c"], print_fn=print) as tracker:
        tracker.done("b 0")
    ended = read(tmp_path)
    assert (ended.state, ended.done, ended.left) == ("finished", ("a 0", "a 1", "b 0", "c"), ())
    assert ended.error == ""


class Terminated(BaseException):
    pass


@pytest.mark.parametrize(
    "error, state, told",
    [
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (SystemExit(3), "stopped", "SystemExit: 3"),
        (Terminated(), "stopped", "Terminated"),
        (ValueError("what\nelse"), "failed", "ValueError: what\nelse"),
    ],
)
def test_an_exception_decides_the_state(tmp_path, error, state, told):
    def work():
        with Progress(WORK, tmp_path, print_fn=print) as tracker:
            tracker.start("a 1")
            raise error

    with pytest.raises(type(error)):
        work()
    found = read(tmp_path)
    assert (found.state, found.error) == (state, told.replace("\n", "\ufffd"))
    assert (found.running, found.left) == ({}, tuple(WORK))
    *_, last = (tmp_path / "log.txt").read_text().splitlines()
    assert last.split(" ", 1)[1].startswith(f"{state} ({told.replace(chr(10), ' | ')}) after ")


def test_a_last_event_is_written_though_it_came_right_after_another(tmp_path):
    with Progress(WORK, tmp_path, print_fn=print) as tracker:
        tracker.start("a 0")  # within a second of the first status
        assert status_of(tmp_path)["running"] == {}
        wait_until(lambda: status_of(tmp_path)["running"])


def test_a_run_that_was_killed_is_told_as_killed(tmp_path):
    script = textwrap.dedent(f"""
        import time
        from jaxbp.runtime.progress import Progress, progress
        progress._STATUS_EVERY = progress._STATUS_COST = 0.0
        with Progress({WORK!r}, {str(tmp_path)!r}) as tracker:
            tracker.done("a 0")
            tracker.start("b 0")
            tracker.advance("b 0", 0.5)
            print("ready", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
        alive = read(tmp_path)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but its pid still is in use
        unreaped = read(tmp_path)
    dead = read(tmp_path)
    assert (alive.state, alive.running, alive.processes[0].pid) == ("running", {"b 0": 0.5}, process.pid)
    for found in (unreaped, dead):
        assert (found.state, found.running) == ("killed", {})
        assert (found.done, set(found.left)) == (("a 0",), {"a 1", "b 0"})
        assert found.seconds_left is None
    claims = status_of(tmp_path)
    assert claims["state"] == "running"

    def claim(**changes):
        (tmp_path / "status.json").write_text(json.dumps({**claims, **changes}))
        return read(tmp_path).state

    assert claim(host="elsewhere") == "killed"  # nobody holds the lock
    assert claim(host="elsewhere", locked=False) == "running"  # cannot be told
    assert claim(locked=False) == "killed"  # its pid is gone
    with open(tmp_path / "log.txt", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another reader does, at the same moment
        assert claim(host="elsewhere") == "killed"
    with open(tmp_path / "log.txt", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert claim(host="elsewhere") == "running"
        assert claim() == "killed"  # whoever holds the lock, the process is gone


def test_two_processes_are_read_as_one(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from jaxbp.runtime.progress import Progress, progress
        progress._STATUS_EVERY = progress._STATUS_COST = 0.0
        process = int(sys.argv[1])
        with Progress({WORK!r}, {str(tmp_path)!r}, process=process, num_processes=2) as tracker:
            mine = (("a 0", "b 0"), ("a 1",))[process]
            tracker.start(mine[0])
            tracker.done(mine[0])
            print("ready", flush=True)
            input()
            for name in mine[1:]:
                tracker.diverged(name, "NaN")
    """)
    (tmp_path / "status.json").write_text("of an earlier start, alone")
    with (
        subprocess.Popen([sys.executable, "-c", script, "0"], stdin=-1, stdout=-1, text=True) as first,
        subprocess.Popen([sys.executable, "-c", script, "1"], stdin=-1, stdout=-1, text=True) as second,
    ):
        said = [process.stdout.readline() for process in (first, second)]
        half = read(tmp_path)
        second.kill()
        second.wait()
        one = read(tmp_path)
        first.communicate("\n")
    assert said == ["ready\n"] * 2
    assert half.state == one.state == "running"
    assert set(half.done) == {"a 0", "a 1"}
    assert half.left == ("b 0",)
    assert half.settings["a"]["done"] == half.settings["a"]["total"] == 2
    assert [process.state for process in one.processes] == ["running", "killed"]
    ended = read(tmp_path)
    assert ended.state == "killed"
    assert (set(ended.done), ended.diverged, ended.left) == ({"a 0", "a 1"}, {"b 0": "NaN"}, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log-0.txt",
        "log-1.txt",
        "status-0.json",
        "status-1.json",
    ]
    assert f"process 1 of 2, pid {second.pid} on " in (tmp_path / "log-1.txt").read_text().splitlines()[0]


def test_processes_that_shared_all_units_have_finished_together(tmp_path):
    for process, names in enumerate((("a 0", "b 0"), ("a 1",))):
        with Progress(WORK, tmp_path, process=process, num_processes=2, print_fn=print) as tracker:
            for name in names:
                tracker.done(name)
    assert {status_of(tmp_path, f"status-{process}.json")["state"] for process in range(2)} == {"stopped"}
    found = read(tmp_path)
    assert [found.state, *(process.state for process in found.processes)] == ["finished"] * 3
    with Progress(WORK, tmp_path, print_fn=print):
        assert [path.name for path in tmp_path.glob("status*")] == ["status.json"]  # no mixture of two starts


DAMAGE = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-20],
    "another type": lambda text: "[1, 2]",
    "deep": lambda text: "[" * 100_000,
    "a field is gone": lambda text: text.replace('"left"', '"lift"'),
    "a field of another type": lambda text: text.replace('"done": []', '"done": 3'),
    "an infinite time": lambda text: re.sub(r'"seconds": [\d.]+', '"seconds": 1e999', text),
    "unknown state": lambda text: text.replace('"stopped"', '"fine"'),
    "no time": lambda text: re.sub(r'"started": "[^"]*"', '"started": "monday"', text),
    "a unit without state": lambda text: text.replace('"left": ["a 0", ', '"left": ['),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_status_is_told(tmp_path, damage):
    with Progress(WORK, tmp_path, print_fn=print):
        pass
    path = tmp_path / "status.json"
    whole = path.read_text()
    path.write_text(DAMAGE[damage](whole))
    assert path.read_text() != whole
    with pytest.raises(StatusError, match=r"status\.json is damaged \(.+\): the next start of the run writes it anew"):
        read(tmp_path)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(StatusError, match=r"holds no run \(no status\.json\): name the folder"):
        read(tmp_path)
    with pytest.raises(StatusError, match="is no folder"):
        read(tmp_path / "nothing")


def test_reading_leaves_no_trace_and_needs_no_jax(tmp_path):
    with Progress(WORK, tmp_path, print_fn=print):
        pass
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    script = f"import sys; from jaxbp.runtime import progress; progress.read({str(tmp_path)!r}); print('jax' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert said == "False\n"
    assert before == {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}


def status_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jaxbp.lab.status", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.slow
def test_the_command_prints_where_a_run_stands(tmp_path):
    with Progress({**WORK, "b 1": ("b", 1.0)}, tmp_path, print_fn=print) as tracker:
        tracker.done("a 0")
        tracker.diverged("b 0", "loss NaN at step [7]")
        tracker.failed("b 1", "disk")
        tracker.advance("a 1", 0.25)
        wait_until(lambda: status_of(tmp_path)["running"])
        live = status_command(tmp_path)
    assert live.returncode == 0, live.stderr
    assert "running: 1 of 4 done, 1 running, 1 failed, 1 diverged" in live.stdout
    assert "time left about 0:00:" in live.stdout
    assert "running:\n  a 1: 25 %" in live.stdout
    assert "diverged:\n  b 0: loss NaN at step [7]" in live.stdout
    assert "failed:\n  b 1: disk" in live.stdout
    cells = [re.findall(r"[\w ]+", line) for line in live.stdout.splitlines()]
    table = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert ["b", "2", "0", "0", "0", "1", "1"] in table
    ended = status_command(tmp_path, "--follow")
    assert ended.returncode == 0
    assert "stopped: 1 of 4 done, 1 failed, 1 diverged, 1 left" in ended.stdout


@pytest.mark.slow
def test_the_command_follows_a_run_to_its_end(tmp_path):
    with Progress(WORK, tmp_path, print_fn=print) as tracker:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "jaxbp.lab.status", str(tmp_path), "--follow"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "running: 0 of 3 done, 3 left\n"
        for name in WORK:
            tracker.done(name)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "finished: 3 of 3 done\n" in said


def test_the_command_tells_a_folder_without_a_run(tmp_path):
    done = status_command(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S+ holds no run .*\n", done.stderr)


def test_the_folder_of_several_runs_shows_each_in_the_order_of_their_start(tmp_path, capsys):
    from jaxbp.lab import status

    for name in ("z", "a"):
        with Progress({name: ("", 1.0)}, tmp_path / name, print_fn=print):
            pass
    assert status.runs_in(tmp_path) == [tmp_path / "z", tmp_path / "a"]
    assert status.runs_in(tmp_path / "z") == []
    assert status.runs_in(tmp_path / "none") == []
    done = subprocess.run([sys.executable, "-m", "jaxbp.lab.status", tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout.replace("\n", "").index(f"{tmp_path}/z:") < done.stdout.replace("\n", "").index(f"{tmp_path}/a:")
    done = subprocess.run([sys.executable, "-m", "jaxbp.lab.status", tmp_path, "--follow"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"holds several runs: follow one of them, such as {tmp_path}/a" in done.stderr.replace("\n", "")
