"""Whose an error is.

It is the project's own if its class is defined in jaxbp, or if it is a ValueError or TypeError that a ``raise`` statement of jaxbp or of
the experiments raised. An error inside a function that the caller passed (a network, a loss) is the caller's. All others are foreign.
"""

import dis
import types
from pathlib import Path

import jaxbp

_ROOT = Path(jaxbp.__file__).parent.parent
_PACKAGES = (f"{_ROOT / 'jaxbp'}/", f"{_ROOT / 'experiments'}/")
_TESTS = f"{_ROOT / 'tests'}/"


def outcome(error: BaseException | None) -> str:
    """Where an error comes from: "none", "own", "caller" or "foreign"."""
    if error is None:
        return "none"
    if type(error).__module__.split(".")[0] in ("jaxbp", "experiments"):
        return "own"
    frames = list(_frames(error.__traceback__))
    last = max((place for place, frame in enumerate(frames) if _is_ours(frame)), default=-1)
    if any(frame.tb_frame.f_code.co_filename.startswith(_TESTS) for frame in frames[last + 1 :]) and last >= 0:
        return "caller"
    innermost = frames[-1]
    raises = dis.opname[innermost.tb_frame.f_code.co_code[innermost.tb_lasti]] == "RAISE_VARARGS"
    return "own" if isinstance(error, ValueError | TypeError) and _is_ours(innermost) and raises else "foreign"


def _frames(traceback: types.TracebackType | None):
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_ours(frame: types.TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(_PACKAGES)


def error_of(call) -> Exception | None:
    try:
        call()
    except Exception as error:  # the subject of the test  # noqa: BLE001
        return error
    return None
