"""A measure that reads what no stage gives is told before the work, or after the first job, and not at the end."""

import numpy as np
import pytest
import xarray as xr

from experiments.__main__ import STUDIES
from jaxbp import claims, lab
from jaxbp.lab import execute
from jaxbp.lab.outline import Outline
from tests.lab.test_jobs import Settings, stage

CLAIM = claims.Claim("T.a", "It helps.", "nowhere", "gain", claims.Above(0.0))


def run_with(fn, folder, *, across=False):
    """Run a study of two stages with one measure; returns the jobs that were computed."""
    computed = []

    def train(seed):
        computed.append(f"train {seed}")
        return {"accuracy": np.float64(seed)}

    def compare(trained, seed):
        computed.append(f"compare {seed}")
        return {"gain": trained.accuracy + 1}

    first = stage("train", train, over=lambda case, settings: {"seed": settings.seeds})
    second = stage("compare", compare, over=lambda case, settings: {"seed": settings.seeds}, needs=(first.fn,))
    measure = lab.Measure(CLAIM, fn, across=across)
    study = lab.Study("T", "Title", "Lead", "tests.toy", (first, second), (measure,), (), (), (), ())
    try:
        execute.run(study, Settings("quick", 3), folder, devices=["cpu"], command="", reuse=False)
    except lab.SettingsError as error:
        return computed, str(error)
    return computed, None


@pytest.mark.parametrize("across", [False, True])
def test_an_unknown_stage_is_told_before_any_job(tmp_path, across):
    def fn(results):
        if across:
            return {case.name: case.comparison.gain for case in results.cases}
        return results.comparison.gain

    computed, told = run_with(fn, tmp_path, across=across)
    assert (computed, told) == (
        [],
        "the measure of T.a reads the stage 'comparison', and the study has train, compare: correct it; what is finished is kept",
    )


@pytest.mark.parametrize(
    "fn", [lambda r: r.train.sel(seed=[0, 1, 2]).acuracy - 1, lambda r: 2 * r.train["acuracy"], lambda r: r.train[["acuracy"]]]
)
def test_an_unknown_variable_is_told_after_the_first_job(tmp_path, fn):
    computed, told = run_with(fn, tmp_path)
    assert computed == ["train 0"]
    assert told == "the measure of T.a reads 'acuracy' of stage train, which gives accuracy, seed: correct it; what is finished is kept"
    assert run_with(fn, tmp_path)[0] == []  # and at once where a result is there
    assert run_with(lambda r: r.compare.gain, tmp_path)[0] == ["train 1", "train 2", "compare 0", "compare 1", "compare 2"]


def test_what_an_outline_cannot_do_is_not_held_against_a_measure(tmp_path):
    def fn(results):
        gains = results.compare.gain
        table = xr.where(np.asarray(gains) > 0, gains, -gains)
        return table if float(gains.mean()) else gains

    computed, told = run_with(fn, tmp_path)
    assert (len(computed), told) == (6, None)


def test_every_measure_of_the_studies_passes_the_names_of_its_stages():
    for package in STUDIES:
        study = lab.load(package.DOOR)
        settings = package.Arguments(preset="smoke").settings()
        Outline(study, settings, (), None)
