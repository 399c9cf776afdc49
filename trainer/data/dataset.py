"""Training samples: sequences of tokens, each a pure function of (data, seed, sample index)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.files import AGAIN, DataError
from trainer.data.manifest import DATASET, Manifest, ShardEntry, SourceEntry
from trainer.data.order import shuffled
from trainer.data.shards import Shard
from trainer.samples import Samples

_OPEN_SHARDS = 256  # each open map costs a file descriptor, of which a process often has 1024


class TokenDataset:
    """Sequences cut from the token shards of a prepared folder, in an endless shuffled order.

    Each source's documents form one long row of tokens. Sample n of a source reads ``seq_len + 1`` tokens
    from ``n * seq_len`` on, so that each token is predicted once an epoch and no sample mixes sources. Less
    than ``seq_len`` tokens are left at the end of a source, and not read. The only state is the next index.

    Attributes:
        vocab_size: token ids are below it.
        samples_per_epoch: index // samples_per_epoch is the epoch; each has an order of its own.
        sources: names of the sources that have at least one sample.
        fingerprint: two datasets with the same one give the same tokens for every index.
    """

    every_token = True

    def __init__(self, path: Path | str, seq_len: int, seed: int, split: str = "train") -> None:
        """Open a folder that ``job=prepare`` wrote; shards are mapped when they are first read.

        Args:
            path: the folder.
            seq_len: tokens that a sample predicts, at least 1.
            seed: of the order.
            split: "train" or "validation".

        Raises:
            DataError: if the folder is not whole, or too small for one sample.
        """
        if seq_len < 1:
            raise DataError(f"data.seq_len={seq_len}: must be at least 1")
        self.path, self.seq_len, self.seed, self.split = Path(path), seq_len, seed, split
        manifest = Manifest.read(self.path)
        if split not in manifest.splits:
            raise DataError(f"{path} has no split {split!r}, only {', '.join(sorted(manifest.splits))}")
        manifest.check(self.path)
        self.vocab_size = manifest.vocab_size
        rows = {name: entry for name, entry in manifest.splits[split].items() if entry.tokens > seq_len}
        if not rows:
            most = max((entry.tokens for entry in manifest.splits[split].values()), default=0)
            raise DataError(
                f"data.seq_len={seq_len}: the largest source of split {split!r} in {path} has {most} tokens, "
                "and must have more than data.seq_len"
            )
        self.sources = tuple(rows)
        self._rows = [_Row(entry) for entry in rows.values()]
        # The first sample of each source, and behind the last one their number.
        self._first = np.cumsum([0] + [(row.tokens - 1) // seq_len for row in self._rows])
        self.samples_per_epoch = int(self._first[-1])
        identity = f"{manifest.fingerprint} {split} {seq_len} {seed}"
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self._open: OrderedDict[str, Shard] = OrderedDict()

    def tokens(self, index: int) -> np.ndarray:
        """The sample at ``index`` >= 0: int64 [seq_len + 1], the inputs and, one further, the targets.

        Raises:
            DataError: if a shard cannot be read or holds an id that the tokenizer does not know.
        """
        return self._tokens([index])[0]

    def batch(self, indices: npt.ArrayLike) -> Samples:
        """The samples at n indices."""
        tokens = self._tokens(indices)
        sources = np.array([self.sources.index(self.source(int(i))) for i in np.atleast_1d(np.asarray(indices))])
        return Samples(tokens[:, :-1], tokens[:, 1:], None, sources)

    def _tokens(self, indices: npt.ArrayLike) -> np.ndarray:
        order = shuffled(np.atleast_1d(np.asarray(indices, dtype=np.int64)), self.samples_per_epoch, self.seed)
        out = np.empty((len(order), self.seq_len + 1), dtype=np.int64)
        for to, sample in zip(out, order, strict=True):
            row = int(np.searchsorted(self._first, sample, side="right")) - 1
            self._read(self._rows[row], (int(sample) - int(self._first[row])) * self.seq_len, to)
        return out

    def source(self, index: int) -> str:
        """The name of the source that the sample at ``index`` comes from."""
        sample = shuffled([index], self.samples_per_epoch, self.seed)[0]
        return self.sources[int(np.searchsorted(self._first, sample, side="right")) - 1]

    def _read(self, row: _Row, start: int, out: np.ndarray) -> None:
        """Fill ``out`` with the row's tokens from ``start`` on, over as many shards as that takes."""
        done = 0
        number = int(np.searchsorted(row.starts, start, side="right")) - 1
        while done < len(out):
            inside = start + done - int(row.starts[number])
            part = self._shard(row.shards[number]).tokens[inside : inside + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            number += 1
        if out.max() >= self.vocab_size:
            raise DataError(
                f"{self.path / row.shards[number - 1].file} holds token id {out.max()}, and the tokenizer "
                f"has {self.vocab_size} ids: the file is damaged. {AGAIN}"
            )

    def _shard(self, entry: ShardEntry) -> Shard:
        shard = self._open.get(entry.file)
        if shard is None:
            shard = Shard(self.path / entry.file)
            if shard.header.digest.hex() != entry.digest or shard.header.largest >= self.vocab_size:
                raise DataError(
                    f"{shard.path} is not the shard that {DATASET} speaks of: it belongs to other data, with "
                    f"ids up to {shard.header.largest} where the tokenizer has {self.vocab_size}. {AGAIN}"
                )
            self._open[entry.file] = shard
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(entry.file)
        return shard


class _Row:
    """The tokens of one source as one long row over its shards."""

    def __init__(self, entry: SourceEntry) -> None:
        self.shards = [shard for shard in entry.shards if shard.tokens]
        self.starts = np.cumsum([0] + [shard.tokens for shard in self.shards])
        self.tokens = int(self.starts[-1])
