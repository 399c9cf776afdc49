"""Data folders made from token ids, for tests that must know every token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.manifest import Manifest, ShardEntry, SourceEntry
from trainer.data.shards import ShardWriter

Sources = dict[str, list[list[list[int]]]]  # source -> shards -> documents -> token ids

EOS = 0


def write(path: Path, train: Sources, validation: Sources | None = None, vocab_size: int = 400) -> Path:
    """A prepared folder with these tokens; without ``validation`` it has no such split."""
    splits = {"train": _split(path, "train", train, vocab_size)}
    if validation is not None:
        splits["validation"] = _split(path, "validation", validation, vocab_size)
    (path / "tokenizer.json").write_text("{}")
    Manifest({}, "numbers", vocab_size, EOS, "digest", splits).write(path)
    return path


def numbered(tokens: int, start: int = 0, length: int = 7) -> list[list[int]]:
    """Documents of ``length`` ids that count up, so that each token tells its place."""
    row = list(range(start, start + tokens))
    return [row[i : i + length] for i in range(0, tokens, length)]


def counted(lengths: list[int], start: int = 1) -> list[np.ndarray]:
    """Documents of these lengths whose ids count up over all of them."""
    return np.split(np.arange(start, start + sum(lengths)), np.cumsum(lengths)[:-1]) if lengths else []


def _split(path: Path, split: str, sources: Sources, vocab_size: int) -> dict[str, SourceEntry]:
    (path / split).mkdir(parents=True)
    entries = {}
    for source, shards in sources.items():
        found = []
        for number, documents in enumerate(shards):
            file = f"{split}/{source}-{number:05d}.tokens"
            with ShardWriter(path / file, vocab_size) as writer:
                for document in documents:
                    writer.add(document)
                header = writer.close()
            found.append(ShardEntry(file, header.file_bytes, header.tokens, header.documents, header.digest.hex()))
        entries[source] = SourceEntry(sum(s.tokens for s in found), sum(s.documents for s in found), found)
    return entries
