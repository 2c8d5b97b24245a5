"""A study: from the command line to the page, in the steps that all studies share.

`Study.run` opens the folder, does the work that is not done yet, judges, draws, and writes results and page; `Study.main` is the
command. The study itself gives functions, found in its module or, in a package, in submodules of fixed names: ``pieces`` (in
``measure``), ``Results``, ``verdicts`` and ``rows`` (``results``), ``draw`` (``figures``), ``sections`` (``page``). For those that it
does not give, `jaxbp.lab.plain` has plain ones; a study in one file gives ``pieces`` and ``measurements``. They are imported
after the arguments are parsed.
"""

import dataclasses
import importlib
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxbp.lab.cli import guarded
from jaxbp.lab.jobs import run_pieces
from jaxbp.lab.output import print_verdicts, write_results
from jaxbp.lab.settings import Arguments
from jaxbp.runtime import jax_setup

_HOMES = {
    "pieces": "measure", "Results": "results", "verdicts": "results", "rows": "results", "draw": "figures", "sections": "page",
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A question with claims, such as ``Study("S2", title, lead, Arguments, "experiments.norm_bias")``.

    ``title`` and ``lead`` head its page; ``source`` is the module or package that defines it, ``__name__`` from within.
    """

    id: str
    title: str
    lead: str
    arguments: type[Arguments]
    source: str

    @property
    def module(self) -> str:
        """Its module as ``python -m`` knows it; empty for a script."""
        spec = importlib.import_module(self.source).__spec__
        return spec.name if spec else ""

    @property
    def command(self) -> str:
        """What runs it."""
        return f"python -m {self.module}" if self.module else f"python {sys.argv[0]}"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.module.rpartition(".")[2] or Path(sys.argv[0]).stem

    def function(self, name: str) -> Callable:
        """One of the functions that make the study, its own or a plain one."""
        module = importlib.import_module(self.source)
        home = f"{self.source}.{_HOMES[name]}"
        if not hasattr(module, name) and hasattr(module, "__path__") and importlib.util.find_spec(home):
            module = importlib.import_module(home)
        if hasattr(module, name):
            return getattr(module, name)
        from jaxbp.lab import plain

        return getattr(plain, name)

    def main(self) -> None:
        """Parse the command line and run the study; then end the program in an orderly way."""
        arguments = tyro.cli(self.arguments, prog=self.command)
        folder = arguments.out or Path("runs") / f"{self.name}-{arguments.preset}"
        with guarded(folder):
            settings = arguments.settings()
            devices = jax_setup.start_jax(arguments.cluster)
            command = f"{self.command} {shlex.join(sys.argv[1:])}".strip()
            part = self.run(settings, folder, arguments.data_dir, devices=devices, command=command)
            if part:
                print_verdicts(part.verdicts, folder / "report.html")
                print(f"wall time {part.settings['wall_seconds']:.0f} s, peak memory {part.settings['peak_memory_mib']} MiB")

    def run(self, settings: Any, folder: Path, data_dir: Path | None = None, *, devices: Sequence[str], command: str) -> Any:
        """Do what is not done yet in ``folder``, judge, draw, write everything; ``command`` says on the page how to repeat it.

        Returns:
          The study's `jaxbp.report.Part`, in the first process; None in the others.

        Raises:
          SettingsError, jaxbp.runtime.store.StoreError: the study cannot run so, or not there.
        """
        began = time.monotonic()
        of = {name: self.function(name) for name in _HOMES}
        from jaxbp import report
        from jaxbp.runtime import processes
        from jaxbp.runtime.shared_store import open_together

        with open_together(folder, dataclasses.asdict(settings), jax_setup.provenance(devices)) as store:
            run_pieces(store, of["pieces"](settings, store, data_dir), num_workers=len(devices))
            if not processes.is_first():
                return None
            results = of["Results"](settings, store)
            verdicts = of["verdicts"](results)
            write_results(store, of["rows"](results), verdicts)
            sections = of["sections"](results, of["draw"](results, folder / "figures"))
            wall = store.config.get("wall_seconds", 0) + round(time.monotonic() - began, 1)
            peak = max(store.config.get("peak_memory_mib", 0), jax_setup.peak_memory_mib())
            store.add_metadata(wall_seconds=wall, peak_memory_mib=peak)
            part = report.Part(self.id, self.title, self.lead, verdicts, sections, store.config, command)
            report.write_page(folder / "report.html", title=self.title, lead=self.lead, parts=[part])
        return part
