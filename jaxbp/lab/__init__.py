"""What makes a study: settings and command line, stages, measures, labelled results, verdicts, the page.

A `Study` is a value whose fields are functions: `Stage` (what is computed), `Measure` (the number that a claim is judged by), figures and
tables. `main` runs it from the command line; `sweep` computes arms times seeds inside a stage; `open` reads the results of a run; `map`
finds where a claim holds.
A job that is finished is safe on disk before the program says so, a run that was stopped goes on when the same command is given again,
and a result is never reused for code, settings or data that differ.

``jaxbp.lab`` imports nothing heavy until a name below is used, so a module that declares settings alone starts at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxbp.lab.cli import guarded, load, main, report_failure
from jaxbp.lab.settings import Arguments, Settings, SettingsError, check_data, looks_of, network_module, takes_hours, with_networks
from jaxbp.runtime.cluster import ONE_PROCESS, Cluster
from jaxbp.runtime.machines import NOWHERE_ELSE, Elsewhere

if TYPE_CHECKING:
    from jaxbp.lab.adaptive import until_decided
    from jaxbp.lab.arms import along, device, program, sweep, to_dataset
    from jaxbp.lab.map_run import MapOptions, map_cost, open_map
    from jaxbp.lab.map_run import map_claim as map  # noqa: A004 - read as ``lab.map``
    from jaxbp.lab.run import CaseResults, Run
    from jaxbp.lab.run import open_run as open  # noqa: A004 - read as ``lab.open``
    from jaxbp.lab.study import Control, Measure, Stage, Study
    from jaxbp.runtime.jax_setup import start_jax

_LATE = {
    "until_decided": "jaxbp.lab.adaptive",
    **dict.fromkeys(("along", "device", "program", "sweep", "to_dataset"), "jaxbp.lab.arms"),
    **dict.fromkeys(("MapOptions", "map", "map_cost", "open_map"), "jaxbp.lab.map_run"),
    **dict.fromkeys(("CaseResults", "Run", "open"), "jaxbp.lab.run"),
    **dict.fromkeys(("Control", "Measure", "Stage", "Study"), "jaxbp.lab.study"),
    "start_jax": "jaxbp.runtime.jax_setup",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'jaxbp.lab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATE[name]), {"map": "map_claim", "open": "open_run"}.get(name, name))
    globals()[name] = value
    return value
