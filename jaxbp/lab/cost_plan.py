"""What a run would cost, before it: jobs, programs, time, memory and disk, estimated from jobs that this machine has computed.

An estimate is as good as its basis, which is told with it: jobs of the same stage and case where there are any, else of the same stage.
Their time without compilation is scaled by the stage's own costs, and by epochs and examples where these costs know nothing of them.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbp.lab import job_times
from jaxbp.lab.job_times import JobTime
from jaxbp.lab.jobs import Job


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What the missing jobs of a stage would cost.

    Attributes:
      stage: its name.
      num_jobs, num_there: all jobs, and those whose results are there.
      seconds: time of all missing jobs one after another, None without a basis.
      programs: programs that they compile.
      num_bytes: of their results.
      peak_mib: of a process.
      basis: what the estimate is made from, in words.
    """

    stage: str
    num_jobs: int
    num_there: int
    seconds: float | None
    programs: int | None
    num_bytes: int | None
    peak_mib: int | None
    basis: str


def estimate(jobs: Sequence[Job], there: Iterable[str], folders: Iterable[Path]) -> list[StageCost]:
    """The cost of the jobs whose digests are not ``there``, by stage, from the times in ``folders``."""
    platform, there = jax.local_devices()[0].device_kind, set(there)
    records = [record for record in job_times.read(folders) if record.device == platform]
    costs = []
    for stage in dict.fromkeys(job.stage for job in jobs):
        own = [job for job in jobs if job.stage == stage]
        missing = [job for job in own if job.digest not in there]
        costs.append(_of_stage(stage.name, len(own), missing, [record for record in records if record.stage == stage.qualified_name]))
    return costs


def _of_stage(stage: str, num_jobs: int, missing: Sequence[Job], records: Sequence[JobTime]) -> StageCost:
    there = num_jobs - len(missing)
    if not missing:
        return StageCost(stage, num_jobs, there, 0.0, 0, 0, None, "all are there")
    if not records:
        return StageCost(stage, num_jobs, there, None, None, None, None, "no job of this stage was ever timed here: run a smaller preset")
    seconds, num_bytes, programs, exact = 0.0, 0.0, 0, 0
    compiled: dict[tuple[str, str], JobTime] = {}
    for job in missing:
        alike = [record for record in records if record.case == job.case.name]
        exact += bool(alike)
        basis = alike or records
        seconds += float(np.median([_scaled(job, record) for record in basis]))
        num_bytes += float(np.median([record.num_bytes for record in basis]))
        compiled.setdefault((job.case.name, str(job.point)), max(basis, key=lambda record: record.programs))
    per_case = {case: record for (case, _), record in compiled.items()}
    programs = sum(record.programs for record in per_case.values())
    seconds += sum(record.compile_seconds for record in per_case.values())
    timed = f"{len(records)} timed job{'s' * (len(records) != 1)}{_ratios(missing, records)}"
    basis_text = f"{timed}; " + (f"{exact} of {len(missing)} of a case that was timed" if exact else "other cases")
    peak = max(record.peak_mib for record in records)
    return StageCost(stage, num_jobs, there, seconds, programs, round(num_bytes), peak, basis_text)


def _scaled(job: Job, record: JobTime) -> float:
    """The time of a job by that of another, without compilation."""
    ratio = job.weight / record.weight if record.weight else 1.0
    sizes = job.scale
    return (record.seconds - record.compile_seconds) * ratio * math.prod(sizes[n] / record.scale[n] for n in sizes if record.scale.get(n))


def _ratios(missing: Sequence[Job], records: Sequence[JobTime]) -> str:
    wanted = missing[0].scale
    had: Mapping[str, Any] = records[-1].scale
    told = [f"{name} {had[name]:g} scaled to {wanted[name]:g}" for name in wanted if name in had and had[name] != wanted[name]]
    return f" ({', '.join(told)})" if told else ""
