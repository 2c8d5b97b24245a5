"""An orderly end when a program is asked to stop: pre-emption (SIGTERM) and Ctrl-C (SIGINT).

Python runs a signal's handler only between its own instructions, and a compiled program may run for hours. So a thread beside listens,
and while `watch` is entered:

* the first signal is noted in ``asked``, for work that looks there between its parts and saves what it has;
* SIGTERM leaves ``grace`` seconds for that; then the process ends at once, with the exit code 143. What is on disk by then stays;
* a second SIGINT raises KeyboardInterrupt as usual.

>>> from jaxbp import stopping
>>> with stopping.watch() as watch:
...     watch.asked is None
True
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

TERMINATED = 143  # 128 + SIGTERM, as shells have it

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


@contextlib.contextmanager
def watch(
    grace: float = GRACE, *, say: Callable[[str], None] | None = None, at_once: bool = False, last_words: str = ""
) -> Iterator[Watch]:
    """Note signals instead of dying of them; does nothing outside the main thread, where signals do not arrive.

    Args:
      grace: seconds from SIGTERM to the end of the process, come what may.
      say: is told what happens.
      at_once: raise as soon as Python runs, for work that has nothing to save; otherwise the work looks at ``asked``.
      last_words: for stderr when the grace is over.
    """
    found = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    over, interrupts = threading.Event(), itertools.count(1)

    def listen() -> None:
        while number := os.read(reader, 1):  # one byte a signal, none at the end
            if found.asked is None and say:
                say("asked to stop: saving what there is")
            if number[0] == signal.SIGTERM and found.asked != signal.SIGTERM:
                threading.Thread(target=end_it, daemon=True).start()
            if found.asked != signal.SIGTERM:
                found.asked = signal.Signals(number[0])

        os.close(reader)

    def end_it() -> None:
        if not over.wait(grace):
            print(f"\nterminated. {last_words}".rstrip(), file=sys.stderr, flush=True)
            os._exit(TERMINATED)

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT and (at_once or next(interrupts) > 1):
            raise KeyboardInterrupt
        if number == signal.SIGTERM and at_once:
            raise Terminated

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=listen, daemon=True).start()
    taken = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in taken}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield found
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        os.close(writer)  # ends the listener, which is the last to look at the other end
