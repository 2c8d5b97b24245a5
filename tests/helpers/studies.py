"""Studies without a command line: all jobs in this process, and made-up results for the rules of verdicts."""

from types import SimpleNamespace

from jaxbp import claims, lab
from jaxbp.lab import jobs
from jaxbp.lab.archive import Archive
from jaxbp.runtime.store import Store


def compute(study, settings, folder, **options):
    """Compute all jobs of a study in ``folder``; returns the `jaxbp.lab.Run`."""
    with Store(folder, {}) as store:
        archive = Archive(store)
        planned = jobs.plan(study, settings)
        jobs.run_jobs(archive, planned, **options)
        return lab.Run(study, settings, planned, archive)


def made_up(case, settings, **stages):
    """Results of a case whose stages hold the given Datasets."""
    return SimpleNamespace(case=case, name=case.name, settings=settings, **stages)


def verdicts(study, results, settings):
    """The verdict of each claim from made-up results of all cases."""
    run = SimpleNamespace(settings=settings, cases=results)
    interval_fns = {m.claim: m.resolved_interval_fn for m in study.measures}
    return {v.claim.id: v.verdict for v in claims.judge_all({m.claim: m.values(run) for m in study.measures}, interval_fns=interval_fns)}
