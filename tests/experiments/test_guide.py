"""Guides and README do what they say: their Python runs, their commands parse, the messages they explain are the code's."""

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import tyro
import yaml

import jaxbp
from experiments import papers
from experiments.__main__ import STUDIES
from experiments.benchmarks.settings import BENCHMARKS
from jaxbp import claims, lab
from jaxbp.report import citation as report_citation

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "experiments" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
TROUBLE = GUIDE / "troubleshooting.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LONG = ("README.md", "attacks.md", "batch_norm_kernels.md", "instruments.md", "kernels.md", "own_study.md")  # to run
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCES = [path for folder in ("jaxbp", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = ["jaxbp", *(found.name for found in pkgutil.iter_modules(jaxbp.__path__, "jaxbp."))]


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The line before each fenced block of a language, and its text."""
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        if found["language"] == language:
            yield text.count("\n", 0, found.start("text")), found["text"]


def commands(words: list[str]) -> Iterator[tuple[str, ...]]:
    """The programs of experiments and jaxbp.lab that a shell line runs, with arguments; also where it hands them to another program."""
    for position, word in enumerate(words):
        if word == "-m" and re.fullmatch(r"experiments(\.\w+)*|jaxbp\.lab\.\w+", words[position + 1]):
            end = next((i for i, w in enumerate(words) if i > position and set(w) <= set("&|;<>()")), len(words))
            yield tuple(words[position + 1 : end])
        elif re.search(r"python -m (experiments|jaxbp)", word):
            yield from commands(split(word.partition("=")[2] or word))


def split(line: str) -> list[str]:
    """The words of a shell line; && and the like are words of their own, comments are none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def shown_commands() -> list[tuple[str, ...]]:
    """All of the pages, each once."""
    lines = [line for page in PAGES for _, text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(command for line in lines for command in commands(split(line))))


@pytest.mark.first_cases(3)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page.name in LONG else []) for page in PAGES], ids=lambda page: page.name
)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": "guide"}  # a whole program is only defined: test_own_study.py runs it, and what follows may import it
    for line, text in blocks(page, "python"):
        if 'if __name__ == "__main__":' in text:
            *_, program = re.findall(r"`(\w+\.py)`", "\n".join(page.read_text("utf-8").splitlines()[:line]))
            (tmp_path / program).write_text(text)
        exec(compile("\n" * line + text, str(page), "exec"), names)


@pytest.mark.parametrize("command", shown_commands(), ids=" ".join)
def test_commands_parse(command, monkeypatch):
    cli = tyro.cli

    class ParsedError(Exception):
        """Ends the program where its arguments have been parsed."""

    def parse(*arguments, **options):
        cli(*arguments, **options)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(sys, "argv", [*command])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, where the module has been imported before
        with pytest.raises(ParsedError):
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def test_options_must_exist(monkeypatch, capsys):
    assert [*commands(split("srun python -m experiments.train --seeds 2 > log; echo $?"))] == [("experiments.train", "--seeds", "2")]
    assert [*commands(split("ssh --command='cd a && python -m jaxbp.lab.status runs/a # b'"))] == [("jaxbp.lab.status", "runs/a")]
    with pytest.raises(SystemExit):
        test_commands_parse(("experiments.train", "--lr", "0.1"), monkeypatch)
    assert "--lr" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page):
    text = page.read_text("utf-8")
    languages = {found["language"] for found in FENCE.finditer(text)}
    assert languages <= {"python", "bash", "text"}, languages
    prose = FENCE.sub("", text)
    for name in re.findall(r"`((?:jaxbp|experiments)(?:\.\w+)+)(?:\(\))?`", prose):
        found = importlib.import_module(name.split(".")[0])
        for part in name.split(".")[1:]:
            if isinstance(found, types.ModuleType) and not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
    for path in re.findall(r"`((?:jaxbp|experiments|tests|notebooks|\.ci)/[\w./]*)`", prose):
        assert (ROOT / path).exists(), path
    for extra in re.findall(r"-e ['\"]\.\[(\w+)\]", text):
        assert extra in PROJECT["project"]["optional-dependencies"], extra
    for marker in {marker for words in re.findall(r"pytest -m (\w+|\"[\w ]+\")", text) for marker in re.findall(r"\w+", words)} - {"or"}:
        assert any(m.startswith(f"{marker}:") for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]), marker


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, _, place in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text("utf-8")):
        other = page.parent / target if target else page
        assert other.exists(), target
        if place:
            titles = re.findall(r"^#+ (.+)$", FENCE.sub("", other.read_text("utf-8")), re.MULTILINE)
            assert place in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], place


@pytest.fixture(scope="module")
def texts():
    """The docstrings of the code, and its other strings."""
    docs, others = [], []
    for path in SOURCES:
        nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
        alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                (docs if id(node) in alone else others).append(node.value)
    return docs, others


