"""What a study has measured, as its verdicts, figures and page read it."""

from collections.abc import Callable, Mapping
from typing import Any


class Results:
    """Reads a finished run: ``settings``, and the pieces in ``store``; every per-seed array has the seeds first.

    ``interval_fn``: how `jaxbp.claims.judge` makes intervals of `measurements`; default Student's t.
    """

    interval_fn: Callable | None = None

    def __init__(self, settings: Any, store: Any):
        self.settings, self.store = settings, store

    @property
    def measurements(self) -> Mapping[Any, Mapping[str, Any]]:
        """For each claim its values by case, (num_seeds,) each; for studies in one file."""
        raise NotImplementedError
