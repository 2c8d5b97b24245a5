"""The command of a study: arguments first, JAX after them; a user's errors in one line, interruptions with the way to go on.

This module imports neither JAX nor a study's code, so that ``--help`` is instant.
"""

import contextlib
import errno
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from jaxbp.lab.settings import Arguments, takes_hours
from jaxbp.runtime import preemption


def main(arguments: type[Arguments], study: Any) -> None:
    """Parse the command line, run the study, print its verdicts, and end the program in an orderly way.

    Args:
      arguments: of the study.
      study: a `jaxbp.lab.Study`, or the door to one that is imported after parsing, such as "experiments.norm_bias.study:STUDY".
    """
    module = study.partition(":")[0].removesuffix(".study") if isinstance(study, str) else study.module
    command = _command(module)
    options = tyro.cli(arguments, prog=command or f"python {sys.argv[0]}")
    folder = options.out or Path("runs") / f"{folder_name(module)}-{options.preset}"
    with guarded(folder):
        settings, machine = options.settings(), options.elsewhere.machine
        jax_setup = importlib.import_module("jaxbp.runtime.jax_setup")  # the one door to JAX
        devices = jax_setup.start_jax(options.cluster, for_hours=takes_hours(options.preset))
        execute = importlib.import_module("jaxbp.lab.execute")
        if options.plan or machine:
            execute.print_cost(load(study), settings, folder, num_workers=len(devices), elsewhere=options.elsewhere)
            return
        typed = command and f"{command} {shlex.join(sys.argv[1:])}".strip()
        flags = {"recompute": options.recompute, "reuse": options.reuse}
        section = execute.run(load(study), settings, folder, devices=devices, command=typed, **flags)
        if section:
            execute.print_outcome(section, folder)


def _command(module: str) -> str:
    """What starts the program that runs a module's study; "" where nothing does but code, as that of ``python -c``."""
    if "." in module:
        return f"python -m {module}"
    program = sys.modules["__main__"]
    if spec := getattr(program, "__spec__", None):
        return f"python -m {spec.name.removesuffix('.__main__')}"
    file = getattr(program, "__file__", None)
    return f"python {shlex.quote(os.path.relpath(file))}" if file else ""


def folder_name(module: str) -> str:
    """What the folder of a module's study is called; a script's like its file."""
    return Path(sys.argv[0]).stem if module == "__main__" else module.rpartition(".")[2]


def load(study: Any) -> Any:
    """The study behind a door such as "experiments.norm_bias.study:STUDY"."""
    if not isinstance(study, str):
        return study
    module, _, name = study.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def guarded(folder: str | os.PathLike) -> Iterator[None]:
    """Report a user's errors in one line on stderr, and interruptions with the way to go on; then exit with a code.

    The codes are 2 for a user's error, 130 for Ctrl-C, 143 for SIGTERM. An error class of the project's own is made for users. Anything
    else is a defect and keeps its traceback. SIGTERM ends the program within seconds, whatever it computes.
    """
    again = f"Finished jobs are in {folder}; the same command goes on from there."
    try:
        with preemption.guard(immediate=True, exit_message=again):
            yield
            if _several_processes():
                importlib.import_module("jaxbp.runtime.processes").shutdown()
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os._exit(preemption.PIPE_CLOSED)
    except Exception as error:
        if _is_for_users(error):
            _leave(2, f"error: {error}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _leave(2, f"error: {error.strerror}: {error.filename or folder}. Make room. {again}")
        if not _several_processes():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1, "this process failed, and the others end with it")  # Python's own end would wait for them
    except KeyboardInterrupt:
        _leave(130, f"stopped. {again}")
    except preemption.Terminated:
        _leave(preemption.TERMINATED, f"terminated. {again}")


def _is_for_users(error: Exception) -> bool:
    """Whether an error's class is the project's own, so that its message is written for users."""
    return type(error).__module__.partition(".")[0] in ("jaxbp", "experiments")


def report_failure(error: Exception, name: str) -> bool:
    """Say on stderr what ended a part of the work, a defect with its traceback; False where another process waits for this one.

    Work beside the part ``name`` may go on then.
    """
    if _several_processes():
        return False
    print(
        f"\n{name} failed: {error if _is_for_users(error) else ''.join(traceback.format_exception(error))}\n", file=sys.stderr, flush=True
    )
    return True


def _several_processes() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].process_count() > 1


def _leave(code: int, message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"\n{message}", file=sys.stderr)
    preemption.leave(code)