def test_messages_are_the_codes(texts):
    """What stands between the dots of a message (… for what varies) is in a string of the code."""
    own = TROUBLE.read_text("utf-8").partition("## Messages of jaxbp\n")[2].partition("\n## ")[0]
    messages = re.findall(r"^### `(.+)`$", own, re.MULTILINE)
    assert len(messages) >= 15
    for message in messages:
        parts = [part.strip() for part in message.split("…") if len(part.strip()) > 2]
        assert any(" " in part for part in parts), f"{message!r} says too little"
        for part in parts:
            assert any(part in text for text in texts[1]), f"no message of the code has {part!r}"


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_have_an_example(name):
    """Each module, or a module of each package, has one. pytest runs them, as it does all doctests."""
    module = importlib.import_module(name)
    modules = [module, *(importlib.import_module(info.name) for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."))]
    assert any(doctest.DocTestParser().get_examples(module.__doc__ or "") for module in modules)


def test_docstrings_have_no_example_that_nobody_runs(texts):
    assert not [text for text in texts[0] if "```" in text]


def test_the_outcomes_that_the_readme_tells_are_the_published_ones():
    told = re.findall(r"\((S\d+\.[a-z]), ([a-z ]+)\)", PAGES[0].read_text("utf-8"))
    verdicts = {verdict.claim.id: verdict.verdict for verdict in claims.read_verdicts(ROOT / "experiments/published/verdicts.json")}
    assert len(told) >= 5
    assert [(name, verdicts[name]) for name, _ in told] == told
    assert f"Ten studies, {len(verdicts)} claims." in PAGES[0].read_text("utf-8")


def test_the_speed_that_the_readme_tells_is_the_benchmarks():
    section = PAGES[0].read_text("utf-8").partition("## Speed")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]
    known = [[cell.strip() for cell in line.strip("|").split("|")] for line in (GUIDE / "benchmarks.md").read_text("utf-8").splitlines()]
    assert len(rows) == 3
    for name, _, times, command in rows:
        assert any(row[0] == name and any(cell.partition(":")[0] == times for cell in row) for row in known), name
        assert command.strip("`").removeprefix("python -m experiments.benchmarks ") in BENCHMARKS, command


def test_the_first_page_of_the_reference_maps_every_instrument():
    rows = re.findall(r"^\| `jaxbp\.(\w+)` \| [^|]+\? \| `jaxbp\.(\w+)\.(\w+)` \|$", jaxbp.__doc__, re.MULTILINE)
    instruments = PROJECT["tool"]["importlinter"]["contracts"]
    (named,) = (contract["source_modules"] for contract in instruments if contract["id"] == "instruments")
    assert {f"jaxbp.{name}" for name, _, _ in rows} == set(named)
    for name, module, function in rows:
        assert name == module
        assert callable(getattr(importlib.import_module(f"jaxbp.{module}"), function)), function


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == jaxbp.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert len(paper["authors"]) == 5
    assert "1910.00359" in paper["url"]
    assert [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]] == list(papers.TRUTH.authors)
    assert (paper["title"], paper["year"]) == (papers.TRUTH.title, papers.TRUTH.year)
    assert (citation["title"], citation["authors"]) == (report_citation.SOFTWARE_TITLE, [{"name": report_citation.SOFTWARE_AUTHORS}])


def test_every_study_names_the_paper_that_it_tests():
    for package in STUDIES:
        study = lab.load(package.DOOR)
        year = str(study.paper.year)
        assert re.fullmatch(r"[a-z]+\d{4}[a-z]+", study.paper.key), study.id
        assert year in study.paper.key
        if study.paper is not papers.TRUTH:  # its module's docstring names it, too
            assert year in package.__doc__
            assert all(author.split()[-1] in package.__doc__ for author in study.paper.authors)


class Page(HTMLParser):
    """The places of a page that can be linked to, and its links."""

    def __init__(self, path: Path):
        super().__init__()
        self.places: set[str] = {""}
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.places |= {named[key] for key in ("id", "name") if named.get(key)}
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])


@pytest.mark.docs
def test_reference(tmp_path):
    """The command of the guides builds it without a warning; every public module has a page, every guide is there, no link is dead."""
    lines = {line for page in PAGES for _, text in blocks(page, "bash") for line in text.splitlines()}
    (command,) = [split(line) for line in lines if line.startswith("pdoc ")]
    words = [str(tmp_path) if word == "site" else word for word in command]
    python = [sys.executable, "-W", "error::UserWarning", "-m"]
    done = subprocess.run([*python, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), 'it takes pip install -e ".[docs]"'
    pages = {path: Page(path) for path in tmp_path.rglob("*.html")}
    for module in MODULES:
        assert (tmp_path / module.replace(".", "/")).with_suffix(".html") in pages, module
    titles = [path.read_text("utf-8").partition("\n")[0].removeprefix("# ") for path in sorted(GUIDE.glob("*.md"))]
    assert {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles} <= pages[tmp_path / "experiments.html"].places
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, _, place = unquote(link).partition("#")
            if not re.match(r"\w+:", target):
                other = (path.parent / target).resolve() if target else path
                if other not in pages or place not in pages[other].places:
                    dead.append((path.name, link))
    assert not dead
