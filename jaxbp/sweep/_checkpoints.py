"""Checkpoints of runs in progress: Orbax writes them, a digest of every file guards them.

A checkpoint counts once its digests are written, which is last; so a kill at any moment leaves the ones before. Several processes
write their parts of one checkpoint to a folder that they share. Reading executes nothing that it finds.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxbp.runtime import processes
from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.store import StoreError


class Checkpoints:
    """The last ``keep`` checkpoints of one group of runs.

    Args:
      folder: made when first needed; one of its own for other ``facts`` of the same name.
      name: of the group.
      facts: what a checkpoint must have been made for; anything JSON can write.
      keep: how many.
    """

    def __init__(self, folder: Path, name: str, facts: Mapping[str, Any], keep: int):
        code = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=4).hexdigest()
        self.folder, self.keep = folder.absolute() / f"{name}-{code}", keep

    def save(self, step: int, tree: Any) -> None:
        """Write ``tree``; when this returns it is on disk, whole.

        Raises:
          StoreError: it cannot be written; earlier ones are kept.
        """
        try:
            with _checkpointer() as orbax:
                orbax.save(self.folder / str(step), _leaves(tree), force=True)
            if processes.is_first():
                write_atomically(self._seal(step), json.dumps(_digests(self.folder / str(step))).encode())
                for old in self._steps()[self.keep :]:
                    self._seal(old).unlink()  # first, so that what is sealed is whole
                    shutil.rmtree(self.folder / str(old))
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors, and long
            reason = str(error).splitlines()[0][:200]
            raise StoreError(f"cannot write a checkpoint to {self.folder} ({reason}); what was finished before is safe") from error

    def latest(self, like: Any) -> tuple[int, Any] | None:
        """The newest step and its tree, placed on devices as ``like`` is (arrays, or shapes with shardings); None without one.

        Raises:
          StoreError: its files are not those that were written.
        """
        step = processes.from_first(self._newest() if processes.is_first() else None)
        if isinstance(step, str):
            raise StoreError(step)
        if step is None:
            return None
        leaves, tree = jax.tree.flatten(like)
        with _checkpointer() as orbax:
            found = orbax.restore(self.folder / str(step), _leaves(like))
        empty = [jax.numpy.zeros(leaf.shape, leaf.dtype) if _is_empty(leaf) else None for leaf in leaves]
        return step, tree.unflatten([found.get(_name(i), leaf) for i, leaf in enumerate(empty)])

    def delete(self) -> None:
        """Remove them all, their runs being finished."""
        processes.barrier("checkpoints are not needed any more")
        if processes.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)  # a leftover harms nothing: nobody looks there again

    def _newest(self) -> int | str | None:
        """The step of the newest sealed checkpoint, or what is wrong with it."""
        for step in self._steps()[:1]:
            seal, folder = self._seal(step), self.folder / str(step)
            again = "delete both and start again: the run goes on from the one before, or from its start"
            try:
                files = dict(json.loads(seal.read_text("utf-8")))
            except (OSError, ValueError, TypeError) as error:
                return f"{seal}, of the checkpoint {folder}, is damaged ({error}): {again}"
            if (found := _digests(folder)) != files:
                wrong = sorted(name for name in {*found, *files} if found.get(name) != files.get(name))
                return f"the checkpoint {folder} is damaged ({wrong[0]}), sealed by {seal}: {again}"
        return next(iter(self._steps()), None)

    def _steps(self) -> list[int]:
        """Steps that have a seal and a folder, the newest first."""
        stems = (path.stem for path in self.folder.glob("*.json"))
        return sorted((int(s) for s in stems if s.isdigit() and (self.folder / s).is_dir()), reverse=True)

    def _seal(self, step: int) -> Path:
        return self.folder / f"{step}.json"


def _checkpointer() -> Any:
    import orbax.checkpoint  # takes a while, and sweeps of short runs do without

    return orbax.checkpoint.Checkpointer(orbax.checkpoint.StandardCheckpointHandler())


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by number: no type of node has to be known when they are read. TensorStore takes no empty arrays."""
    return {_name(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if not _is_empty(leaf)}


def _is_empty(leaf: Any) -> bool:
    return 0 in leaf.shape


def _name(position: int) -> str:
    return f"{position:05d}"


def _digests(folder: Path) -> dict[str, str]:
    """The digest of every file below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
