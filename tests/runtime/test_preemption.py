"""Signals that ask a program to stop, in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from jaxbp.runtime import preemption


def process(body, *signals, pause=0.2):
    """Run ``body`` until it prints, then send the signals; its exit code, output and what it said on stderr."""
    head = "import os, signal, sys, time\nfrom jaxbp.runtime import preemption\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = head + textwrap.dedent(body)
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "ready\n"
    for each in signals:
        running.send_signal(each)
        time.sleep(pause)
    out, err = running.communicate(timeout=30)
    return running.returncode, out, err


PARTS = """
    with preemption.guard(log=lambda text: print(text, flush=True)) as guard:
        print("ready", flush=True)
        for part in range(100):
            time.sleep(0.05)
            if guard.signal:
                print("saved", guard.signal.name, flush=True)
                guard.check()
"""


def test_sigterm_lets_the_part_end_and_gives_its_own_code():
    code, out, err = process(PARTS, signal.SIGTERM)
    assert (code, out, err) == (143, "asked to stop: saving what there is\nsaved SIGTERM\n", "")


def test_ctrl_c_lets_the_part_end_and_is_a_keyboard_interrupt():
    code, out, err = process(PARTS, signal.SIGINT)
    assert out.endswith("saved SIGINT\n")
    assert "KeyboardInterrupt" in err
    assert code == -signal.SIGINT


def test_a_second_ctrl_c_ends_at_once():
    body = "with preemption.guard():\n    print('ready', flush=True)\n    for _ in range(300): time.sleep(0.1)\n"
    code, _, err = process(body, signal.SIGINT, signal.SIGINT)
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_the_process_ends_after_the_grace_though_compiled_code_never_returns():
    body = """
        import ctypes
        with preemption.guard(grace=0.5, exit_message="Finished runs are safe."):
            print("ready", flush=True)
            ctypes.CDLL(None).pause()      # returns at a signal, without Python's handlers
            ctypes.CDLL(None).sleep(60)
    """
    code, _, err = process(body, signal.SIGTERM)
    assert (code, err) == (143, "\nterminated. Finished runs are safe.\n")


def test_an_immediate_guard_raises_between_instructions():
    body = """
        try:
            with preemption.guard(immediate=True):
                print("ready", flush=True)
                for _ in range(300): time.sleep(0.1)
        except preemption.Terminated:
            print("caught", flush=True)
            raise
    """
    assert process(body, signal.SIGTERM)[:2] == (143, "caught\n")


@pytest.mark.slow
def test_a_signal_that_nobody_looked_at_is_raised_at_the_end():
    body = """
        with preemption.guard():
            print("ready", flush=True)
            time.sleep(1)
            print("work ends", flush=True)
        print("not reached", flush=True)
    """
    assert process(body, signal.SIGTERM)[:2] == (143, "work ends\n")
    code, out, err = process(body, signal.SIGINT)
    assert (code, out) == (-signal.SIGINT, "work ends\n")
    assert "KeyboardInterrupt" in err


def test_what_swallows_an_exception_does_not_swallow_the_signal():
    body = """
        with preemption.guard(immediate=True):
            try:
                print("ready", flush=True)
                time.sleep(5)
            except KeyboardInterrupt:
                time.sleep(0.3)  # swallowed, as happens in a callback
            with preemption.guard() as inner:
                print(inner.signal.name, flush=True)
        print("not reached", flush=True)
    """
    code, out, _ = process(body, signal.SIGINT)
    assert (code, out) == (-signal.SIGINT, "SIGINT\n")


@pytest.mark.parametrize("log", ["lambda text: 1 / 0", "lambda text: time.sleep(60)"])
def test_the_end_comes_though_nobody_can_be_told(log):
    body = f"""
        with preemption.guard(grace=0.5, log={log}):
            os.close(2)
            print("ready", flush=True)
            time.sleep(60)
            time.sleep(60)
    """
    began = time.monotonic()
    assert process(body, signal.SIGTERM)[0] == 143
    assert time.monotonic() - began < 20


def test_handlers_and_threads_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    with preemption.guard(), preemption.guard():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    deadline = time.monotonic() + 10
    while threading.active_count() > before[2] and time.monotonic() < deadline:
        time.sleep(0.01)
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), threading.active_count()
    assert after == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert signal.set_wakeup_fd(-1) == -1


def test_nothing_happens_in_another_thread():
    records = []

    def work():
        with preemption.guard() as guard:
            records.append((guard.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert records == [(None, signal.getsignal(signal.SIGTERM))]


def test_check_raises_what_was_asked():
    guard = preemption.Guard()
    guard.check()
    for number, error in ((signal.SIGTERM, preemption.Terminated), (signal.SIGINT, KeyboardInterrupt)):
        guard.signal = number
        with pytest.raises(error):
            guard.check()
