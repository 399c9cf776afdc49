"""The token shard: one file of token ids in which documents stay known, read through a memory map.

Little-endian throughout::

    0    8 bytes   magic, "TOKSHARD"
    8    uint32    version of this layout, 1
    12   uint32    bytes per token: 2 or 4
    16   uint64    number of tokens, T
    24   uint64    number of documents, D
    32   uint64    largest token id
    40   16 bytes  BLAKE2b digest of everything from byte 64 on
    56   8 bytes   BLAKE2b digest of bytes 0 to 55
    64   uint16[T] or uint32[T]   the documents' tokens, one after the other, each with its end-of-text token
    ..   zeros up to a multiple of 8
    ..   uint64[D + 1]   where documents begin, in tokens; the last entry is T

The length of the file follows from the header, so that a cut or foreign file is refused when it is opened,
without reading it; ``Shard.verify`` reads it all and compares the digest.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from trainer.data.files import AGAIN, DataError, publish, temporary

MAGIC = b"TOKSHARD"
VERSION = 1
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sIIQQQ16s")
_TYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def bytes_per_token(vocab_size: int) -> int:
    """2 where every id below ``vocab_size`` fits into 16 bits, otherwise 4."""
    return 2 if vocab_size <= 1 << 16 else 4


@dataclass(frozen=True)
class Header:
    """What a shard says about itself."""

    token_bytes: int
    tokens: int
    documents: int
    largest: int  # token id
    digest: bytes

    @property
    def offsets_at(self) -> int:
        """Byte at which the index of documents begins."""
        return HEADER_BYTES + -(-self.tokens * self.token_bytes // 8) * 8

    @property
    def file_bytes(self) -> int:
        return self.offsets_at + 8 * (self.documents + 1)

    def pack(self) -> bytes:
        fields = (MAGIC, VERSION, self.token_bytes, self.tokens, self.documents, self.largest, self.digest)
        head = _HEADER.pack(*fields)
        return head + _digest(head, 8)

    @staticmethod
    def read(path: Path) -> Header:
        """Read the header of a file, and nothing else.

        Raises:
            DataError: if there is none, or it is cut, too long, damaged or no shard.
        """
        try:
            with path.open("rb", buffering=0) as file:
                header = Header.unpack(file.read(HEADER_BYTES), path)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DataError(f"cannot read the shard {path}: {error.strerror}. {AGAIN}") from error
        if size != header.file_bytes:
            raise DataError(
                f"{path} has {size} bytes where its header says {header.file_bytes}: "
                f"it was cut or written over. {AGAIN}"
            )
        return header

    @staticmethod
    def unpack(raw: bytes, path: Path) -> Header:
        """Read a header; ``path`` is for messages.

        Raises:
            DataError: if this is no shard, or one of a version that is not known here.
        """
        if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
            raise DataError(f"{path} is no token shard: it does not begin as one. {AGAIN}")
        _, version, token_bytes, tokens, documents, largest, digest = _HEADER.unpack(raw[: _HEADER.size])
        if version != VERSION:
            raise DataError(f"{path} has shard version {version}, and only {VERSION} can be read. Make it again")
        if raw[_HEADER.size : HEADER_BYTES] != _digest(raw[: _HEADER.size], 8) or token_bytes not in _TYPES:
            raise DataError(f"{path} has a damaged header. {AGAIN}")
        return Header(token_bytes, tokens, documents, largest, digest)


class ShardWriter:
    """Writes documents into a shard, which appears under its name only when it is whole.

    Use as a context manager: leaving it by an exception leaves no file.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.tokens = 0
        self._vocab_size = vocab_size
        self._type = _TYPES[bytes_per_token(vocab_size)]
        self._largest = 0
        self._offsets = array("Q", [0])
        self._hash = hashlib.blake2b(digest_size=16)
        self._tmp = temporary(path)
        self._file = self._tmp.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    @property
    def documents(self) -> int:
        return len(self._offsets) - 1

    def add(self, ids: npt.ArrayLike) -> None:
        """Append one document.

        Raises:
            DataError: if an id is negative or not below ``vocab_size``.
        """
        document = np.asarray(ids, dtype=np.int64)
        if document.size:
            low, high = int(document.min()), int(document.max())
            if low < 0 or high >= self._vocab_size:
                raise DataError(f"token id {low if low < 0 else high} is outside of the {self._vocab_size} known ids")
            self._largest = max(self._largest, high)
        self._append(document.astype(self._type).tobytes())
        self.tokens += document.size
        self._offsets.append(self.tokens)

    def close(self) -> Header:
        """Finish the file, sync it and give it its name."""
        self._append(bytes(-(self.tokens * self._type.itemsize) % 8))
        self._append(np.frombuffer(self._offsets, dtype=np.uint64).astype("<u8").tobytes())
        header = Header(self._type.itemsize, self.tokens, self.documents, self._largest, self._hash.digest())
        self._file.seek(0)
        self._file.write(header.pack())
        publish(self._file, self._tmp, self.path)
        return header

    def abandon(self) -> None:
        """Drop what was written; after ``close`` there is nothing to drop."""
        with suppress(OSError):  # on a full disk closing fails once more
            self._file.close()
        self._tmp.unlink(missing_ok=True)

    def _append(self, raw: bytes) -> None:
        self._hash.update(raw)
        self._file.write(raw)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._file.closed:
            self.close()
        self.abandon()


class Shard:
    """A shard, mapped into memory for reading."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            DataError: if there is none, or it is cut, too long, damaged or no shard.
        """
        self.path = path
        self.header = header = Header.read(path)
        try:
            self._map = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise DataError(f"cannot read the shard {path}: {error.strerror}. {AGAIN}") from error
        kind = _TYPES[header.token_bytes]
        raw = np.asarray(self._map)
        self.tokens: np.ndarray = raw[HEADER_BYTES : HEADER_BYTES + header.tokens * kind.itemsize].view(kind)
        self.offsets: np.ndarray = raw[header.offsets_at :].view("<u8")

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document, its end-of-text token included."""
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def verify(self) -> None:
        """Read the whole file and compare it with its digest.

        Raises:
            DataError: if a bit has changed.
        """
        digest = hashlib.blake2b(digest_size=16)
        for at in range(HEADER_BYTES, self.header.file_bytes, 1 << 24):
            digest.update(self._map[at : at + (1 << 24)].data)
        if digest.digest() != self.header.digest:
            raise DataError(f"{self.path} is damaged: its content does not match its digest. {AGAIN}")


def _digest(raw: bytes, size: int) -> bytes:
    return hashlib.blake2b(raw, digest_size=size).digest()
