"""Progress as seen in the terminal and in the log, and the event files."""

import os
import re
import resource
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime

import pytest
from rich.console import Console

from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.progress import MissingTensorBoardError, Progress, display, progress, read
from jaxbp.runtime.progress.files import Files

WORK = {"a 0": ("a", 1.0), "a 1": ("a", 1.0), "b 0": ("b", 6.0)}


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("jaxbp.runtime.progress.clock.now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def log_of(folder, name="log.txt"):
    """Times and texts of a log."""
    lines = [line.split(" ", 1) for line in (folder / name).read_text().splitlines()]
    return [datetime.fromisoformat(stamp) for stamp, _ in lines], [text for _, text in lines]


def test_lines_and_estimates_by_hand(clock):
    lines, work = [], {"early": (None, 5.0), "a": (None, 1.0), "b": (None, 1.0), "c": (None, 8.0), "d": (None, 10.0)}
    with Progress(work, None, done_before=["early", "of another run"], print_fn=lines.append) as tracker:
        for name, seconds in (("a", 3), ("b", 1.5), ("c", 3.5), ("d", 1)):
            tracker.start(name)
            clock.now += seconds
            tracker.done(name)
    # 20 to do. After 3 s 1 is done: 5 % is not more than 5 %, no estimate. b comes 1.5 s after a line. After 8 s 10 are done,
    # so 10 are left at 1.25 a second. The last comes within 2 s of a line and is shown all the same.
    assert lines == ["[2/5] a, 3 s", "[4/5] c, 8 s, about 8 s left", "[5/5] d, 9 s, about 0 s left"]


def test_lines_tell_shares_notes_errors_and_the_count_of_the_setting(clock):
    lines = []
    with Progress(WORK, None, print_fn=lines.append) as tracker:
        clock.now += 3
        tracker.start("b 0")
        clock.now += 3
        tracker.advance("b 0", 0.5)  # 3 of 8 in 6 s: the other 5 in 10 s
        tracker.failed("a 0", ValueError("no such file"))  # at once
        tracker.failed("a 1", ValueError("told at the end"), raised=True)
        clock.now += 3
        tracker.diverged("a 1", "loss NaN at step 7")  # 5 of 8 in 9 s
        clock.now += 3
        tracker.done("b 0", "0.97")
        tracker.log("the end")
    assert lines == [
        "[0/3] b 0 started, setting 0/1, 3 s",
        "[0/3] b 0, 50 % of it, setting 0/1, 6 s, about 10 s left",
        "[1/3] a 0 failed (ValueError: no such file), setting 1/2, 6 s, about 6 s left",
        "[2/3] a 1 failed, setting 2/2, 6 s, about 4 s left",
        "[2/3] a 1 diverged (loss NaN at step 7), setting 2/2, 9 s, about 5 s left",
        "[3/3] b 0 (0.97), setting 1/1, 12 s, about 0 s left",
        "the end",
    ]


def test_what_an_earlier_start_did_of_a_unit_is_not_taken_for_speed(clock, tmp_path):
    lines = []
    with Progress({"long": (None, 4.0)}, tmp_path, print_fn=lines.append) as tracker:
        tracker.start("long", share=0.5)
        clock.now += 3
        tracker.advance("long", 0.75)  # a quarter in 3 s, and a quarter left
        assert lines == ["[0/1] long, 75 % of it, 3 s, about 3 s left"]


def test_what_diverged_before_stays_diverged_and_is_not_taken_for_speed(clock, tmp_path):
    lines, work = [], {"bad": ("a", 50.0), "good": ("a", 7.0), "now": ("b", 1.0), "then": ("b", 1.0)}
    before = {"bad": "loss NaN", "of another run": "inf"}
    with Progress(work, tmp_path, done_before=["good", "bad"], diverged_before=before, print_fn=lines.append) as tracker:
        begun = read(tmp_path)
        for name in ("now", "then"):
            clock.now += 3
            tracker.done(name)
    assert lines == ["[3/4] now, setting 1/2, 3 s, about 3 s left", "[4/4] then, setting 2/2, 6 s, about 0 s left"]
    texts = log_of(tmp_path)[1]
    assert texts[0].endswith(": 2 of 4 done before, 1 of them diverged")
    assert texts[-1] == "finished after 6.0 s: 3 done, 1 diverged"
    ended = read(tmp_path)
    assert (begun.done, begun.diverged, begun.left) == (("good",), {"bad": "loss NaN"}, ("now", "then"))
    assert (ended.state, ended.diverged, ended.left) == ("finished", {"bad": "loss NaN"}, ())
    assert ended.settings["a"] == {"total": 2, "left": 0, "running": 0, "failed": 0, "diverged": 1, "done": 1}


def test_a_line_for_each_event_with_its_time(tmp_path):
    before = datetime.now(UTC)
    for done in ([], ["a 0"]):  # appended to what is there
        with Progress(WORK, tmp_path, done_before=done, print_fn=print) as tracker:
            tracker.start("a 1")
            tracker.advance("a 1", 0.25)
            tracker.done("a 1", "0.97\nof 1")
            tracker.diverged("b 0", "inf")
            tracker.log("something")
            if done:
                assert log_of(tmp_path)[1][-1] == "something"  # on disk while the run is
    times, texts = log_of(tmp_path)
    assert texts[1:6] == ["started a 1", "25 % of a 1", "done a 1: 0.97 | of 1", "diverged b 0: inf", "something"]
    assert re.fullmatch(rf"process 0 of 1, pid {os.getpid()} on \S+: 0 of 3 done before", texts[0])
    assert re.fullmatch(r"stopped after \d+\.\d s: 1 done, 1 diverged, 1 left", texts[6])
    assert texts[7].endswith(": 1 of 3 done before")
    assert re.fullmatch(r"finished after \d+\.\d s: 2 done, 1 diverged", texts[13])
    assert len(texts) == 14
    assert times == sorted(times)
    assert (times[0] - before).total_seconds() > -0.001  # stamps are cut to milliseconds
    assert times[-1] <= datetime.now(UTC)


def test_what_threads_say_after_the_end_is_not_heard(tmp_path):
    lines = []
    with Progress(WORK, tmp_path, print_fn=lines.append, tensorboard=True) as tracker:
        tracker.start("a 0")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tracker.done("a 0")
    tracker.failed("a 1", "late")
    tracker.log("late")
    tracker.scalars("a 0", 1, {"loss": 1.0})
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert lines == []


def test_only_the_first_process_shows_something(tmp_path, capsys):
    lines = []
    for process in (1, 0):
        with Progress({"a": (None, 1.0)}, tmp_path, process=process, num_processes=2, print_fn=lines.append) as tracker:
            tracker.done("a")
            tracker.log("message")
            assert len(lines) == 2 * (process == 0)
        assert "message" in log_of(tmp_path, f"log-{process}.txt")[1]
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path):
    script = textwrap.dedent(f"""
        import resource
        from jaxbp.runtime.progress import Progress, progress
        progress._STATUS_EVERY = progress._STATUS_COST = 0.0
        with Progress({WORK!r}, {str(tmp_path)!r}, tensorboard=True) as tracker:
            tracker.done("a 0")
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            for i in range(20):
                tracker.log("x" * 50)
                tracker.start("a 1")
                tracker.scalars("a 1", i, {{"loss": 0.5}})
            tracker.done("a 1")
            tracker.done("b 0")
        print("went on")
    """)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("went on\n")
    told = done.stderr.splitlines()
    assert len(told) == 3
    for file, what in (("log.txt", "a log"), ("status.json", "a status"), ("events", "TensorBoard scalars")):
        (line,) = (line for line in told if file in line)
        assert re.fullmatch(rf"warning: cannot write \S+ \(File too large\); the work goes on without {what}", line)
    assert (tmp_path / "log.txt").stat().st_size == 300
    assert read(tmp_path).done == ("a 0",)  # whole, of the time when there was room
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # the limit was the other process's


