"""Files of a run with any content give a value or an error of this project, in bounded memory and time."""

import copy
import gc
import json
import resource
from types import SimpleNamespace

import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import results_pages
from jaxbp import claims, lab, stats
from jaxbp.lab import archive, execute, recorded_rules, taken_over, verdict_changes
from jaxbp.runtime.store import Store, StoreError
from tests.helpers.errors import error_of, outcome
from tests.lab import test_jobs

QUICK = settings(max_examples=150, derandomize=True, deadline=2000, database=None)
FEW = settings(QUICK, max_examples=40)  # where each example opens files of HDF5
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**30, -(10**400), 1e308, 2**63]),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["supported", "S1.a", "above 0", "within 1 of 2", "\x1b[31m", "../../x.nc"]),
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
CLAIM = claims.Claim("S2.a", "It helps.", "Table 2", "gain", claims.Above(0.0), "0.6", smallest_effect=0.5)
BY_LOOKS = claims.Claim("S2.b", "It helps.", "Table 2", "gain", claims.Within(5.0))
CONTROL = claims.Control("positive", "It is seen.", "gain", claims.Above(0.0), "S2.positive")


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """4 GiB above what the process has mapped: a file that asks for more ends in an error, not in the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as pages:
        mapped = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def places(document, path=()):
    """Every place in a JSON document."""
    yield path
    entries = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for name, entry in entries:
        yield from places(entry, (*path, name))


@st.composite
def damaged(draw, document):
    """The document with other values in one to three places, or without them; as bytes that may be cut."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, name = draw(st.sampled_from([path for path in places(document) if path] or [("",)]))
        parent = document
        for step in way:
            parent = parent[step]
        if isinstance(parent, dict) and draw(st.integers(0, 3)) == 0:
            parent.pop(name, None)
        elif isinstance(parent, dict | list) and parent:
            parent[name] = draw(JSON)
    content = json.dumps(document).encode()
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


def hostile(document):
    return st.one_of(damaged(document), damaged(document), JSON.map(json.dumps).map(str.encode), st.binary(max_size=60))


def is_ours(error):
    """A result, an error of ours, or the documented one of a file that is not there."""
    return isinstance(error, FileNotFoundError) or outcome(error) in ("none", "own")


