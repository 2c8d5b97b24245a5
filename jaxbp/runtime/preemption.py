"""An orderly end when a program is asked to stop: pre-emption (SIGTERM) and Ctrl-C (SIGINT).

Python runs a signal's handler only between its own instructions, and a compiled program may run for hours. So a thread beside listens,
and while `watch` is entered:

* the first signal is noted in ``asked``, for work that looks there between its parts and saves what it has;
* SIGTERM leaves ``grace`` seconds for that; then the process ends at once, with the exit code 143. What is on disk by then stays;
* a second SIGINT raises KeyboardInterrupt as usual.

>>> from jaxbp.runtime import preemption
>>> with preemption.watch() as watch:
...     watch.asked is None
True
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

TERMINATED, PIPE_CLOSED = 143, 141  # 128 + SIGTERM and SIGPIPE, as shells have it

GRACE = 8.0  # seconds; pre-emptible machines leave 10 to 30


class Terminated(SystemExit):
    """SIGTERM arrived and what could be saved is saved; ends a program that does not catch it with the code 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Watch:
    """Which signal asked the program to stop, None so far; `check` raises what it stands for."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def check(self) -> None:
        """Raise `Terminated` or KeyboardInterrupt if the program was asked to stop."""
        if self.asked == signal.SIGTERM:
            raise Terminated
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt


_entered: list[Watch] = []  # the innermost last


@contextlib.contextmanager
def watch(
    grace: float = GRACE, *, say: Callable[[str], None] | None = None, at_once: bool = False, last_words: str = ""
) -> Iterator[Watch]:
    """Note signals instead of dying of them; does nothing outside the main thread, where signals do not arrive.

    One that nobody looked at is raised when the body ends.

    Args:
      grace: seconds from SIGTERM to the end of the process, come what may.
      say: is told what happens, from another thread.
      at_once: raise as soon as Python runs, for work that has nothing to save; otherwise the work looks at ``asked``.
      last_words: for stderr when the grace is over.
    """
    found = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    if _entered:
        found.asked = _entered[-1].asked  # JAX's callbacks may have swallowed what a handler raised
    over, interrupts = threading.Event(), itertools.count(1)
    reader, writer = os.pipe()

    def listen() -> None:
        while number := os.read(reader, 1):  # one byte a signal, none at the end
            first = found.asked is None
            if number[0] == signal.SIGTERM and found.asked != signal.SIGTERM:
                found.asked = signal.SIGTERM
                threading.Thread(target=_end, args=(over, grace, last_words), daemon=True).start()
            elif first:
                found.asked = signal.Signals(number[0])
            if first and say:  # which may fail, or wait for ever for somebody to read
                threading.Thread(target=_say, args=(say, "asked to stop: saving what there is"), daemon=True).start()
        os.close(reader)

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT and (at_once or next(interrupts) > 1):
            raise KeyboardInterrupt
        if number == signal.SIGTERM and at_once:
            raise Terminated

    os.set_blocking(writer, False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    taken = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in taken}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _entered.append(found)
    try:
        yield found
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        os.close(writer)
        listener.join()  # what has come is noted
        _entered.remove(found)
        if _entered:
            _entered[-1].asked = _entered[-1].asked or found.asked
    found.check()


def _say(say: Callable[[str], None], text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        say(text)


def _end(over: threading.Event, grace: float, last_words: str) -> None:
    if not over.wait(grace):
        text = f"\nterminated. {last_words}".rstrip() + "\n"
        writing = threading.Thread(target=lambda: os.write(2, text.encode()), daemon=True)  # may fail, or never return
        writing.start()
        writing.join(0.5)
        os._exit(TERMINATED)
