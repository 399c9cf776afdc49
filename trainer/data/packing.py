"""How the documents of a source are cut into sequences: tables that follow from the documents' lengths alone.

A source is one long row of tokens, each document ended by its end-of-text token, and each sequence is one stretch
of that row: it reads up to ``seq_len + 1`` tokens and predicts each of them but the first. Whatever the packing,
no token is predicted twice in an epoch; which ones never are, the functions say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 18  # documents that are looked at together


@dataclass(frozen=True)
class Cut:
    """The sequences of a source, by number, as stretches of its row."""

    starts: np.ndarray  # int64 [sequences], first token
    lengths: np.ndarray  # int32 [sequences], tokens read, 2 ... seq_len + 1

    def __len__(self) -> int:
        return len(self.starts)

    def stretches(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First token and tokens read, int64 [n] each, of n sequences."""
        return self.starts[numbers], self.lengths[numbers].astype(np.int64)


@dataclass(frozen=True)
class EvenCut:
    """Sequences that are all full, end to end, so that no table is needed."""

    tokens: int
    seq_len: int

    def __len__(self) -> int:
        return max(0, self.tokens - 1) // self.seq_len

    def stretches(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return numbers * self.seq_len, np.full(len(numbers), self.seq_len + 1)


def pack(bounds: np.ndarray, seq_len: int) -> Cut:
    """Whole documents, in their order, into a sequence while they fit: next-fit.

    A document of more than ``seq_len + 1`` tokens begins a sequence and is cut; what is left at its end shares a
    sequence with the documents that follow. The first token of a document is predicted by nothing.

    Args:
        bounds: int64 [documents + 1], where documents begin in the row, and its end.
        seq_len: tokens that a sequence predicts at most.
    """
    parts = []
    document = 0
    for low in range(0, len(bounds) - 1, _CHUNK):
        high = min(low + _CHUNK, len(bounds) - 1)
        if document >= high:  # one sequence took them all
            continue
        # Where the last stretch of each document begins if the document begins a sequence, and which document is
        # the first that does not fit behind it.
        lengths = np.diff(bounds[low : high + 1])
        last = bounds[low:high] + _full(lengths, seq_len) * seq_len
        window = bounds[low : _reach(bounds, int(last[-1]) + seq_len + 1)]
        follows = (low + np.searchsorted(window, last + seq_len + 1, side="right") - 1).tolist()
        chain = []
        while document < high:
            chain.append(document)
            document = follows[document - low]
        heads = np.array(chain)
        parts.append(_stretches(bounds[heads], last[heads - low], bounds[np.append(heads[1:], document)], seq_len))
    return _joined(parts)


def pad(bounds: np.ndarray, seq_len: int) -> Cut:
    """One document in a sequence, or one stretch of a long one. The first token of a document is never predicted."""
    parts = []
    for low in range(0, len(bounds) - 1, _CHUNK):
        here = bounds[low : low + _CHUNK + 1]
        last = here[:-1] + _full(np.diff(here), seq_len) * seq_len
        parts.append(_stretches(here[:-1], last, here[1:], seq_len))
    return _joined(parts)


def _full(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """How many sequences a document of so many tokens fills before its last one, which predicts at least one."""
    return np.maximum(lengths - 2, 0) // seq_len


def _reach(bounds: np.ndarray, end: int) -> int:
    """Behind the last bound that is not after the token ``end``."""
    return int(np.searchsorted(bounds, end, side="right"))


def _stretches(firsts: np.ndarray, last: np.ndarray, ends: np.ndarray, seq_len: int) -> Cut:
    """Full stretches from ``firsts`` to ``last``, and one from there to ``ends``, if it predicts anything."""
    full = (last - firsts) // seq_len
    numbers = np.arange(int(full.sum()) + len(full)) - np.repeat(np.cumsum(full + 1) - (full + 1), full + 1)
    starts = np.repeat(firsts, full + 1) + numbers * seq_len
    lengths = np.minimum(np.repeat(ends, full + 1) - starts, seq_len + 1).astype(np.int32)
    kept = lengths > 1
    return Cut(starts[kept], lengths[kept])


def _joined(cuts: list[Cut]) -> Cut:
    if not cuts:
        return Cut(np.empty(0, np.int64), np.empty(0, np.int32))
    return Cut(np.concatenate([cut.starts for cut in cuts]), np.concatenate([cut.lengths for cut in cuts]))
