"""TensorBoard event files, through the protocol buffers and checksums of tensorboardX (an optional dependency).

tensorboardX's ``SummaryWriter`` keeps a file, a queue and a thread for each folder, and TensorBoard takes each folder for a run: a sweep
of thousands of runs would exhaust the file descriptors of the process. `append` therefore opens the file for each event and closes it.
An event file is a TFRecord file: a sequence of records, each made of the length of the data (uint64), its checksum, the data and their
checksum, little-endian (TensorFlow: core/lib/io/record_writer.h, core/util/event.proto).
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class MissingTensorBoardError(ImportError):
    """Event files were requested, and tensorboardX is not installed."""


def require_tensorboard() -> None:
    """Import tensorboardX.

    Raises:
      MissingTensorBoardError: the package is not installed.
    """
    try:
        import tensorboardX  # noqa: F401 - optional, and slow to import
    except ImportError as error:
        raise MissingTensorBoardError(
            f'TensorBoard event files need the package tensorboardX ({error}): pip install "jaxbp[tensorboard]", or leave tensorboard out'
        ) from error


def file_name(began: float) -> str:
    """Name of the event file of this process, started at ``began`` seconds since the epoch."""
    return f"events.out.tfevents.{began:.0f}.{socket.gethostname()}.{os.getpid()}"


def append(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Append scalar values, by tag, to an event file; values beyond float32 become infinite.

    Raises:
      OSError: the file cannot be written.
    """
    from tensorboardX.proto import event_pb2, summary_pb2  # optional, and slow to import

    scalars = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=scalars))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell() == 0:
            header = event_pb2.Event(wall_time=event.wall_time, file_version="brain.Event:2")
            file.write(_record(header.SerializeToString()))
        file.write(_record(event.SerializeToString()))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c  # optional, and slow to import

    return struct.pack("<I", masked_crc32c(data))
