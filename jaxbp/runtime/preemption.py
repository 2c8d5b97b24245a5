"""Orderly ends of programs: pre-emption (SIGTERM) and Ctrl-C (SIGINT).

Python runs signal handlers between its own instructions only, and a compiled program may run for hours. A listener thread therefore
records signals while `guard` is active:

* ``Guard.signal`` holds the first signal. Work checks it between its parts and saves its state.
* SIGTERM starts a timer of ``grace`` seconds. The process then exits with code 143; files on disk stay as they are.
* A second SIGINT raises KeyboardInterrupt as usual.

>>> from jaxbp.runtime import preemption
>>> with preemption.guard() as guard:
...     guard.signal is None
True
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

TERMINATED, PIPE_CLOSED = 143, 141  # 128 + SIGTERM and SIGPIPE, the convention of shells

GRACE = 8.0  # seconds; pre-emptible machines allow 10 to 30


class Terminated(SystemExit):
    """SIGTERM arrived and the state is saved. Uncaught, the exception ends the program with code 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def leave(code: int) -> NoReturn:
    """End the process at once with this code: neither threads that still compute nor other processes are waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed streams
            stream.flush()
    os._exit(code)


class Guard:
    """The signal that asked the program to stop.

    Attributes:
      signal: SIGTERM or SIGINT; None before any signal.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def check(self) -> None:
        """Raise `Terminated` after SIGTERM and KeyboardInterrupt after SIGINT."""
        if self.signal == signal.SIGTERM:
            raise Terminated
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt


_active: list[Guard] = []  # the innermost last


@contextlib.contextmanager
def guard(
    grace: float = GRACE, *, log: Callable[[str], None] | None = None, immediate: bool = False, exit_message: str = ""
) -> Iterator[Guard]:
    """Record SIGTERM and SIGINT while the body runs; outside the main thread, where no signals arrive, do nothing.

    A signal that the body did not handle is raised at the end of the body.

    Args:
      grace: seconds from SIGTERM to the forced exit of the process.
      log: called with a message at the first signal, from another thread.
      immediate: raise at the next Python instruction, for work that has nothing to save; otherwise the work checks ``Guard.signal``.
      exit_message: text for stderr at the forced exit.

    Raises:
      Terminated: SIGTERM arrived.
      KeyboardInterrupt: SIGINT arrived.
    """
    current = Guard()
    if threading.current_thread() is not threading.main_thread():
        yield current
        return
    if _active:
        current.signal = _active[-1].signal  # a JAX callback may have swallowed the exception of a handler
    over, interrupts = threading.Event(), itertools.count(1)
    reader, writer = os.pipe()

    def listen() -> None:
        while number := os.read(reader, 1):  # one byte a signal, none at the end
            first = current.signal is None
            if number[0] == signal.SIGTERM and current.signal != signal.SIGTERM:
                current.signal = signal.SIGTERM
                threading.Thread(target=_exit_after, args=(over, grace, exit_message), daemon=True).start()
            elif first:
                current.signal = signal.Signals(number[0])
            if first and log:  # in a thread of its own: the function may fail, or block on a closed terminal
                threading.Thread(target=_log, args=(log, "asked to stop: saving what there is"), daemon=True).start()
        os.close(reader)

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT and (immediate or next(interrupts) > 1):
            raise KeyboardInterrupt
        if number == signal.SIGTERM and immediate:
            raise Terminated

    os.set_blocking(writer, False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    handled = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _active.append(current)
    try:
        yield current
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        os.close(writer)
        listener.join()  # every signal so far is recorded
        _active.remove(current)
        if _active:
            _active[-1].signal = _active[-1].signal or current.signal
    current.check()


def _log(log: Callable[[str], None], text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed streams
        log(text)


def _exit_after(over: threading.Event, grace: float, exit_message: str) -> None:
    if not over.wait(grace):
        text = f"\nterminated. {exit_message}".rstrip() + "\n"
        writing = threading.Thread(target=lambda: os.write(2, text.encode()), daemon=True)  # may fail, or never return
        writing.start()
        writing.join(0.5)
        os._exit(TERMINATED)
