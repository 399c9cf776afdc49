"""Which source each sample comes from: a pure function of (seed, sample index) that keeps to weights exactly.

Sources are the leaves of a binary tree. Of the first n samples below a node, its left child has n times its share,
rounded, and its right child the rest: so the number of draws of each source among the first n samples is known for
every n without a walk through them, never falls, and adds up to n. Each level rounds by at most 1/2, and of a
node's error a child inherits its share. The tree is Huffman's: in it a node has at most half the weight of its
grandparent, so that over any depth the error stays below 1/2 * (1 + 1 + 1/2 + 1/2 + 1/4 + ...) = 2 samples.

The samples of each block of ``BLOCK`` are shuffled, for within a batch the places of a source shall mean nothing.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trainer.data.mixture import Part
from trainer.data.order import keyed
from trainer.scramble import scrambled

BLOCK = 256
_BLOCKS_KEPT = 64


class Interleave:
    """The endless series of (source, draw): the sample at index i is the source's draw-th, from 0."""

    def __init__(self, parts: Sequence[Part], sources: Sequence[str], seed: int) -> None:
        """
        Args:
            parts: weights along the run; the first begins at sample 0.
            sources: names, by number.
            seed: of the order within blocks.
        """
        self._parts = parts
        self._seed = seed
        self._trees = [_Tree([part.weights.get(source, 0) for source in sources]) for part in parts]
        self._before = [np.zeros(len(sources), dtype=np.int64)]  # draws of each source before a part begins
        for part, tree, following in zip(parts, self._trees, parts[1:], strict=False):
            self._before.append(self._before[-1] + tree.counts(following.first - part.first))
        # The blocks used last are kept: neighbours in a batch share one. What a block is does not depend on it.
        self._block = lru_cache(_BLOCKS_KEPT)(self._made_block)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sources and draws, int64 [n] each, at int64 [n] indices of at least 0."""
        located = np.empty((2, len(indices)), dtype=np.int64)
        for i, index in enumerate(indices.tolist()):
            begin, end = self._bounds(index)
            block = self._block(begin, end)
            located[0, i] = block.sources[index - begin]
            located[1, i] = block.draws[index - begin]
        return located[0], located[1]

    def drawn(self, first: int, last: int) -> np.ndarray:
        """How often each source stands at an index in [first, last): int64 [sources]. Takes no time, however many."""
        return self._drawn_before(last) - self._drawn_before(first)

    def _drawn_before(self, index: int) -> np.ndarray:
        begin, end = self._bounds(index)
        counts = self._counts(begin)
        if index > begin:
            counts += np.bincount(self._block(begin, end).sources[: index - begin], minlength=len(counts))
        return counts

    def _bounds(self, index: int) -> tuple[int, int]:
        """The block that holds ``index``: blocks end where a part or an epoch does."""
        if index < 0:
            raise ValueError("a sample index is negative")
        number = self._part_at(index)
        part = self._parts[number]
        inside = index - part.first
        epoch = inside // part.epoch * part.epoch if part.epoch else 0
        begin = part.first + epoch + (inside - epoch) // BLOCK * BLOCK
        end = begin + BLOCK
        if part.epoch:
            end = min(end, part.first + epoch + part.epoch)
        if number + 1 < len(self._parts):
            end = min(end, self._parts[number + 1].first)
        return begin, end

    def _part_at(self, index: int) -> int:
        return bisect_right(self._parts, index, key=lambda part: part.first) - 1

    def _counts(self, index: int) -> np.ndarray:
        """Draws of each source before the beginning of a block."""
        number = self._part_at(index)
        return self._before[number] + self._trees[number].counts(index - self._parts[number].first)

    def _made_block(self, begin: int, end: int) -> _Block:
        before = self._counts(begin)
        tree = self._trees[self._part_at(begin)]
        first = self._parts[self._part_at(begin)].first
        counts = tree.counts(end - first) - tree.counts(begin - first)
        places = np.arange(begin, end, dtype=np.uint64)
        order = np.argsort(scrambled(places + scrambled(scrambled(keyed(self._seed)))))
        sources = np.repeat(np.arange(len(counts)), counts)[order]
        # The draws of a source follow each other in the order of the indices.
        draws = np.empty(end - begin, dtype=np.int64)
        rank = np.arange(end - begin) - np.repeat(np.cumsum(counts) - counts, counts)
        draws[np.argsort(sources, kind="stable")] = np.repeat(before, counts) + rank
        return _Block(sources, draws)


@dataclass(frozen=True)
class _Block:
    sources: np.ndarray  # int64 [at most BLOCK]
    draws: np.ndarray  # int64 [at most BLOCK]


class _Tree:
    """Splits n draws by integer weights, whatever their size: in Python's integers, which do not overflow."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._leaves = len(weights)
        heap = [(weight, source) for source, weight in enumerate(weights) if weight]
        heapq.heapify(heap)
        # Of each inner node its number, its left and right child, the left one's weight, and its own, twice.
        inner: list[tuple[int, int, int, int, int]] = []
        while len(heap) > 1:
            (small, right), (large, left) = heapq.heappop(heap), heapq.heappop(heap)
            node = self._leaves + len(inner)
            inner.append((node, left, right, large, 2 * (large + small)))
            heapq.heappush(heap, (large + small, node))
        self._root = heap[0][1]
        self._from_root = inner[::-1]

    def counts(self, n: int) -> np.ndarray:
        """How many of the first n draws each source has: int64 [sources]."""
        drawn = [0] * (self._leaves + len(self._from_root))
        drawn[self._root] = n
        for node, left, right, weight, double in self._from_root:
            here = drawn[node]
            there = (2 * here * weight + double // 2) // double
            drawn[left] = there
            drawn[right] = here - there
        return np.array(drawn[: self._leaves], dtype=np.int64)
