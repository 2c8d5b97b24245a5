"""What a user gets who installs a part of the package, and what stands in two places."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxbp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
CORE = ["landscape", "ntk", "spectra", "attacks", "norms", "models", "training", "sweep", "stats", "claims"]
HEAVY = ["tensorflow", "tensorflow_datasets", "neural_tangents", "matplotlib"]
OPTIONAL = [
    *HEAVY,
    "tyro",
    "threadpoolctl",
    "jinja2",
    "h5netcdf",
    "sklearn",
    "mnist1d",
    "mlxtend",
    "tensorboardX",
    "safetensors",
    "torch",
    "foolbox",
]
LIGHT = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in ("settings", "claims")
    for path in sorted(ROOT.glob(f"experiments/*/{name}.py"))
]
DISTRIBUTIONS = {  # of packages with another name, or that another one brings
    "cycler": "matplotlib",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow": "neural-tangents",
    "tensorflow_datasets": "tensorflow-datasets",
}


def run_python(program: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("blocked", [pytest.param([], marks=pytest.mark.slow), OPTIONAL], ids=["all installed", "no extra installed"])
def test_the_core_needs_no_extra(blocked):
    """The imports of the instruments, networks, training, sweeps and verdicts, with and without optional packages to be had."""
    imports = ", ".join(f"jaxbp.{name}" for name in CORE)
    program = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport {imports}\n"
    assert run_python(program + f"print([name for name in {HEAVY} if sys.modules.get(name)])").strip() == "[]"


def test_settings_and_claims_start_no_jax():
    """import-linter does not see what a package's ``__init__`` imports; a fresh interpreter does. The first module to blame is told."""
    heavy = ["jax", "jaxlib", "flax", "optax", "chex", "pandas", *HEAVY]
    program = f"""
import importlib, sys
for module in {LIGHT}:
    importlib.import_module(module)
    if started := [name for name in {heavy} if name in sys.modules]:
        print(f"{{module}} starts {{started}}")
        break
"""
    assert run_python(program) == ""


def test_there_are_light_modules():
    assert len(LIGHT) >= 8


def test_version_has_one_source():
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "jaxbp/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxbp.__version__)


def test_types_are_announced():
    assert (ROOT / "jaxbp" / "py.typed").exists()


def test_tools_have_one_version():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    pinned = {requirement for hook in hooks for requirement in hook.get("additional_dependencies", [])}
    assert {requirement.partition("==")[0] for requirement in pinned} == {"ruff", "import-linter"}
    assert pinned <= set(EXTRAS["test"])
    assert any(requirement.startswith("mypy==") for requirement in EXTRAS["test"])


def test_given_packages_are_declared():
    declared = " ".join([*PROJECT["project"]["dependencies"], *(requirement for extra in EXTRAS.values() for requirement in extra)])
    for name in ("jax", "jaxlib", "flax", "optax", "neural-tangents", "tensorflow-datasets", "chex", "pytest"):
        assert re.search(rf"(^| ){name}[=><]", declared), name


@pytest.mark.parametrize("folder", ["jaxbp", "experiments"])
def test_imports_are_declared(folder):
    """Wherever a module imports a package, inside functions too. The core's own dependencies suffice for all but report, lab and data."""
    core = {name_of(requirement) for requirement in PROJECT["project"]["dependencies"]}
    declared = core | {name_of(requirement) for extra in EXTRAS.values() for requirement in extra}
    for path in sorted((ROOT / folder).rglob("*.py")):
        needed = {DISTRIBUTIONS.get(package, package) for package in imported_packages(path)}
        assert needed <= declared, path
        if folder == "jaxbp" and path.relative_to(ROOT).parts[1] not in ("report", "lab", "data"):
            assert needed <= core | {"lineax", "tensorboardX", "safetensors"}, (
                path
            )  # asked for by an option, with an error that names the extra


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]


def imported_packages(path: Path) -> set[str]:
    nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"jaxbp", "experiments"}