def test_a_folder_that_cannot_be_made_is_told_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    lines = []
    with Progress(WORK, tmp_path / "file" / "run", print_fn=lines.append) as tracker:
        for name in WORK:
            tracker.done(name)
    told = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert len(told) == 2
    assert all("Not a directory" in line for line in told)


def test_events_of_several_threads_are_taken_one_by_one(tmp_path, monkeypatch):
    inside, seen, log = [], [], Files.log

    def slow_log(self, text):  # in the middle of every event
        inside.append(text)
        time.sleep(0.002)
        log(self, text)
        seen.append(len(inside))
        inside.pop()

    monkeypatch.setattr(Files, "log", slow_log)
    with Progress({str(i): (None, 1.0) for i in range(8)}, tmp_path, print_fn=print) as tracker:
        methods = (tracker.start, tracker.done, tracker.log)
        threads = [threading.Thread(target=method, args=(str(i),)) for i in range(8) for method in methods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [1] * 26


@pytest.mark.parametrize("num_threads", [1, 8])
def test_thousands_of_units_are_cheap_and_none_is_lost(tmp_path, monkeypatch, num_threads):
    writes, target = [], "jaxbp.runtime.progress.files.write_atomically"
    monkeypatch.setattr(target, lambda *args: (writes.append(args), write_atomically(*args)))
    work = {f"{i % 50} {i}": (str(i % 50), 1.0) for i in range(2000)}
    names, began = list(work), time.monotonic()

    def compute(part):
        for name in part:
            tracker.start(name)
            tracker.advance(name, 0.5)
            tracker.done(name)

    with Progress(work, tmp_path, print_fn=print) as tracker:
        threads = [threading.Thread(target=compute, args=(names[i::num_threads],)) for i in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 2 <= len(writes) <= 3 + (time.monotonic() - began)
    found = read(tmp_path)
    assert (found.state, set(found.done)) == ("finished", set(names))
    assert all(counts == {**dict.fromkeys(counts, 0), "total": 40, "done": 40} for counts in found.settings.values())
    texts = log_of(tmp_path)[1]
    assert len(texts) == 2 + 3 * 2000
    assert {text.removeprefix("done ") for text in texts if text.startswith("done ")} == set(names)
    assert abs(tracker._all.gained - 2000) < 1e-6


def test_a_slow_disk_takes_a_small_part_of_the_time(tmp_path, monkeypatch):
    writes, target = [], "jaxbp.runtime.progress.files.write_atomically"
    monkeypatch.setattr(target, lambda *args: (writes.append(args), time.sleep(0.1)))
    monkeypatch.setattr(progress, "_STATUS_EVERY", 0.01)
    with Progress(WORK, tmp_path, print_fn=print) as tracker:
        for i in range(20):
            tracker.advance("a 0", i / 20)
            time.sleep(0.01)
        assert len(writes) == 1  # the next is due 5 s after


@pytest.mark.slow
def test_scalars_are_what_tensorflow_reads(tmp_path):
    tf = pytest.importorskip("tensorflow")
    values = [(0, 2.5), (1, float("nan")), (300, 1e300), (2**40, -0.125)]
    with Progress({"a/b: 0": (None, 1.0), "é": (None, 1.0)}, tmp_path, print_fn=print, tensorboard=True) as tracker:
        for step, value in values:
            tracker.scalars("a/b: 0", step, {"loss": value, "test/accuracy of a long name " + "x" * 200: 0.25})
        tracker.scalars("é", 1, {"loss": 3})
        with pytest.raises(KeyError, match="unknown"):
            tracker.scalars("unknown", 1, {"loss": 3.0})
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == ["%C3%A9", "a%2Fb%3A%200"]
    (path,) = (tmp_path / "tensorboard" / "a%2Fb%3A%200").iterdir()
    assert "tfevents" in path.name
    events = list(tf.compat.v1.train.summary_iterator(str(path)))  # which checks the checksums
    assert events[0].file_version == "brain.Event:2"
    assert [event.step for event in events[1:]] == [step for step, _ in values]
    assert all(abs(event.wall_time - time.time()) < 60 for event in events)
    losses = [event.summary.value[0] for event in events[1:]]
    assert {value.tag for value in losses} == {"loss"}
    assert repr([value.simple_value for value in losses]) == "[2.5, nan, inf, -0.125]"
    assert {event.summary.value[1].simple_value for event in events[1:]} == {0.25}
    assert {len(event.summary.value) for event in events[1:]} == {2}


def test_scalars_of_many_units_need_few_file_descriptors(tmp_path):
    """A SummaryWriter for each unit, the other way to use tensorboardX, keeps three open."""
    script = textwrap.dedent(f"""
        import resource
        from jaxbp.runtime.progress import Progress
        names = [str(i) for i in range(200)]
        with Progress(dict.fromkeys(names, (None, 1.0)), {str(tmp_path)!r}, tensorboard=True, print_fn=print) as tracker:
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
            for step in range(2):
                for name in names:
                    tracker.scalars(name, step, {{"loss": 0.5}})
    """)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(list((tmp_path / "tensorboard").glob("*/*tfevents*"))) == 200


def test_without_tensorboardx_the_way_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingTensorBoardError, match=r'pip install "jaxbp\[tensorboard\]"'):
        Progress(WORK, tmp_path, tensorboard=True)
    Progress(WORK, tmp_path)  # needs none


def test_scalars_are_not_written_unless_asked_for(tmp_path):
    with Progress(WORK, tmp_path, print_fn=print) as tracker:
        tracker.scalars("a 0", 1, {"loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()
    with pytest.raises(ValueError, match="name one"):
        Progress(WORK, None, tensorboard=True)


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weight .* got -1.0 for 'x'"):
        Progress({"x": (None, -1.0)}, None)
    with Progress({"x": (None, 1.0)}, None, print_fn=print) as tracker:
        with pytest.raises(ValueError, match="between 0 and 1, got nan for 'x'"):
            tracker.advance("x", float("nan"))
        with pytest.raises(KeyError, match="y"):
            tracker.start("y")


def test_bars_show_all_and_the_settings_in_work(monkeypatch, capsys):
    monkeypatch.setattr(display, "Console", lambda: Console(force_terminal=True, width=100, color_system=None))
    with Progress({**WORK, "[c] 0": ("[c]", 1.0)}, None, done_before=["a 0"]) as tracker:
        tracker.start("[c] 0")
        tracker.start("a 1")
        assert len(tracker._display._bar.tasks) == 3  # all, [c] and a, but not b
        tracker._display._bar.refresh()
        tracker.log("a [message]")
        tracker.done("[c] 0")
        assert len(tracker._display._bar.tasks) == 2
        tracker.done("a 1")
    shown = capsys.readouterr().out
    assert "a [message]" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert any(row[-1:] == ["a"] and {"1/2", "50"} <= set(row) for row in rows)
    assert any(row[-1:] == ["[c]"] and {"0/1", "0"} <= set(row) for row in rows)
    last = [row for row in rows if "3/4" in row][-1]
    assert {"33", "left"} <= set(last)  # 3 of 9 by weight


def test_bars_stay_few(monkeypatch, capsys):
    monkeypatch.setattr(display, "Console", lambda: Console(force_terminal=True, width=100, color_system=None))
    with Progress({str(i): (str(i), 1.0) for i in range(100)}, None) as tracker:
        for i in range(100):
            tracker.start(str(i))
        assert len(tracker._display._bar.tasks) == 1 + display._MAX_ROWS
