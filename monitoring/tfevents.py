"""TensorBoard's event files: records with checksums, and in each a protocol buffer ``Event``. Scalars only.

Written here and not by the package ``tensorboard``: that brings a web server and gRPC to a login node, takes a second
to import and 40 microseconds for each value. What is needed of the format is this file, and its wire format is frozen.

A file is a sequence of records: length (uint64), masked CRC-32C of it, the bytes, masked CRC-32C of them; all little
endian. The first record names the file's version. A ``SessionLog`` START at a step tells readers to forget what they
have from that step on: so a file that only ever grows still holds one curve.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

VERSION = b"brain.Event:2"
HPARAMS = "hparams"  # the plugin's name

_LONGEST = 1 << 13  # bytes up to which records are read, and share the work of their checksums
_MANY = 4096  # records that share it
_FEW = 24  # below so many each is done by itself
_NO_RECORD = 1 << 30  # a length beyond it is damage
_START = 1  # SessionLog.SessionStatus
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


# -- checksums -------------------------------------------------------------------------------------------------------


def _table() -> list[int]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return found


_TABLE = _table()
_ARRAY = np.array(_TABLE, np.uint32)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, which ``zlib`` does not have."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def crc32cs(pieces: Sequence[bytes]) -> list[int]:
    """The checksum of each piece: of many short ones together, byte by byte of all at once."""
    if len(pieces) < _FEW or len(pieces) > _MANY or max(map(len, pieces)) > _LONGEST:
        if len(pieces) > _MANY:
            return [crc for at in range(0, len(pieces), _MANY) for crc in crc32cs(pieces[at : at + _MANY])]
        return [crc32c(piece) for piece in pieces]
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths[order[0]])
    padded = b"".join(pieces[place].ljust(longest, b"\0") for place in order)
    columns = np.ascontiguousarray(np.frombuffer(padded, np.uint8).reshape(len(pieces), longest).T)
    living = np.searchsorted(-lengths[order], -np.arange(longest), side="left")  # pieces with a byte at each place
    crcs = np.full(len(pieces), 0xFFFFFFFF, np.uint32)
    for place in range(longest):
        count = int(living[place])
        crc = crcs[:count]
        crcs[:count] = _ARRAY[(crc ^ columns[place, :count]) & 0xFF] ^ crc >> np.uint32(8)
    found = np.empty(len(pieces), np.uint32)
    found[order] = crcs ^ np.uint32(0xFFFFFFFF)
    return found.tolist()


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- writing ---------------------------------------------------------------------------------------------------------


def framed(payloads: Sequence[bytes]) -> bytes:
    """Payloads as records."""
    heads = [struct.pack("<Q", len(payload)) for payload in payloads]
    found: list[bytes] = []
    for head, payload, of_head, of_payload in zip(heads, payloads, crc32cs(heads), crc32cs(payloads), strict=True):
        found += [head, struct.pack("<I", _masked(of_head)), payload, struct.pack("<I", _masked(of_payload))]
    return b"".join(found)


def first(t: float) -> bytes:
    """The payload that a file begins with."""
    return _double(1, t) + _bytes(3, VERSION)


def forget(t: float, step: int) -> bytes:
    """What was written of ``step`` and later ones no longer counts."""
    return _double(1, t) + _int(2, step) + _bytes(7, _int(1, _START))


def value_head(tag: str) -> bytes:
    """A scalar's bytes up to the four of its value, for ``scalars``."""
    return _bytes(1, tag.encode("utf-8", "replace")) + _key(2, _FIXED32)


def scalars(t: float, step: int, values: Sequence[bytes]) -> bytes:
    """All scalars of a step in one payload; each of ``values`` is its head and a little-endian float32."""
    return _double(1, t) + _int(2, step) + _bytes(5, b"".join(_bytes(1, value) for value in values))


def hparams_start(t: float, group: str, hparams: Mapping[str, Any]) -> bytes:
    """The parameters that tell a run from others, for the HPARAMS tab."""
    pairs = b"".join(
        _bytes(1, _bytes(1, name.encode("utf-8", "replace")) + _bytes(2, _value(value)))
        for name, value in hparams.items()
    )
    info = pairs + _bytes(4, group.encode("utf-8", "replace")) + _double(5, t)
    return _hparams(t, "_hparams_/session_start_info", _bytes(3, info))


def hparams_end(t: float, ok: bool) -> bytes:
    """How the run ended, for the HPARAMS tab."""
    return _hparams(t, "_hparams_/session_end_info", _bytes(4, _int(1, 1 if ok else 2) + _double(2, t)))


