"""Every sequence that a split is cut into, by (source, number)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer.config import DataConfig, Packing
from trainer.data.files import DataError
from trainer.data.manifest import Manifest
from trainer.data.packing import Cut, EvenCut, pack, pad
from trainer.data.rows import Row, Shards
from trainer.samples import IGNORED, Samples


class Sequences:
    """The sequences of some sources of a prepared folder.

    With ``document_mask``, and with packing=documents, nothing is learned across the end of a document: the
    end-of-text token there has ``IGNORED`` as its target, which in packing=stream without the mask is the first
    token of the next document. Padding repeats the end-of-text token, with ``IGNORED``.

    Attributes:
        sources: names of the sources that have at least one sequence; numbers of sources count in it.
        lengths: int64 [sources], sequences of each.
        every_token: every position of every sequence is trained on.
        vocab_size: token ids are below it.
    """

    def __init__(
        self,
        data: DataConfig,
        split: str,
        choose: Callable[[dict[str, int]], list[str]],
        *,
        small: bool = False,
        share: slice | None = slice(None),
    ) -> None:
        """Open a folder that ``job=prepare`` wrote.

        Shards are mapped when they are first read; that each is one of this data is seen now. Where documents are
        packed or padded, the index of every shard of the sources is read now, and a table of 12 bytes a sequence kept.

        Args:
            split: "train" or "validation".
            choose: given the tokens of each source of the split, the sources to open.
            small: a source that is too small for packing=stream is padded instead of left out.
            share: of the folder's shards, those to be looked at now; None: none.

        Raises:
            DataError: if the folder is not whole.
        """
        if data.seq_len < 1:
            raise DataError(f"data.seq_len={data.seq_len}: must be at least 1")
        path = Path(data.path)
        manifest = Manifest.read(path)
        if split not in manifest.splits:
            raise DataError(f"{path} has no split {split!r}, only {', '.join(sorted(manifest.splits))}")
        if share is not None:
            manifest.check(path, share)
        self.fingerprint = manifest.fingerprint
        self.vocab_size = manifest.vocab_size
        self.seq_len = data.seq_len
        self.tokens = {name: entry.tokens for name, entry in manifest.splits[split].items()}
        self._eos = manifest.eos
        self._numbered = data.document_mask
        self._marked = data.document_mask or data.packing is Packing.documents
        shards = Shards(path, manifest.vocab_size)
        rows = {name: Row(manifest.splits[split][name], shards) for name in choose(self.tokens)}
        cuts = {name: _cut(row, data, small=small) for name, row in rows.items()}
        self.sources = tuple(name for name, cut in cuts.items() if len(cut))
        self._rows = [rows[name] for name in self.sources]
        self._cuts = [cuts[name] for name in self.sources]
        self._even = all(isinstance(cut, EvenCut) for cut in self._cuts)
        self.every_token = self._even and not self._marked
        self.lengths = np.array([len(cut) for cut in self._cuts], dtype=np.int64)

    def read(self, sources: np.ndarray, numbers: np.ndarray) -> Samples:
        """The sequences with these numbers, of these sources; int64 [n] each.

        Raises:
            DataError: if a shard cannot be read or holds an id that the tokenizer does not know.
        """
        starts, lengths = self._stretches(sources, numbers)
        buffer = np.full((len(sources), self.seq_len + 1), self._eos, dtype=np.int64)
        stretches = list(zip(sources.tolist(), starts.tolist(), lengths.tolist(), strict=True))
        for out, (source, start, length) in zip(buffer, stretches, strict=True):
            self._rows[source].read(start, out[:length])
        if buffer.size and buffer.max() >= self.vocab_size:
            for source, start, length in stretches:
                self._rows[source].check(start, length)
        if self.every_token:
            return Samples(buffer[:, :-1], buffer[:, 1:], None, sources)
        targets = buffer[:, 1:].copy()
        targets[np.arange(1, self.seq_len + 1) >= lengths[:, None]] = IGNORED
        documents = None
        if self._marked:
            begins = self._beginnings(stretches)
            targets[begins[:, 1:]] = IGNORED
            if self._numbered:
                padded = np.flatnonzero(lengths <= self.seq_len)
                begins[padded, lengths[padded] - 1] = True  # the last token, which predicts nothing, is padding too
                documents = begins[:, :-1].cumsum(axis=1, dtype=np.int32)
        return Samples(buffer[:, :-1], targets, documents, sources)

    def tokens_of(self, source: int, numbers: np.ndarray) -> int:
        """Tokens that stand as inputs in these sequences of a source: all positions that are no padding."""
        _, lengths = self._cuts[source].stretches(numbers)
        return int(lengths.sum()) - len(lengths)

    def full(self, source: int) -> bool:
        """Whether the sequences of a source have no padding."""
        return isinstance(self._cuts[source], EvenCut)

    def _stretches(self, sources: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._even:
            return numbers * self.seq_len, np.full(len(numbers), self.seq_len + 1)
        starts, lengths = np.empty_like(numbers), np.empty_like(numbers)
        for source in np.unique(sources).tolist():
            mine = sources == source
            starts[mine], lengths[mine] = self._cuts[source].stretches(numbers[mine])
        return starts, lengths

    def _beginnings(self, stretches: list[tuple[int, int, int]]) -> np.ndarray:
        """bool [n, seq_len + 1]: a document begins here. The first position is never marked."""
        begins = np.zeros((len(stretches), self.seq_len + 1), dtype=bool)
        for mark, (source, start, length) in zip(begins, stretches, strict=True):
            mark[self._rows[source].beginnings(start, length)] = True
        begins[:, 0] = False
        return begins


def _cut(row: Row, data: DataConfig, *, small: bool) -> Cut | EvenCut:
    even = EvenCut(row.tokens, data.seq_len)
    if data.packing is Packing.documents:
        return pack(row.bounds(), data.seq_len)
    if data.packing is Packing.padded or (small and not len(even)):
        return pad(row.bounds(), data.seq_len)
    return even
