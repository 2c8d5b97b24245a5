"""Placement of runs on devices, and the results that this process holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbp.sweep import _memory, plans


class Placement(NamedTuple):
    """A chunk of runs on the devices of a mesh.

    Attributes:
      mesh: the devices.
      within: "map" (each device computes its runs one after another) or "vmap" (at once).
      capacity: runs on a device.
      needed: bytes that a device needs for the chunk.
    """

    mesh: Mesh
    within: str
    capacity: int
    needed: int = 0

    @property
    def num_devices(self) -> int:
        """Number of devices, or of groups of devices that share the batches of a run."""
        return self.mesh.shape[plans.SEEDS]

    @property
    def num_places(self) -> int:
        """Number of runs in a chunk."""
        return self.num_devices * self.capacity

    def place(self, runs: Any, numbers: Sequence[int]) -> tuple[Any, jax.Array, np.ndarray]:
        """Apply `plans.pad_and_scatter` to the runs (NumPy arrays) with these numbers, and copy the result to the devices."""
        chosen = jax.tree.map(lambda a: a[np.asarray(numbers)], runs)
        runs, counts, places = plans.pad_and_scatter(chosen, len(numbers), self.num_devices, self.capacity)
        return jax.tree.map(self._put, runs), self._put(counts), places

    def like(self, tree: Any) -> Any:
        """Shapes and shardings of a chunk; ``tree``: arrays or shapes of a stack of any number of runs."""
        sharding = NamedSharding(self.mesh, PartitionSpec(plans.SEEDS))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((self.num_places, *a.shape[1:]), a.dtype, sharding=sharding), tree)

    def _put(self, array: np.ndarray) -> jax.Array:
        """Copy the part of the array that the devices of this process hold."""
        sharding = NamedSharding(self.mesh, PartitionSpec(plans.SEEDS))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def chunks(self, num_runs: int) -> Iterator[range]:
        """Yield the numbers of the runs of each chunk."""
        for start in range(0, num_runs, self.num_places):
            yield range(start, min(start + self.num_places, num_runs))

    def identity(self) -> dict[str, Any]:
        """Everything that determines the last bits of the results."""
        sharing = self.mesh.shape[plans.BATCH]
        return {"within": self.within, "capacity": self.capacity, "devices": self.num_devices, "batch": sharing}

    def __str__(self) -> str:
        how = {"map": "one after another", "vmap": "at once"}[self.within]
        kind, sharing = self.mesh.devices.flat[0].platform, self.mesh.shape[plans.BATCH]
        devices = f"{self.num_devices} x {kind}" + (f" (groups of {sharing} share each batch)" if sharing > 1 else "")
        return f"{devices}, up to {self.capacity} each, {how}, {self.needed / 2**20:.3g} MiB a device"


def fitted(
    mesh: Mesh,
    within: str,
    num_runs: int,
    compile_fn: Callable[[Placement], Sequence[Any]],
    *,
    most: int | None,
    bound: float,
) -> tuple[Placement, Sequence[Any]]:
    """Find the largest chunk within ``bound`` bytes on a device, with chunks of even size.

    Args:
      mesh: the devices.
      within: see `Placement`.
      num_runs: number of runs of the whole task.
      compile_fn: ``placement -> compiled programs``.
      most: largest number of runs on a device; None for no limit.
      bound: bytes.

    Returns:
      The placement and its compiled programs.
    """
    start = Placement(mesh, within, 1)
    share = -(-num_runs // start.num_devices)

    def compiled(capacity: int) -> Sequence[Any]:
        return compile_fn(start._replace(capacity=capacity))

    _, capacity, _ = _memory.fit(compiled, min(share, most or share), bound)
    programs = compiled(even := _memory.evenly(share, capacity))
    return start._replace(capacity=even, needed=_memory.needed(programs)), programs


def rows_here(tree: Mapping[str, jax.Array], places: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """Results by run, for the runs (indices into ``places``) of which this process holds the first copy."""
    columns = {name: dict(_held(array)) for name, array in tree.items()}
    held = next(iter(columns.values()), {})
    return {run: {name: column[int(place)] for name, column in columns.items()} for run, place in enumerate(places) if int(place) in held}


def _held(array: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            start = shard.index[0].start or 0
            for offset, value in enumerate(np.asarray(shard.data)):
                yield start + offset, value