def _hparams(t: float, tag: str, content: bytes) -> bytes:
    plugin = _bytes(1, HPARAMS.encode()) + _bytes(2, _int(1, 0) + content)
    null = _int(1, 1) + _bytes(2, b"") + _bytes(5, struct.pack("<f", 0.0))  # the plugin's tags have an empty tensor
    value = _bytes(1, tag.encode()) + _bytes(9, _bytes(1, plugin)) + _bytes(8, null)
    return _double(1, t) + _bytes(5, _bytes(1, value))


def _value(value: Any) -> bytes:
    """``google.protobuf.Value``."""
    if isinstance(value, bool):
        return _int(4, int(value))
    if isinstance(value, int | float):
        return _double(2, float(value))
    return _bytes(3, str(value).encode("utf-8", "replace"))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative ones as two's complement
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _key(number: int, wire: int) -> bytes:
    return bytes([number << 3 | wire])


def _int(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _key(number, _FIXED64) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """What a record says: scalars by tag, or that what came of ``step`` and later no longer counts."""

    t: float = 0.0  # unix seconds
    step: int = 0
    scalars: Mapping[str, float] = field(default_factory=dict)
    starts: bool = False


class EventFile:
    """The events of a file, read in pieces. ``bad`` counts records that were damaged, a torn last one among them.

    A record whose bytes are damaged is left out; where a length is damaged nothing tells how to go on, and the rest of
    the file counts as one damaged record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = 0

    def __iter__(self) -> Iterator[Event]:
        with self.path.open("rb") as file:
            waiting: list[tuple[bytes, int]] = []
            for each in self._frames(file):
                waiting.append(each)
                if len(waiting) == _MANY:
                    yield from self._events(waiting)
                    waiting = []
            yield from self._events(waiting)

    def _frames(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        while head := file.read(12):
            if len(head) < 12:
                self.bad += 1
                return
            length, crc = struct.unpack("<QI", head)
            if length > _NO_RECORD or _masked(crc32c(head[:8])) != crc:
                self.bad += 1
                return
            long = length > _LONGEST  # a graph, a picture or a text
            payload = b"" if long else file.read(length)
            if long:
                file.seek(length, os.SEEK_CUR)
            if len(tail := file.read(4)) < 4:
                self.bad += 1
                return
            if not long:
                yield payload, struct.unpack("<I", tail)[0]

    def _events(self, frames: Sequence[tuple[bytes, int]]) -> Iterator[Event]:
        if not frames:
            return
        for (payload, said), crc in zip(frames, crc32cs([payload for payload, _ in frames]), strict=True):
            if _masked(crc) != said:
                self.bad += 1
                continue
            try:
                yield event(payload)
            except (ValueError, IndexError, struct.error):
                self.bad += 1


def event(payload: bytes) -> Event:
    """One payload read.

    Raises:
        ValueError, IndexError, struct.error: if it is none.
    """
    t, step, starts, found = 0.0, 0, False, {}
    for number, wire, value in _fields(payload):
        if (number, wire) == (1, _FIXED64):
            t = struct.unpack("<d", value)[0]
        elif (number, wire) == (2, _VARINT):
            step = value - (1 << 64) if value >> 63 else value
        elif (number, wire) == (5, _BYTES):
            found.update(_summary(value))
        elif (number, wire) == (7, _BYTES):
            starts = any(each == (1, _VARINT, _START) for each in _fields(value))
    return Event(t, step, found, starts)


def _summary(data: bytes) -> Iterator[tuple[str, float]]:
    for number, wire, value in _fields(data):
        if (number, wire) != (1, _BYTES):
            continue
        tag, found = "", None
        for inner, kind, content in _fields(value):
            if (inner, kind) == (1, _BYTES):
                tag = content.decode("utf-8", "replace")
            elif (inner, kind) == (2, _FIXED32):
                found = struct.unpack("<f", content)[0]
            elif (inner, kind) == (8, _BYTES):
                found = _tensor(content)
        if tag and found is not None:
            yield tag, found


def _tensor(data: bytes) -> float | None:
    """A tensor's value if it is one float or double; TensorFlow 2 writes scalars so."""
    kind, values = 0, b""
    for number, wire, value in _fields(data):
        if (number, wire) == (1, _VARINT):
            kind = value
        elif (number, wire) == (2, _BYTES) and value:
            return None  # it has a shape: no scalar
        elif number in (4, 5, 6) and wire in (_BYTES, _FIXED32, _FIXED64):
            values = value
    size, code = {1: (4, "<f"), 2: (8, "<d")}.get(kind, (0, ""))
    return struct.unpack(code, values)[0] if size and len(values) == size else None


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field; bytes for all but varints."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32, _BYTES):
            size = 8 if wire == _FIXED64 else 4
            if wire == _BYTES:
                size, at = _read_varint(data, at)
            if at + size > len(data):
                raise ValueError("a field goes beyond its message")
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, wire, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
