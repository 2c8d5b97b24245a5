"""Seeds until decided for any function and any measure, in a few lines and without a study.

>>> import jax
>>> from jaxbp import claims, lab, stats
>>> def measure(key, *, shift):
...     return {"score": shift + jax.random.normal(key)}
>>> arms = {"plain": {"shift": 0.0}, "better": {"shift": 2.0}}
>>> better = claims.Claim("X.a", "The shift helps.", "nowhere", "score, better minus plain", claims.Above(0.5))
>>> results, (verdict,) = lab.until_decided(
...     lambda seeds: lab.sweep(measure, arms=arms, seeds=seeds),
...     {better: lambda r: r.score.sel(arm="better", drop=True) - r.score.sel(arm="plain", drop=True)},
...     looks=stats.Looks(5, most=20),
... )
>>> verdict.verdict, verdict.num_seeds, dict(results.sizes)
('supported', 5, {'arm': 2, 'seed': 5})
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from jaxbp import claims
from jaxbp.claims import Claim, Verdict
from jaxbp.lab.study import Values, by_case
from jaxbp.runtime import jax_setup, processes
from jaxbp.runtime.shared_store import open_together
from jaxbp.stats import IntervalFn, Looks

_DEFAULT = Looks()
_ALONG_SEEDS: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "outer"}


def until_decided(
    compute_fn: Callable[[tuple[int, ...]], xr.Dataset],
    measures: Mapping[Claim, Callable[[xr.Dataset], Values]],
    *,
    looks: Looks = _DEFAULT,
    interval_fns: Mapping[Claim, IntervalFn] | None = None,
    folder: str | Path | None = None,
) -> tuple[xr.Dataset, list[Verdict]]:
    """Compute seeds look by look until every claim is decided or on the line.

    Args:
      compute_fn: from seeds to results with the axis ``seed``, such as a call of `jaxbp.lab.sweep`; for a run that survives kills, a
        `jaxbp.sweep.run` into a folder for each block of seeds. What it returns for a seed must not depend on the other seeds.
      measures: for each claim a function of all results so far to values with the axis ``seed``; every coordinate of their other axes
        is a case of its own, and so is each name of a mapping.
      looks: the schedule.
      interval_fns: how seeds make an interval, by claim; default `jaxbp.stats.t_interval`.
      folder: where config.json fixes schedule and rules before the first seed, and verdicts.json is written at each look.

    Returns:
      All results, and the verdicts.

    Raises:
      jaxbp.runtime.store.StoreError: the folder was begun with another schedule or other rules.
    """
    results: xr.Dataset | None = None
    verdicts: list[Verdict] = []
    with _schedule(folder, looks, measures):
        for block in looks.blocks(looks.most):
            more = compute_fn(block)
            results = more if results is None else xr.concat([results, more], "seed", **_ALONG_SEEDS)
            values = {claim: by_case("", fn(results)) for claim, fn in measures.items()}
            verdicts = claims.judge_all(values, interval_fns=interval_fns, looks=looks)
            if folder is not None and processes.is_first():
                claims.write_verdicts(Path(folder) / "verdicts.json", verdicts)
            if not processes.from_first(any(verdict.is_open for verdict in verdicts)):
                break
    assert results is not None  # a schedule has a first look
    return results, verdicts


def _schedule(folder: str | Path | None, looks: Looks, measures: Mapping[Claim, Any]) -> contextlib.AbstractContextManager:
    if folder is None:
        return contextlib.nullcontext()
    rules = {claim.id: claim.rule.text(claim.measure) for claim in measures}
    return open_together(folder, {"looks": dataclasses.asdict(looks), "rules": rules}, jax_setup.provenance([]))