def entries(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "verdicts.json"
    verdicts = [
        claims.judge(CLAIM, {"a": [1.0, 2.0, 1.5], "b": [1.0, 1.2, 0.9]}),
        claims.judge(BY_LOOKS, {"a": [1.0, 1.1, 1.2]}, looks=stats.Looks(3, most=6)),
    ]
    claims.write_verdicts(path, verdicts, [claims.judge_control(CONTROL, {"a": [1.0, 1.1, 1.2]})])
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A verdicts.json, a config.json and the folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    provenance = {"started": "2026-01-01", "packages": {"jax": "0.10"}, "devices": ["cpu"]}
    with Store(folder, {"preset": "quick", "num_seeds": 2}, provenance) as store:
        store.add_metadata(rules={"S2.a": "above 0"}, wall_seconds=1.5, peak_memory_mib=10)
        results = archive.Archive(store)
        jobs = [(f"train; digits; {seed}", f"a{seed}") for seed in range(2)]
        for name, digest in jobs:
            facts = {"stage": "train", "case": "digits", "point": json.dumps({"seed": int(name[-1])}), "parts": '{"code": "1"}'}
            results.put(name, digest, xr.Dataset({"loss": ("epoch", [0.5, 0.4])}), **facts)
        results.write_index(jobs)
    return {"verdicts": entries(tmp_path_factory), "config": json.loads((folder / "config.json").read_text()), "folder": folder}


def _check(call, told):
    error = error_of(call)
    assert is_ours(error), f"{type(error).__name__}: {error}"
    assert isinstance(error, told | type(None)), f"{type(error).__name__}: {error}"


def test_verdicts_json(whole, tmp_path, capsys):
    path = tmp_path / "verdicts.json"

    @QUICK
    @given(hostile(whole["verdicts"]))
    def check(content):
        path.write_bytes(content)
        _check(lambda: claims.read_verdicts(path), claims.VerdictFileError)
        _check(lambda: claims.read_controls(path), claims.VerdictFileError)

        def compare():
            verdicts = verdict_changes.read(path)
            verdict_changes.show(verdicts, verdicts)

        _check(compare, lab.SettingsError)

    check()
    assert "\x1b[31m" not in capsys.readouterr().out


def test_config_json(whole, tmp_path):
    path = tmp_path / "config.json"
    study = test_jobs.study()

    @QUICK
    @given(hostile(whole["config"]))
    def check(content):
        path.write_bytes(content)
        _check(lambda: results_pages._config(path), lab.SettingsError)

        def resume():
            with Store(tmp_path, {"preset": "quick", "num_seeds": 2}, {"started": "2026-01-02"}) as store:
                recorded_rules.note(store, recorded_rules.of_study(study))
                execute._Clock(store, 0.0).note()

        _check(resume, StoreError)
        present = recorded_rules.of_study(study)
        source = taken_over.source_at(tmp_path)  # a neighbour, of which nothing is expected
        assert source.rules is None or isinstance(recorded_rules.changes(source.rules, present, "a run"), list)

    check()


def test_results_that_could_not_be_copied_are_taken_off_the_note(tmp_path):
    (tmp_path / "run").mkdir()
    store = SimpleNamespace(folder=tmp_path / "run", write=lambda name, content: write_note(tmp_path / "run" / name, content))
    taken_over.note(store, {"a.nc": tmp_path / "other", "b.nc": tmp_path / "other"})
    taken_over.forget(store, ["a.nc", "never taken over"])
    assert list(taken_over.read(tmp_path / "run")) == ["b.nc"]


def write_note(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_the_note_of_results_that_were_taken_over(tmp_path):
    (tmp_path / "jobs").mkdir()
    rules = {"rules": {"S2.a": "above 0"}, "premises": {"S2.a": ["S2.b"]}}
    source = {"folder": "/there/run", "started": "2026-01-01", "study": "S2", "rules": rules}
    whole_note = {"sources": [source], "jobs": {"a-1.nc": 0, "b-2.nc": 0}}
    present = recorded_rules.of([CLAIM])

    def told():
        files = ["a-1.nc", "b-2.nc", "c-3.nc"]
        changes = taken_over.changes(tmp_path, files, present, "S2")
        return taken_over.sentences(tmp_path, files), changes

    @QUICK
    @given(hostile(whole_note))
    def check(content):
        (tmp_path / taken_over.NOTE).write_bytes(content)
        sentences, changes = told()
        assert not any("\x1b" in sentence for sentence in [*sentences, *(change.sentence for change in changes)])

    check()
    (tmp_path / taken_over.NOTE).write_text(json.dumps(whole_note))
    sentences, changes = told()
    assert sentences[0].startswith("2 of 3 jobs were taken over from ")
    assert [change.claim for change in changes] == ["S2.a", "S2.a"]  # the text of the rule, and the premise


@pytest.mark.slow
def test_index_json_and_results(whole):
    folder = whole["folder"] / "jobs"
    index = json.loads((folder / "index.json").read_text())
    files = sorted(folder.glob("*.nc"))
    contents = {path: path.read_bytes() for path in files}
    whole_index = (folder / "index.json").read_bytes()

    def opened():
        lab.open(whole["folder"])

    assert error_of(opened) is None

    @FEW
    @given(hostile(index))
    def check_index(content):
        (folder / "index.json").write_bytes(content)
        _check(opened, StoreError | FileNotFoundError)

    check_index()
    (folder / "index.json").write_bytes(whole_index)

    @FEW
    @given(st.integers(0, len(contents[files[0]])), st.binary(max_size=12), st.booleans())
    def check_results(place, patch, cut):
        content = contents[files[0]]
        files[0].write_bytes(content[:place] if cut else content[:place] + patch + content[place + len(patch) :])
        _check(opened, StoreError | FileNotFoundError)

    check_results()
    gc.collect()  # what is deleted later fails here, not in another test

    @FEW
    @given(st.dictionaries(st.sampled_from(["stage", "case", "point", "parts"]), st.text(max_size=8) | JSON.map(json.dumps)))
    def check_attributes(attributes):
        dataset = archive.from_bytes(contents[files[0]], files[0])
        kept = {name: value for name, value in dataset.attrs.items() if name not in attributes or len(attributes) % 2}
        try:
            content = archive.to_bytes(dataset.drop_attrs().assign_attrs(kept | attributes if len(attributes) % 2 else kept))
        except (ValueError, UnicodeError):  # netCDF has no such text
            return
        files[0].write_bytes(content)
        _check(opened, StoreError | FileNotFoundError)

    check_attributes()
    for path, content in contents.items():
        path.write_bytes(content)
