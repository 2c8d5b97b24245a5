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
import jax.numpy as jnp

from jaxbp import distributed
from jaxbp.evidence import write_atomically
from jaxbp.store import StoreError


class Checkpoints:
    """The last ``keep`` checkpoints of one group of runs, in ``folder``.

    Args:
      folder: made when first needed.
      facts: what a checkpoint must have been made for; anything JSON can write.
      keep: how many.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], keep: int):
        self.folder, self.facts, self.keep = folder.absolute(), json.loads(json.dumps(facts)), keep
        self._orbax: Any = None

    def save(self, step: int, tree: Any) -> None:
        """Write ``tree``; when this returns it is on disk, whole.

        Raises:
          StoreError: it cannot be written; earlier ones are kept.
        """
        try:
            orbax = self._manager()
            orbax.save(step, args=_orbax().args.StandardSave(_leaves(tree)), force=True)
            orbax.wait_until_finished()
            if jax.process_index() == 0:
                seal = {"facts": self.facts, "files": _digests(self.folder / str(step))}
                write_atomically(self._seal(step), json.dumps(seal).encode())
                for other in self.folder.glob("*.json"):
                    if int(other.stem) not in orbax.all_steps():
                        other.unlink()
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"cannot write a checkpoint to {self.folder} ({reason}); what was finished before is safe"
            ) from error

    def latest(self, like: Any) -> tuple[int, Any] | None:
        """The newest step and its tree, placed on devices as ``like`` is; None if there is none for these facts.

        Raises:
          StoreError: its files are not those that were written.
        """
        step = distributed.from_first(self._newest() if jax.process_index() == 0 else None)
        if isinstance(step, str):
            raise StoreError(step)
        if step is None:
            return None
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _leaves(like))
        found = self._manager().restore(step, args=_orbax().args.StandardRestore(abstract))
        leaves, tree = jax.tree.flatten(like)
        return step, tree.unflatten([found.get(_name(i), leaf) for i, leaf in enumerate(leaves)])

    def delete(self) -> None:
        """Remove them all, their runs being finished."""
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)  # a leftover harms nothing: nobody looks there again

    def _newest(self) -> int | str | None:
        """The step of the newest sealed checkpoint, or what is wrong with it."""
        steps = sorted((int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()), reverse=True)
        for step in steps:
            folder, again = self.folder / str(step), "delete both and start again: the run goes on from the one before"
            try:
                seal = json.loads(self._seal(step).read_text("utf-8"))
                facts, files = seal["facts"], seal["files"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                return f"{self._seal(step)}, of the checkpoint {folder}, is damaged ({error}): {again}"
            if facts != self.facts:
                return None
            if (found := _digests(folder)) != files:
                wrong = sorted(name for name in {*found, *files} if found.get(name) != files.get(name))
                return f"the checkpoint {folder} is damaged ({wrong[0]}), sealed by {self._seal(step)}: {again}"
            return step
        return None

    def _seal(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _manager(self) -> Any:
        if self._orbax is None:
            if jax.process_index() == 0:
                self._drop_unsealed()
            distributed.barrier(f"checkpoints {self.folder}")
            options = _orbax().CheckpointManagerOptions(
                max_to_keep=self.keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            self._orbax = _orbax().CheckpointManager(self.folder, options=options)
        return self._orbax

    def _drop_unsealed(self) -> None:
        """What a kill left between the writing of a checkpoint and its seal."""
        for path in self.folder.glob("*"):
            if path.name.isdigit() and not self._seal(int(path.name)).exists():
                shutil.rmtree(path)


def _orbax() -> Any:
    import orbax.checkpoint  # takes a while, and sweeps of short runs do without

    return orbax.checkpoint


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by number: no type of node has to be known when they are read. TensorStore takes no empty arrays."""
    return {_name(i): jnp.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if jnp.size(leaf)}


def _name(position: int) -> str:
    return f"{position:05d}"


def _digests(folder: Path) -> dict[str, str]:
    """The digest of every file below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
