"""Numbers, intervals and text from outside, as a page writes them."""

import math
import re
from numbers import Integral
from urllib.parse import quote

from jaxbp import stats


def prose(text: str) -> str:
    """Keep per cent signs on the line of their number: the space between them becomes a no-break space."""
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


def fragment(anchor: str) -> str:
    """An anchor as it stands behind the # of a link."""
    return quote(anchor, safe="")


def relative_path(path: str) -> str:
    """A path below the page's folder as it stands in a link; no name in it is read as a scheme or a host."""
    return f"./{quote(path)}"


def plural(count: int, noun: str) -> str:
    """Write "1 seed", "2 seeds"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def format_number(value: float | None, digits: int = 3) -> str:
    """Write ``value`` to so many significant digits, whole numbers in full; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, Integral) or not math.isfinite(value):
        return str(value)
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if -4 <= exponent < 6:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 1}e}"


def format_interval(interval: stats.Interval | None) -> str:
    """Write "estimate [low, high]" with two digits of the interval's half width; a dash for None."""
    if interval is None:
        return "–"
    ends = (interval.estimate, interval.low, interval.high)
    half, largest = (interval.high - interval.low) / 2, max(map(abs, ends))
    decimals = 1 - math.floor(math.log10(half)) if half else 4
    if largest < 1e6 and (decimals <= 6 or largest >= 1e-3):
        estimate, low, high = (f"{end:.{min(max(decimals, 0), 9)}f}" for end in ends)
    else:
        digits = 1 + decimals + math.floor(math.log10(largest)) if half else 4
        estimate, low, high = (f"{end:.{min(max(digits - 1, 1), 8)}e}" for end in ends)
    return f"{estimate} [{low}, {high}]"
