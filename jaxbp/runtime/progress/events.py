"""TensorBoard event files, written without TensorFlow.

They are TFRecord files, one record after the other: the length of the data (uint64), its checksum, the data, their checksum; all
little-endian, each checksum a CRC-32C that is rotated and offset, since data may hold checksums themselves. The data are protocol buffers:
``Event {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary {1: repeated Value {1: string tag, 2: float value}}}``,
of which the first has the version and the others a step and a summary. TensorBoard takes any file with ``tfevents`` in its name, and each
folder for a run. (TensorFlow: core/lib/io/record_writer.h, core/lib/hash/crc32c.h, core/util/event.proto, core/framework/summary.proto.)

They are written here for two reasons. ``tf.summary.scalar`` of a TensorFlow without the tensorboard package, as neural-tangents brings it,
raises TBNotInstalledError. And it needs a writer for each folder, each of which keeps a file open: a sweep of thousands of runs would use
up the file descriptors of the process. `append` opens the file for each event, and closes it.
"""

import functools
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


def file_name(began: float) -> str:
    """Name of an event file of this process, begun at a time since the epoch."""
    return f"events.out.tfevents.{began:.0f}.{socket.gethostname()}.{os.getpid()}"


def append(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Write values, by tag, at a step to the end of an event file, which is made if it is not there.

    Values beyond float32 become infinite.

    Raises:
      OSError: it cannot be written.
    """
    now = time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell() == 0:
            file.write(_record(_wall_time(now) + _field(3, b"brain.Event:2")))
        file.write(_record(_scalars_event(now, step, values)))


def _scalars_event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    entries = (_field(1, tag.encode()) + b"\x15" + _float32(value) for tag, value in values.items())
    summary = b"".join(_field(1, entry) for entry in entries)
    return _wall_time(wall_time) + b"\x10" + _varint(int(step) % 2**64) + _field(5, summary)


def _wall_time(seconds: float) -> bytes:
    return b"\x09" + struct.pack("<d", seconds)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc32c(length) + data + _masked_crc32c(data)


def _masked_crc32c(data: bytes) -> bytes:
    crc = 2**32 - 1
    for byte in data:
        crc = _crc32c_table()[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 2**32 - 1
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 2**32 - 1)


@functools.cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return tuple(table)
