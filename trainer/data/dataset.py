"""Training samples: sequences of tokens, each a pure function of (data, seed, sample index)."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.data import mixture
from trainer.data.files import DataError
from trainer.data.interleave import Interleave
from trainer.data.order import shuffled
from trainer.data.sequences import Sequences
from trainer.samples import Samples

_SCANNED = 1 << 16  # sequences whose padding is counted together


class TokenDataset:
    """The endless series of a run's samples; the only state is the next index.

    The mixture says which source stands at an index, and the draws of a source walk through its sequences in one
    shuffled order after the other, so that each is seen once before any is seen again. In packing=stream less than
    ``seq_len`` tokens are left at the end of a source, and not read. Without weights and temperature every sequence
    of every source is seen once in the first ``sum(lengths)`` samples, once in the next so many, and so on.

    Attributes:
        sources: names of the sources that are drawn from, by ``Samples.sources``.
        lengths: int64 [sources], sequences of one epoch of each.
        vocab_size: token ids are below it.
        every_token: every position of every sample is trained on.
        fingerprint: of the tokens in the folder. What else decides on the tokens that an index gives is in the
            configuration, and in ``trainer.identity``, so that a run does not resume with another mixture or packing:
            what is to change along a run is said by phases. ``ORDER`` there changes with this class.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        seed: int,
        tokens: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Open a folder that ``job=prepare`` wrote.

        Args:
            seed: of the order.
            tokens: of the whole run, ``train.tokens``: phases end at shares of it.
            split: "train" or "validation".
            rank, world_size: of the ranks that open the folder together; each looks at its share of the shards.

        Raises:
            DataError: if the folder is not whole, holds shards of other data, is too small for one sample, or has no
                source of a given name.
        """
        self._sequences = opened = Sequences(
            data, split, lambda sources: _chosen(data, sources), share=slice(rank, None, world_size)
        )
        self.sources, self.lengths = opened.sources, opened.lengths
        self.vocab_size, self.every_token = opened.vocab_size, opened.every_token
        self.seq_len = data.seq_len
        if not self.sources:
            raise DataError(f"{data.path}: the documents of split {split!r} are too short to learn from")
        samples = dict(zip(self.sources, self.lengths.tolist(), strict=True))
        parts = mixture.parts(data, samples=samples, tokens=opened.tokens, run=-(-tokens // data.seq_len))
        if not all(part.weights for part in parts):
            raise DataError(f"data.mixture: one phase draws only from sources of {data.path} without a full sequence")
        self._interleave = Interleave(parts, self.sources, seed)
        # By name, so that what one source gives does not depend on which others there are.
        self._seeds = np.array([_key(seed, name) for name in self.sources], dtype=np.uint64)
        self.fingerprint = opened.fingerprint

    def batch(self, indices: npt.ArrayLike) -> Samples:
        """The samples at n indices of at least 0.

        Raises:
            DataError: if a shard cannot be read or holds an id that the tokenizer does not know.
        """
        sources, numbers = self.locate(indices)
        return self._sequences.read(sources, numbers)

    def locate(self, indices: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Which sequences the samples at n indices are: int64 [n] sources, int64 [n] numbers within them."""
        sources, draws = self._interleave.locate(np.atleast_1d(np.asarray(indices, dtype=np.int64)))
        return sources, shuffled(draws, self.lengths[sources], self._seeds[sources])

    def drawn(self, first: int, last: int) -> np.ndarray:
        """Samples of each source at the indices [first, last): int64 [sources], exact, in no time however many."""
        return self._interleave.drawn(first, last)

    def epochs(self, first: int, last: int) -> np.ndarray:
        """How often each source is read from end to end by the indices [first, last): float64 [sources]."""
        return self.drawn(first, last) / self.lengths

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens of each source that the samples at the indices [first, last) read: int64 [sources], exact.

        Padding does not count. Where there is none, they are samples times ``seq_len``, and add up to the tokens
        consumed; otherwise it takes time, some 0.1 s a million samples, for at most two epochs of each source.
        """
        begin, end = self.drawn(0, first), self.drawn(0, last)
        counts = (end - begin) * self.seq_len
        for source in range(len(self.sources)):
            if not self._sequences.full(source):
                counts[source] = self._read_tokens(source, int(begin[source]), int(end[source]))
        return counts

    def _read_tokens(self, source: int, begin: int, end: int) -> int:
        """Tokens of the draws [begin, end) of a source: whole epochs are known, the rest is looked up."""
        length = int(self.lengths[source])
        first_whole, last_whole = -(-begin // length), end // length
        if last_whole <= first_whole:
            return self._looked_up(source, begin, end)
        every = self._sequences.tokens_of(source, np.arange(length))
        ends = self._looked_up(source, begin, first_whole * length) + self._looked_up(source, last_whole * length, end)
        return ends + (last_whole - first_whole) * every

    def _looked_up(self, source: int, begin: int, end: int) -> int:
        total = 0
        for low in range(begin, end, _SCANNED):
            draws = np.arange(low, min(low + _SCANNED, end))
            numbers = shuffled(draws, int(self.lengths[source]), self._seeds[source : source + 1])
            total += self._sequences.tokens_of(source, numbers)
        return total


def _chosen(data: DataConfig, sources: dict[str, int]) -> list[str]:
    if found := [str(problem) for problem in mixture.problems(sources, data)]:
        raise DataError("\n".join(found))
    return mixture.drawn_sources(data, sources)


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
