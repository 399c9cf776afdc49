"""The tokens of a source as one long row over its shards."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from trainer.data.manifest import ShardEntry, SourceEntry, unknown_id
from trainer.data.shards import Shard

OPEN_SHARDS = 256  # each open map costs a file descriptor, of which a process often has 1024


class Shards:
    """The shards of a folder, mapped when they are first read; those used last stay open."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder, self.vocab_size = folder, vocab_size
        self.open = lru_cache(OPEN_SHARDS)(self._opened)

    def _opened(self, entry: ShardEntry) -> Shard:
        shard = Shard(self.folder / entry.file)
        entry.compare(shard.header, shard.path, self.vocab_size)
        return shard


class Row:
    """The tokens of one source, one document after the other."""

    def __init__(self, entry: SourceEntry, shards: Shards) -> None:
        self._entries = [shard for shard in entry.shards if shard.tokens]
        self._starts = np.cumsum([0] + [shard.tokens for shard in self._entries])
        self._shards = shards
        self.tokens = int(self._starts[-1])

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill int64 ``out`` with the tokens from ``start`` on, over as many shards as that takes."""
        done = 0
        number = self._shard_at(start)
        while done < len(out):
            inside = start + done - int(self._starts[number])
            part = self._shards.open(self._entries[number]).tokens[inside : inside + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            number += 1

    def beginnings(self, start: int, length: int) -> np.ndarray:
        """Where documents begin among ``length`` tokens from ``start`` on: int64, relative to ``start``, rising."""
        found = []
        number = self._shard_at(start)
        while number < len(self._entries) and self._starts[number] < start + length:
            base = start - int(self._starts[number])  # of a later shard it is negative
            offsets = self._shards.open(self._entries[number]).offsets[:-1]
            low, high = np.searchsorted(offsets, np.array([max(base, 0), base + length], dtype=np.uint64))
            found.append(offsets[low:high].astype(np.int64) - base)
            number += 1
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def bounds(self) -> np.ndarray:
        """Where each document begins, and the row's end: int64 [documents + 1]. Reads the index of every shard."""
        found = [
            self._shards.open(entry).offsets[:-1].astype(np.int64) + start
            for entry, start in zip(self._entries, self._starts.tolist(), strict=False)
        ]
        return np.concatenate([*found, self._starts[-1:]])

    def check(self, start: int, length: int) -> None:
        """
        Raises:
            DataError: naming the shard, if one of ``length`` tokens from ``start`` on is no id of the tokenizer.
        """
        number = self._shard_at(start)
        while number < len(self._entries) and self._starts[number] < start + length:
            shard = self._shards.open(self._entries[number])
            base = start - int(self._starts[number])
            largest = int(shard.tokens[max(base, 0) : base + length].max())
            if largest >= self._shards.vocab_size:
                raise unknown_id(shard.path, largest, self._shards.vocab_size)
            number += 1

    def _shard_at(self, token: int) -> int:
        return int(np.searchsorted(self._starts, token, side="right")) - 1
