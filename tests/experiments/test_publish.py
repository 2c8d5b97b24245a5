"""The tables and pictures of README and guide are made from a committed results file."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import xarray as xr

from experiments import map_tables
from experiments import results_pages as publish
from experiments.__main__ import NAMES
from jaxbp import claims, lab
from jaxbp.lab import archive

CLAIM = claims.Claim("S2.a", "Weight decay | beats none.", "Table 2", "gain", claims.Above(0.0))
FACTS = {
    "started": "2026-01-02T03:04:05Z",
    "python": "3.11.7",
    "packages": {"jaxbp": "0.1.0", "jax": "0.10.2"},
    "devices": ["cpu"] * 2,
    "commits": {"S1": "abc"},
    "preset": "quick",
}


def test_readme_and_guide_show_what_was_published():
    verdicts, known = publish.published(publish.FOLDER), publish.facts(publish.FOLDER)
    larger = publish.published(publish.STANDARD)
    headlines = [verdict for verdict in verdicts if verdict.claim.id in publish.HEADLINES]
    maps = map_tables.published()
    for page, text, marker in (
        (publish.README, publish.summary(headlines, larger, known), publish.BEGIN),
        (publish.RESULTS, publish.table(verdicts, known), publish.BEGIN),
        (publish.RESULTS, publish.comparison(verdicts, larger, publish.facts(publish.STANDARD)), publish.BEGIN_STANDARD),
        (publish.README, map_tables.grid(maps[publish.SHOWN_MAP]), publish.BEGIN_MAPS),
        (publish.MAPS_PAGE, map_tables.overview(maps), publish.BEGIN_MAPS),
    ):
        assert publish.with_table(page, text, marker) == page.read_text("utf-8")
    assert (publish.FOLDER / "verdicts.svg").exists()
    assert (publish.FOLDER / "headlines.svg").exists()
    assert {v.claim.id.partition(".")[0] for v in verdicts} == {f"S{number}" for number in range(1, 11)}


def test_a_map_is_taken_and_told(tmp_path, monkeypatch):
    """Arrays made by hand, in which one axis alone decides; the other and the seeds add a little."""
    monkeypatch.setattr(map_tables, "MAPS", tmp_path / "published")
    axes = ("rate", "shift", "num_epochs")
    effect = np.array([[2.0, 2.1], [-1.0, -1.1], [-2.0, -2.0]])[..., None]
    arrays = {"effect": effect, "low": effect - 0.3, "high": effect + 0.3, "num_seeds": np.full(effect.shape, 5)}
    arrays["outcome"] = np.where(effect > 0, "supported", "contradicted")
    told = {"claim": "S2.a", "statement": "It helps.", "headline": "holds in 2 of 6", "command": "python -m experiments.map S2.a '*'"}
    result = xr.Dataset({name: (axes, values) for name, values in arrays.items()}, {"rate": [0.1, 0.2, 0.4], "shift": [0, 1]}, told)
    run = tmp_path / "run"
    run.mkdir()
    (run / "map.nc").write_bytes(archive.to_bytes(result))
    (run / "map.html").write_text("page")
    assert map_tables.is_map(run)
    map_tables.take(run)
    assert (tmp_path / "published/S2.a/map.html").read_text() == "page"
    row = "| rate 0.1, 0.2, 0.4; shift 0, 1 | holds in 2 of 6 | rate 100 % |"
    assert row in map_tables.overview(map_tables.published())
    slope = xr.full_like(result.effect, 0.0) + xr.DataArray([0.0, 1.0, 2.0], dims="rate") + xr.DataArray([0.0, 4.0], dims="shift")
    both = result.assign(effect=slope, low=slope - 0.01, high=slope + 0.01)
    assert "| holds in 2 of 6 | shift 86 %, rate 14 % |" in map_tables.overview({"S2.a": both})  # 4 and 2/3 are the variances
    grid = map_tables.grid(map_tables.published()["S2.a"]).splitlines()
    assert grid[0] == "| shift | rate 0.1 | rate 0.2 | rate 0.4 |"
    assert grid[3] == "| 1 | 2.10, supported | -1.10, contradicted | -2.00, contradicted |"
    assert grid[-1] == 'S2.a holds in 2 of 6: `python -m experiments.map S2.a "*"`.'


def test_the_table_says_what_was_measured():
    verdict = claims.judge(CLAIM, {"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.5]})
    told = publish.table([verdict, dataclasses.replace(verdict, interval=None)], FACTS)
    row = told.splitlines()[2]
    assert "S2.a Weight decay \\| beats none." in row
    assert "not tested" in row
    assert "gain: 2.0 [-0.5, 4.5], 3 seeds, least favourable of 2 cases" in row
    assert "| above 0 | – | **undecided** |" in row
    assert "gain: –, 3 seeds" in told
    assert "Preset quick, 2026-01-02, jaxbp 0.1.0, jax 0.10.2, commit abc, 2 x cpu." in told
    assert "S2 `experiments.norm_bias`" in told
    sized = claims.judge(dataclasses.replace(CLAIM, smallest_effect=1.0), {"a": [1.0, 2.0, 3.0]})
    cell = publish.table([sized], FACTS).splitlines()[2].split(" | ")[4]
    assert cell == f"{100 * sized.power.chance:.0f} %; 80 % takes {sized.power.seeds_needed}"


def test_the_summary_says_whether_the_paper_says_so():
    verdict = claims.judge(dataclasses.replace(CLAIM, paper_value="0.5"), {"a": [1.0, 2.0, 3.0], "b": [1.0, 1.1, 1.2]})
    against = claims.judge(dataclasses.replace(CLAIM, paper_value="0.5"), {"a": [-1.0, -1.1, -1.2]})
    verdicts = [verdict, against, dataclasses.replace(against, claim=dataclasses.replace(CLAIM, id="S2.b"))]
    rows = publish.summary(verdicts, [against], FACTS).splitlines()[2:5]
    assert rows[0].endswith("| above 0 | **undecided**: supported in 1 of 2 cases, undecided in 1 | **contradicted** |")
    assert "| **contradicted** (against its paper) |" in rows[1]
    assert rows[2].endswith("| **contradicted** | not yet run |")


def test_two_presets_stand_beside_each_other():
    quick = claims.judge(CLAIM, {"a": [1.0, 2.0, 3.0]})
    standard = [claims.judge(CLAIM, {"a": [1.0, 1.1, 1.2]}), claims.judge(dataclasses.replace(CLAIM, id="S2.b"), {"a": [1.0, 2.0]})]
    rows = publish.comparison([quick], standard, FACTS | {"preset": "standard"}).splitlines()
    assert (
        rows[2] == "| S2.a Weight decay \\| beats none. | **undecided**, 2.0 [-0.5, 4.5] | **supported**, 1.10 [0.85, 1.35] | 3 | moved |"
    )
    assert rows[3].startswith("| S2.b Weight decay \\| beats none. | – | **undecided**")
    assert rows[3].endswith("| 2 | is new |")
    assert rows[5].startswith("Preset standard, 2026-01-02")
    assert publish.comparison([quick], [quick], FACTS).splitlines()[2].endswith("| 3 | stays |")


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text := f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n")
    assert publish.with_table(page, "new") == f"before\n{publish.BEGIN}\n\nnew\n\n{publish.END}\nafter\n"
    for broken in ("nothing", f"{publish.END} {publish.BEGIN}", text + text):
        page.write_text(broken)
        with pytest.raises(lab.SettingsError, match="needs the lines"):
            publish.with_table(page, "new")


def test_a_run_is_taken_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "FOLDER", tmp_path / "published")
    monkeypatch.setattr(publish, "STANDARD", tmp_path / "published/standard")
    run = tmp_path / "run"
    verdict = claims.judge(CLAIM, {"a": [1.0, 2.0]})
    for number, name in enumerate(NAMES):
        with pytest.raises(lab.SettingsError, match=f"no finished run of the whole lab, it has no verdicts of .*{name}"):
            publish.take(run)
        (run / name).mkdir(parents=True)
        config = FACTS | {
            "started": f"2026-01-{2 + number:02d}T03:04:05Z",
            "settings": {"preset": "quick"},
            "git_commit": "abc" if number < 2 else "def",
        }
        (run / name / "config.json").write_text(json.dumps(config))
        own = dataclasses.replace(verdict, claim=dataclasses.replace(CLAIM, id=f"S{number + 1}.a"))
        claims.write_verdicts(run / name / "verdicts.json", [own])
        (run / name / "measurements.parquet").write_bytes(name.encode())
    claims.write_verdicts(run / "verdicts.json", [verdict])  # as a later `--only S2` leaves it
    publish.take(run)
    assert publish.facts(publish.FOLDER) == {
        **FACTS,
        "started": "2026-01-02T03:04:05Z",
        "commits": {f"S{n}": "abc" if n < 3 else "def" for n in range(1, 11)},
    }
    assert f"commit abc (S1, S2), def ({', '.join(f'S{n}' for n in range(3, 11))}), " in publish.table([], publish.facts(publish.FOLDER))
    taken = claims.read_verdicts(tmp_path / "published/verdicts.json")
    assert (tmp_path / "published" / NAMES[3] / "measurements.parquet").read_text() == NAMES[3]
    assert [v.claim.id for v in taken] == [f"S{number + 1}.a" for number in range(len(NAMES))]
    config = run / NAMES[0] / "config.json"
    for damage, message in (
        ({"started": None}, "no config.json of a finished study"),
        ({"settings": {"preset": "smoke"}}, "a smoke run, which decides nothing"),
    ):
        config.write_text(json.dumps({**FACTS, "started": "2026-01-01", "settings": {"preset": "quick"}, **damage}))
        with pytest.raises(lab.SettingsError, match=message):
            publish.take(run)
    config.write_text(json.dumps({**FACTS, "settings": {"preset": "standard"}, "git_commit": "new"}))
    with pytest.raises(lab.SettingsError, match="holds runs of the presets quick, standard"):
        publish.take(run)
    for name in NAMES[1:]:
        shutil.move(run / name, tmp_path / name)
    publish.take(run)
    assert [v.claim.id for v in publish.published(publish.STANDARD)] == ["S1.a"]
    assert publish.facts(publish.STANDARD)["preset"] == "standard"
    assert len(publish.published(publish.FOLDER)) == len(NAMES)
    old, other, own = (dataclasses.replace(verdict, claim=dataclasses.replace(CLAIM, id=id_)) for id_ in ("S1.a", "S3.a", "S1.b"))
    claims.write_verdicts(publish.STANDARD / "verdicts.json", [old, other])
    known = publish.facts(publish.STANDARD)
    (publish.STANDARD / "facts.json").write_text(json.dumps(known | {"commits": {"S1": "old", "S3": "old"}}))
    claims.write_verdicts(run / NAMES[0] / "verdicts.json", [own])
    publish.take(run)  # holds S1 alone
    assert [v.claim.id for v in publish.published(publish.STANDARD)] == ["S1.b", "S3.a"]
    assert publish.facts(publish.STANDARD)["commits"] == {"S1": "new", "S3": "old"}
    (run / NAMES[0] / "verdicts.json").write_text("{")
    with pytest.raises(lab.SettingsError, match="cannot be read as verdicts"):
        publish.take(run)


def test_the_picture_is_drawn_of_every_kind_of_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "FOLDER", tmp_path)
    kinds = {"S2.a": claims.Above(0.0), "S2.b": claims.Below(0.0), "S2.c": claims.Within(1.0)}
    verdicts = [claims.judge(dataclasses.replace(CLAIM, id=i, rule=rule), {"a": [1.0, 2.0, 3.0]}) for i, rule in kinds.items()]
    publish.draw([*verdicts, claims.judge(dataclasses.replace(CLAIM, id="S2.d"), {})], "some")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.svg"]
