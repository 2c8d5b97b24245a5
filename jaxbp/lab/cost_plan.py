"""What a run would cost, before it: jobs, programs, time, memory and disk, estimated from jobs that this machine has computed.

An estimate is as good as its basis, which is told with it: jobs of the same stage and case where there are any, else of the same stage.
Of these the nearest in size count. Their time without compilation is scaled by the stage's own costs, and by epochs and examples where
these costs know nothing of them; by a factor of more than a thousand nothing is scaled, since costs are rough and their errors multiply.
Compilation takes the same time whatever the size, and counts once a case.
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
from jaxbp.runtime.machines import Elsewhere, Machine, Roofline, roofline
from jaxbp.runtime.program_cost import ProgramCost

MOST_FOLD = 1000.0
_ROUGH_FOLD = 4.0  # from which on it is told that what jobs do once is scaled with the rest


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
      flops, bytes_accessed, launches: of the missing jobs by the compiler's account (`jaxbp.runtime.program_cost`), each program that a
        job compiles called once; None if it was not noted.
      program_mib: the most that a program holds on a device, at the sizes that were timed.
      compile_seconds: of ``seconds``, those of compilation.
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
    flops: float | None = None
    bytes_accessed: float | None = None
    launches: float | None = None
    program_mib: float | None = None
    compile_seconds: float = 0.0

    def elsewhere(self, elsewhere: Elsewhere, here: Machine) -> Roofline | None:
        """The time of the missing jobs one after another on another machine, without compilation; None where it is not known.

        Without an efficiency, the time here times the ratio of the two rooflines: the share of the peaks that jobs reach here, host work
        and programs that are called again included, is taken to hold there.
        """
        if not self.num_jobs - self.num_there:
            return Roofline(0.0, "nothing")
        if self.seconds is None or self.flops is None or self.bytes_accessed is None or self.launches is None or not elsewhere.machine:
            return None
        cost = ProgramCost(self.flops, self.bytes_accessed, self.launches)
        there = roofline(cost, elsewhere.machine, elsewhere.efficiency or 1.0)
        if elsewhere.efficiency is not None:
            return there
        return Roofline((self.seconds - self.compile_seconds) * there.seconds / roofline(cost, here, 1.0).seconds, there.bound_by)


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
    if (fold := max(min(_ratio(job, record) for record in records) for job in missing)) > MOST_FOLD:
        told = f"the timed jobs are {float(f'{fold:.1g}'):,.0f} times smaller, too far to tell: run a preset that lies between"
        return StageCost(stage, num_jobs, there, None, None, None, None, told)
    seconds, num_bytes, programs, exact = 0.0, 0.0, 0, 0
    accounts: list[ProgramCost | None] = []
    compiled: dict[str, JobTime] = {}
    for job in missing:
        alike = [record for record in records if record.case == job.case.name]
        exact += bool(alike)
        basis = _nearest(job, alike or records)
        seconds += float(np.median([_scaled(job, record) for record in basis]))
        num_bytes += float(np.median([record.num_bytes for record in basis]))
        accounts.append(_account(job, basis))
        compiled.setdefault(job.case.name, max(basis, key=lambda record: (record.programs, record.compile_seconds)))
    programs = sum(record.programs for record in compiled.values())
    compiling = sum(record.compile_seconds for record in compiled.values())
    timed = f"{len(records)} timed job{'s' * (len(records) != 1)}{_ratios(missing, records)}"
    basis_text = f"{timed}; " + (f"{exact} of {len(missing)} of a case that was timed" if exact else "other cases")
    if fold > _ROUGH_FOLD:
        basis_text += f"; {fold:.0f} times smaller ones, so what they do once, such as reading data, counts as often: rather too much"
    peak = max(record.peak_mib for record in records)
    cost = StageCost(stage, num_jobs, there, seconds + compiling, programs, round(num_bytes), peak, basis_text, compile_seconds=compiling)
    known = [account for account in accounts if account]
    if len(known) < len(missing):
        return cost
    total = sum(known, ProgramCost())
    return dataclasses.replace(
        cost,
        flops=total.flops,
        bytes_accessed=total.bytes_accessed,
        launches=total.launches,
        program_mib=max(account.memory for account in known) / 2**20,
    )


def _nearest(job: Job, records: Sequence[JobTime]) -> list[JobTime]:
    """The records that are nearest to the job in size, and those that are not twice as far."""
    distances = [abs(math.log(_ratio(job, record) or 1.0)) for record in records]
    return [record for record, distance in zip(records, distances, strict=True) if distance <= min(distances) + math.log(2.0)]


def _scaled(job: Job, record: JobTime) -> float:
    """The time of a job by that of another, without compilation."""
    return (record.seconds - record.compile_seconds) * _ratio(job, record)


def _ratio(job: Job, record: JobTime) -> float:
    """The work of a job over that of another: by the stage's own cost, and by sizes of which that knows nothing."""
    ratio = job.weight / record.weight if record.weight else 1.0
    sizes = job.scale
    return ratio * math.prod(sizes[name] / record.scale[name] for name in sizes if record.scale.get(name))


def _account(job: Job, basis: Sequence[JobTime]) -> ProgramCost | None:
    """What a job's programs cost, from the timed job that compiled the most for its work: later ones use the programs of earlier ones."""
    noted = [record for record in basis if record.bytes_accessed]
    if not noted:
        return None
    most = max(noted, key=lambda record: record.bytes_accessed * _ratio(job, record))
    cost = ProgramCost(most.flops, most.bytes_accessed, most.launches)
    return dataclasses.replace(cost.times(_ratio(job, most)), memory=max(record.program_bytes for record in noted))


def _ratios(missing: Sequence[Job], records: Sequence[JobTime]) -> str:
    wanted = missing[0].scale
    had: Mapping[str, Any] = records[-1].scale
    told = [f"{name} {had[name]:g} scaled to {wanted[name]:g}" for name in wanted if name in had and had[name] != wanted[name]]
    return f" ({', '.join(told)})" if told else ""
