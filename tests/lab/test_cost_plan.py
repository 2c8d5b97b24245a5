"""Estimates of a run's cost: from the times of jobs, scaled by what decides them, and with their basis."""

import dataclasses
import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxbp import lab
from jaxbp.lab import cost_plan, job_times, jobs, output
from jaxbp.lab.archive import Results
from jaxbp.lab.cost_plan import StageCost
from jaxbp.lab.job_times import JobTime
from jaxbp.runtime import machines
from jaxbp.runtime.machines import Elsewhere
from tests.helpers import studies


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    num_train: int = 100


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("digits"),)
    num_epochs: int = 2


def train(case, settings, seed):
    return {"loss": jax.jit(lambda x: (x * settings.num_epochs).sum())(jnp.ones(3))}


def judge(case, settings):
    return {"value": 1.0}


STAGES = (
    lab.Stage(train, over=lambda case, settings: {"seed": settings.seeds}, cost=lambda case, settings, seed: 2.0 * settings.num_epochs),
    lab.Stage(judge, reads=()),
)
STUDY = lab.Study("C", "Title", "Lead", "tests.cost", STAGES, (), (), (), (), ())


@pytest.mark.slow
def test_a_run_notes_the_times_of_its_jobs_and_a_larger_one_is_estimated_from_them(tmp_path, capsys):
    jax.clear_caches()  # of earlier tests, so that there is something to compile
    studies.compute(STUDY, Settings("quick", 2), tmp_path / "runs" / "small")
    records = job_times.read([tmp_path / "runs" / "small"])
    of_jobs = [(record.stage.rpartition(".")[2], record.case, record.weight) for record in records]
    assert of_jobs == [("train", "digits", 4.0)] * 2 + [("judge", "digits", 1.0)]
    assert records[0].scale == {"num_train": 100.0}  # of epochs the cost knows
    assert sum(record.programs for record in records) > 0
    assert 0 < records[0].compile_seconds < records[0].seconds
    larger = Settings("quick", 4, (Case("digits"), Case("mnist1d", 200)), num_epochs=20)
    results, planned = Results(tmp_path / "runs" / "large"), jobs.plan(STUDY, larger)
    of_train, of_judge = cost_plan.estimate(planned, results.paths, results.folders)
    assert (of_train.num_jobs, of_train.num_there, of_judge.num_jobs, of_judge.num_there) == (8, 0, 2, 1)
    assert "2 timed jobs" in of_train.basis
    assert "4 of 8 of a case that was timed" in of_train.basis
    noted = records[0]
    assert noted.flops >= 3 * 2  # the product and the sum of three numbers
    assert noted.bytes_accessed > 0
    assert of_train.flops == pytest.approx(8 * 10 * noted.flops, rel=0.5)  # ten times the weight, and twice the examples for half the jobs
    capsys.readouterr()
    output.print_plan([of_train, of_judge], 2, Elsewhere("8xh100"))
    said = capsys.readouterr().out
    assert "an estimate" in said
    assert "8 at once" in said
    assert "67 Tflop/s, 3350 GB/s, 3 microseconds a launch" in said
    assert "not known, since no timed job noted its programs: judge" in said
    assert not (tmp_path / "runs" / "large").exists()


def test_times_are_scaled_by_costs_and_by_sizes_that_costs_do_not_know(tmp_path):
    kind = jax.local_devices()[0].device_kind
    job_times.write(tmp_path, JobTime(f"{__name__}.train", "digits", kind, 4.0, {"num_train": 100.0}, 3.0, 1.0, 5, 1000, 300))
    job_times.write(tmp_path, JobTime(f"{__name__}.train", "digits", "another device", 4.0, {"num_train": 100.0}, 99.0, 1.0, 5, 1000, 300))
    with (tmp_path / "job_times.0.jsonl").open("a") as file:
        file.write(json.dumps(dataclasses.asdict(JobTime("other.train", "digits", kind, 4.0, {}, 99.0))) + "\n")  # of another study
        file.write('{"stage": "tra')  # torn by a kill
    planned = jobs.plan(STUDY, Settings("quick", 3, (Case("digits", 200),), num_epochs=20))
    of_train, of_judge = cost_plan.estimate(planned, [], [tmp_path])
    assert of_train.seconds == pytest.approx(3 * (3.0 - 1.0) * 10 * 2 + 1.0)  # three seeds, ten times the epochs, twice the examples
    assert (of_train.programs, of_train.num_bytes, of_train.peak_mib) == (5, 3000, 300)
    assert "num_train 100 scaled to 200" in of_train.basis
    assert of_judge.seconds is None
    assert "ever timed" in of_judge.basis
    done = cost_plan.estimate(planned, [job.digest for job in planned], [tmp_path])
    assert [cost.seconds for cost in done] == [0.0, 0.0]


