"""The time: what all of this package measures by, and how it is written."""

import time
from datetime import UTC, datetime

now = time.monotonic  # seconds; only differences mean something


def stamp() -> str:
    """The time of day in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_seconds(seconds: float) -> str:
    """Write a time as h:mm:ss.

    >>> format_seconds(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
