"""The clock of the package, and the text form of times."""

import time
from datetime import UTC, datetime

now = time.monotonic  # seconds from an arbitrary origin


def stamp() -> str:
    """Current time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_seconds(seconds: float) -> str:
    """Format a duration as h:mm:ss.

    >>> format_seconds(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
