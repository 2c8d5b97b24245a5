"""Checkpoints of unfinished runs: Orbax writes, commits and retains them; digests of their files detect damage.

Orbax commits a checkpoint atomically and then removes older ones: a kill at any moment leaves a whole checkpoint. Orbax does not check what
it reads: a flipped bit gives other numbers, or an error far from its cause. Every checkpoint therefore holds digests of its files, which
are compared before Orbax reads them (tests/sweep/test_runs.py: test_a_damaged_checkpoint_is_told_and_nothing_earlier_is_lost). A kill
between commit and digests leaves a whole checkpoint without digests, which counts. Several processes write their parts of a checkpoint
to a folder that they share. Reading a checkpoint executes nothing.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxbp.runtime import processes
from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.store import StoreError

_DIGESTS = "digests.json"


class Checkpoints:
    """The last ``keep`` checkpoints of one group of runs.

    Args:
      folder: created at the first save; other values of ``identity`` under the same name have folders of their own.
      name: name of the group.
      identity: facts that a checkpoint must have been written for, as JSON.
      keep: number of checkpoints.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], keep: int):
        code = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4).hexdigest()
        self.folder, self.keep = folder.absolute() / f"{name}-{code}", keep

    def save(self, step: int, tree: Any) -> None:
        """Write ``tree``; on return the checkpoint is on disk, whole.

        Raises:
          StoreError: the checkpoint cannot be written; earlier ones are kept.
        """
        try:
            with self._manager() as (manager, orbax):
                manager.save(step, args=orbax.args.StandardSave(_leaves(tree)), force=True)
            if processes.is_first():
                folder = self.folder / str(step)
                write_atomically(folder / _DIGESTS, json.dumps(_digests(folder)).encode())
        except (OSError, ValueError) as error:  # TensorStore raises ValueError, with a long text
            reason = str(error).splitlines()[0][:200]
            raise StoreError(f"cannot write a checkpoint to {self.folder} ({reason}); what was finished before is safe") from error

    def latest(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest checkpoint.

        Args:
          like: arrays, or shapes with shardings, which give the tree and its placement on devices.

        Returns:
          The step and the tree; None without a checkpoint.

        Raises:
          StoreError: the checkpoint is damaged.
        """
        if not processes.from_first(self.folder.is_dir()):
            return None
        with self._manager() as (manager, orbax):
            step = processes.from_first(manager.latest_step())
            if step is None:
                return None
            if damage := processes.from_first(_damage(self.folder / str(step)) if processes.is_first() else ""):
                raise StoreError(damage)
            restored = manager.restore(step, args=orbax.args.StandardRestore(_leaves(like)))
        leaves, tree = jax.tree.flatten(like)
        empty = [jax.numpy.zeros(leaf.shape, leaf.dtype) if _is_empty(leaf) else None for leaf in leaves]
        return step, tree.unflatten([restored.get(_name(i), leaf) for i, leaf in enumerate(empty)])

    def delete(self) -> None:
        """Remove all checkpoints, once their runs are finished."""
        processes.barrier("checkpoints are not needed any more")
        if processes.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)  # leftovers are harmless: no later run reads them

    @contextlib.contextmanager
    def _manager(self) -> Iterator[tuple[Any, Any]]:
        import orbax.checkpoint as orbax  # slow to import, and not needed by sweeps of short runs

        options = orbax.CheckpointManagerOptions(max_to_keep=self.keep, enable_async_checkpointing=False, cleanup_tmp_directories=True)
        with orbax.CheckpointManager(self.folder, options=options) as manager:
            yield manager, orbax


def _damage(folder: Path) -> str:
    """Describe the damage of the checkpoint in ``folder``; empty without damage."""
    path = folder / _DIGESTS
    remedy = "delete it and start again: the run goes on from the one before, or from its start"
    if not path.exists():
        return ""
    try:
        expected = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return f"the checkpoint {folder} is damaged ({path.name}: {error}): {remedy}"
    digests = _digests(folder)
    if wrong := sorted(name for name in {*digests, *expected} if digests.get(name) != expected.get(name)):
        return f"the checkpoint {folder} is damaged ({wrong[0]}): {remedy}"
    return ""


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by number, so that reading needs no node types. TensorStore rejects empty arrays."""
    return {_name(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if not _is_empty(leaf)}


def _is_empty(leaf: Any) -> bool:
    return 0 in leaf.shape


def _name(position: int) -> str:
    return f"{position:05d}"


def _digests(folder: Path) -> dict[str, str]:
    """Digests of all files below ``folder`` but the file of digests."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _DIGESTS
    }
