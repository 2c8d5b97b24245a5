"""Files of a study that the commit of a run does not hold, such as a script of the user's own: named, and kept beside the results."""

import hashlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxbp.lab.study import Study
from jaxbp.runtime.store import Store

FOLDER = "code"


def keep(store: Store, study: Study) -> None:
    """Copy files of the study that the commit does not hold, or not so, to the folder of the run, and name them in config.json."""
    entries: list[dict[str, Any]] = []
    for path in files_of(study):
        content = path.read_bytes()
        if content == committed(path):
            continue
        kept = f"{FOLDER}/{path.name}"
        if any(entry["kept"] == kept for entry in entries):  # of another folder
            kept = f"{FOLDER}/{len(entries)}-{path.name}"
        store.write(kept, content)
        entries.append({"path": os.path.relpath(path), "sha256": hashlib.sha256(content).hexdigest(), "kept": kept})
    if entries or "own_files" in store.config:
        store.add_metadata(own_files=entries)


def files_of(study: Study) -> list[Path]:
    """The files of the study's module and of the functions of its stages, as far as there are any."""
    names = [getattr(sys.modules.get(study.module), "__file__", None)]
    names += [code.co_filename for stage in study.stages if (code := getattr(inspect.unwrap(stage.fn), "__code__", None))]
    return sorted({Path(name).absolute() for name in names if name and Path(name).is_file()})


def committed(path: Path) -> bytes | None:
    """What the commit of this package's folder, which `jaxbp.runtime.jax_setup.provenance` names, holds of a file; None if nothing."""
    package = str(Path(__file__).parent)
    try:
        top = subprocess.run(["git", "-C", package, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
        inside = path.resolve().relative_to(Path(top.stdout.strip()).resolve())
        command = ["git", "-C", package, "show", f"HEAD:{inside.as_posix()}"]
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, ValueError, subprocess.CalledProcessError):  # no git, another folder, or no such file in the commit
        return None
