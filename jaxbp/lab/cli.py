"""An orderly end: a user's errors in one line, interruptions with the way to go on, exit codes."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def guarded(folder: str | os.PathLike) -> Iterator[None]:
    """Report a user's errors in one line on stderr, and interruptions with the way to go on; then exit with a code.

    An error class of the project's own is made for users. Anything else is a defect and keeps its traceback. SIGTERM ends the program
    within seconds, whatever it computes.
    """

    from jaxbp.runtime import preemption

    again = f"Finished pieces are in {folder}; the same command goes on from there."
    try:
        with preemption.guard(immediate=True, exit_message=again):
            yield
            if _several_processes():
                from jaxbp.runtime import processes

                processes.shutdown()
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os._exit(preemption.PIPE_CLOSED)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("jaxbp", "experiments"):
            _leave(2, f"error: {error}")
        if not _several_processes():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1, "this process failed, and the others end with it")  # Python's own end would wait for them
    except KeyboardInterrupt:
        _leave(130, f"stopped. {again}")
    except preemption.Terminated:
        _leave(preemption.TERMINATED, f"terminated. {again}")


def _several_processes() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].process_count() > 1


def _leave(code: int, message: str) -> None:
    """End at once: threads that still compute must not keep a stopped program alive."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