def test_the_nearest_in_size_count_and_compilation_counts_once_whatever_the_size(tmp_path):
    kind = jax.local_devices()[0].device_kind
    for weight, seconds, compiling in ((4.0, 9.0, 8.0), (400.0, 70.0, 10.0), (420.0, 74.0, 10.0)):
        job_times.write(tmp_path, JobTime(f"{__name__}.train", "digits", kind, weight, {"num_train": 100.0}, seconds, compiling, 5))
    for num_epochs, wanted in ((200, 3 * (60.0 + 400 / 420 * 64.0) / 2 + 10.0), (2, 3 * (9.0 - 8.0) + 8.0)):
        planned = jobs.plan(STUDY, Settings("quick", 3, num_epochs=num_epochs))
        cost = cost_plan.estimate(planned, [], [tmp_path])[0]
        assert cost.seconds == pytest.approx(wanted)
        assert "rather too much" not in cost.basis
    large = cost_plan.estimate(jobs.plan(STUDY, Settings("quick", 3, num_epochs=2000)), [], [tmp_path])[0]
    assert "10 times smaller ones, so what they do once" in large.basis


def test_to_get_a_program_ready_and_to_wait_for_one_is_no_work():
    """Functions within functions are traced in their time, and jobs of one stage and case wait for a program that they share."""
    kind = jax.local_devices()[0].device_kind
    own, waiting, other = (JobTime("train", case, kind, 1.0, {}) for case in ("digits", "digits", "mnist1d"))
    started, done = threading.Barrier(3), threading.Event()

    def traced(x):
        time.sleep(0.3)
        return jax.jit(lambda y: time.sleep(0.2) or y + 1)(x)

    def wait(record):
        with job_times.timed(record):
            started.wait()
            done.wait()

    threads = [threading.Thread(target=wait, args=(record,)) for record in (waiting, other)]
    for thread in threads:
        thread.start()
    with job_times.timed(own):
        started.wait()
        jax.jit(traced)(jnp.ones(3))
        done.set()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert 0.5 < own.compile_seconds <= own.seconds - 0.2
    assert own.programs > 0
    assert 0 < waiting.compile_seconds < own.compile_seconds
    assert (waiting.programs, other.compile_seconds) == (0, 0.0)


def test_nothing_is_scaled_too_far(tmp_path):
    kind = jax.local_devices()[0].device_kind
    job_times.write(tmp_path, JobTime(f"{__name__}.train", "digits", kind, 4.0, {"num_train": 100.0}, 3.0, 1.0, 5, 1000, 300))
    for num_train, is_known in ((10_000, True), (10_100, False)):  # and ten times the epochs
        planned = jobs.plan(STUDY, Settings("quick", 3, (Case("digits", num_train),), num_epochs=20))
        cost = cost_plan.estimate(planned, [], [tmp_path])[0]
        assert (cost.seconds is not None) == is_known
    assert cost.basis == "the timed jobs are 1,000 times smaller, too far to tell: run a preset that lies between"


def test_the_time_elsewhere_is_that_here_by_the_ratio_of_rooflines_or_by_a_stated_efficiency():
    here = dataclasses.replace(machines.named("h100"), flops=67e10, bandwidth=3350e7)  # a hundredth of the peaks
    cost = StageCost("train", 1, 0, 110.0, 1, 1, 1, "", flops=67e12, bytes_accessed=1.0, launches=1.0, compile_seconds=10.0)
    assert cost.elsewhere(Elsewhere("h100"), here) == (pytest.approx(1.0), "arithmetic")
    assert cost.elsewhere(Elsewhere("h100", 0.5), here) == (pytest.approx(2.0), "arithmetic")
    assert dataclasses.replace(cost, flops=None).elsewhere(Elsewhere("h100"), here) is None
    assert dataclasses.replace(cost, num_there=1).elsewhere(Elsewhere("h100"), here) == (0.0, "nothing")
