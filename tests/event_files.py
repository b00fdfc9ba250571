"""Reads TensorBoard's event files, apart from the code that writes them."""

import struct

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


def masked(data: bytes) -> int:
    """The checksum of a record, as TensorFlow's files have it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, of all event files of a run, as they lie there."""
    result: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", data, at + 8) == (masked(data[at : at + 8]),)
            assert struct.unpack_from("<I", data, at + 12 + length) == (masked(body),)
            event = Event.FromString(body)
            for value in event.summary.value:
                result.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += 16 + length
    return result
