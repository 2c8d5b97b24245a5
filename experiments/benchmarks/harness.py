"""Paired timing: ours and the peers in turn, in one process, medians, first calls apart.

Machines are shared and noisy, so only ratios of runs that alternate within one invocation mean anything. Where JAX has a GPU, PyTorch
computes on it too, both in full float32 (no TF32), with the data there and waited for.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxbp import lab
from jaxbp.runtime.files import write_atomically


def start() -> None:
    """Start JAX as long studies do, since compilation is not what is timed, and see to its peers: see `match_torch`."""
    lab.start_jax(for_hours=True)
    match_torch()


def match_torch() -> None:
    """Have JAX and PyTorch compute on the same device, in full float32; say so if PyTorch is not installed.

    Raises:
      SettingsError: JAX has a GPU that PyTorch does not see.
    """
    if on_gpu := jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "highest")
    if note := missing_peer("torch"):
        print(note)
        return
    from experiments.benchmarks import torch_peers

    if not torch_peers.use("cuda" if on_gpu else "cpu"):
        raise lab.SettingsError("JAX has a GPU and PyTorch has none: install PyTorch for CUDA, or set JAX_PLATFORMS=cpu")


def missing_peer(module: str) -> str | None:
    """What to say of a peer that is not installed, or None if it is."""
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed, so its rows are missing: pip install -e '.[bench]'"
    return None


def compare(case: str, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], *, num_runs: int) -> list[dict[str, Any]]:
    """Time ``ours`` against each of ``peers`` (functions that return when the work is done), interleaved ``num_runs`` times.

    Returns one row a peer, in seconds; ``ratio`` above 1 means that ours is ahead.
    """
    everyone = {"ours": ours, **peers}
    first = {name: timed(fn) for name, fn in everyone.items()}
    times: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(num_runs):
        for name, fn in everyone.items():
            times[name].append(timed(fn))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        row(
            case,
            "time",
            "s",
            medians["ours"],
            medians[peer],
            peer,
            runs=num_runs,
            first_ours=first["ours"],
            first_peer=first[peer],
        )
        for peer in peers
    ]


def row(case: str, measure: str, unit: str, ours: float, peer: float, peer_name: str, *, runs: int, **more: Any) -> dict[str, Any]:
    """One line of the table; smaller is better for ``ours`` and ``peer``."""
    ratio = peer / ours if ours else float("inf")
    return {
        "case": case,
        "measure": measure,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "runs": runs,
        **more,
    }


def finish(rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print the table and, if asked, write it as JSON."""
    table = Table(title="ratio above 1: ours is ahead", title_justify="left")
    for column in ("case", "measure", "peer", "ours", "theirs", "ratio", "runs"):
        table.add_column(column, justify="left" if column in ("case", "measure", "peer") else "right", overflow="fold")
    for r in rows:
        numbers = (f"{r['ours']:.4g} {r['unit']}", f"{r['peer']:.4g} {r['unit']}", f"{r['ratio']:.2f}", str(r["runs"]))
        table.add_row(r["case"], r["measure"], r["peer_name"], *numbers)
    Console(width=150).print(table)
    if out is not None:
        write_atomically(out, (json.dumps(list(rows), indent=2) + "\n").encode())
        print(f"written to {out}")


def timed(fn: Callable[[], Any]) -> float:
    """Seconds that a call takes, PyTorch's work on a GPU included."""
    began = time.perf_counter()
    fn()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began
