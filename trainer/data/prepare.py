"""Making a data folder: corpus, tokenizer, shards, and dataset.json as the mark that it is whole.

May be killed between any two lines: until dataset.json is written nobody reads the folder, and the next call
does again what is not downloaded yet. The same documents give the same bytes in every file.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.config import CorpusConfig
from trainer.data.corpus import Corpus, Document, open_corpus
from trainer.data.files import AGAIN, DataError, lock, sweep, write_bytes
from trainer.data.manifest import DATASET, REQUEST, TOKENIZER, Manifest, ShardEntry, SourceEntry, request_of
from trainer.data.shards import ShardWriter
from trainer.data.tokenizer import Tokenizer

TRAIN, VALIDATION = "train", "validation"
SHARD_TOKENS = 1 << 28  # a shard is closed when it has so many; 0.5 or 1 GiB
_BATCH_CHARACTERS = 1 << 22  # of documents that are encoded together
_SOURCE = re.compile(r"[\w.@-]{1,100}")


def prepare(path: Path, config: CorpusConfig, cache: Path, say: Callable[[str], None] = print) -> Manifest:
    """Make the data that ``config`` asks for in the folder ``path``, unless it is there.

    Args:
        path: of the data; new, empty, or left by an earlier call for the same corpus.
        config: which text, what vocabulary, how much of it is kept for validation.
        cache: folder for downloads, shared between data folders.
        say: is given lines about the progress.

    Raises:
        DataError: if the text cannot be had or read, or ``path`` holds something else.
    """
    request = request_of(config)
    _check(config)
    if (path / DATASET).exists():
        existing = Manifest.read(path)
        _refuse_other(path, existing.request, request)
        try:
            existing.check(path)
        except DataError as error:
            say(f"{error}: making it again now")
        else:
            say(f"{path} is prepared already, {existing.tokens(TRAIN):,} tokens. To make it again, remove it")
            return existing
    path.mkdir(parents=True, exist_ok=True)
    with lock(_claimed(path, request), wait=False):
        (path / DATASET).unlink(missing_ok=True)
        write_bytes(path / REQUEST, json.dumps(request, indent=1, ensure_ascii=False).encode())
        sweep(path)
        manifest = _make(path, config, open_corpus(config, cache, say), say)
        _remove_strangers(path, manifest)
        manifest.write(path)
    return manifest


def is_validation(document: Document, share: float) -> bool:
    """Whether a document is kept out of training: decided by its text alone, so that copies stay together."""
    digest = hashlib.blake2b(document.text.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < share * (1 << 64)


def _check(config: CorpusConfig) -> None:
    share = config.validation_share
    if not 0 <= share < 1:
        raise DataError(f"data.corpus.validation_share={share}: must be at least 0 and below 1")


def _claimed(path: Path, request: dict[str, Any]) -> Path:
    """The lock file of a folder in which this request may be made.

    Raises:
        DataError: if the folder holds something that is not this data's unfinished beginning.
    """
    file = path / REQUEST
    if file.exists():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"cannot read {file}: {error}. {AGAIN}") from error
        _refuse_other(path, there, request)
    elif any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise DataError(f"data.path={path} holds other things. Name a new folder: data.path={path}-1")
    return path / ".lock"


def _refuse_other(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    if there != wanted:
        differ = [f"{k}={there.get(k)} (wanted: {wanted[k]})" for k in wanted if there.get(k) != wanted[k]]
        raise DataError(
            f"data.path={path} holds data of another request: data.corpus.{', data.corpus.'.join(differ)}. "
            f"Name another folder, such as data.path={path}-1, or remove this one"
        )


def _make(path: Path, config: CorpusConfig, corpus: Corpus, say: Callable[[str], None]) -> Manifest:
    say(f"corpus: {corpus.origin}")
    begun = time.monotonic()
    training = (d.text for d in corpus.documents() if not is_validation(d, config.validation_share))
    tokenizer = Tokenizer.train(training, config.vocab_size)
    tokenizer.save(path / TOKENIZER)
    say(f"tokenizer: {tokenizer.vocab_size:,} ids, trained in {time.monotonic() - begun:.1f} s")
    begun = time.monotonic()
    with _Shards(path, tokenizer.vocab_size) as shards:
        for batch in _batches(corpus.documents()):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                split = VALIDATION if is_validation(document, config.validation_share) else TRAIN
                shards.add(split, document.source, [*ids, tokenizer.eos])
        splits = shards.close()
    manifest = Manifest(
        request_of(config), corpus.origin, tokenizer.vocab_size, tokenizer.eos, tokenizer.digest(), splits
    )
    if not manifest.tokens(TRAIN):
        raise DataError(f"the corpus has no text: {corpus.origin}")
    say("tokens: " + ", ".join(f"{source} {entry.tokens:,}" for source, entry in splits[TRAIN].items()))
    say(
        f"train: {manifest.tokens(TRAIN):,} tokens in {manifest.documents(TRAIN):,} documents, "
        f"validation: {manifest.tokens(VALIDATION):,} in {manifest.documents(VALIDATION):,}, "
        f"encoded in {time.monotonic() - begun:.1f} s"
    )
    return manifest


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups that are worth several cores and fit into memory."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _remove_strangers(path: Path, manifest: Manifest) -> None:
    """Remove shards of an earlier beginning that the finished data does not name."""
    known = {path / shard.file for shard in manifest.shards()}
    for split in (TRAIN, VALIDATION):
        for file in (path / split).glob("*.tokens"):
            if file not in known:
                file.unlink()


class _Shards:
    """One open shard per split and source."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path, self._vocab_size = path, vocab_size
        self._open: dict[tuple[str, str], ShardWriter] = {}
        self._done: dict[str, dict[str, list[ShardEntry]]] = {TRAIN: {}, VALIDATION: {}}
        for split in self._done:
            (path / split).mkdir(exist_ok=True)

    def add(self, split: str, source: str, ids: list[int]) -> None:
        writer = self._open.get((split, source))
        if writer is None:
            if not _SOURCE.fullmatch(source):
                raise DataError(f"the source {source!r} is no file name of letters, digits and . _ @ -")
            number = len(self._done[split].setdefault(source, []))
            file = self._path / split / f"{source}-{number:05d}.tokens"
            writer = self._open[split, source] = ShardWriter(file, self._vocab_size)
        writer.add(ids)
        if writer.tokens >= SHARD_TOKENS:
            self._finish(split, source)

    def close(self) -> dict[str, dict[str, SourceEntry]]:
        """Finish all shards: split -> source -> what it has, sources by name."""
        for split, source in list(self._open):
            self._finish(split, source)
        return {
            split: {source: _entry(shards) for source, shards in sorted(sources.items())}
            for split, sources in self._done.items()
        }

    def _finish(self, split: str, source: str) -> None:
        writer = self._open.pop((split, source))
        header = writer.close()
        file = str(writer.path.relative_to(self._path))
        self._done[split][source].append(
            ShardEntry(file, header.file_bytes, header.tokens, header.documents, header.digest.hex())
        )

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._open.values():
            writer.abandon()


def _entry(shards: Iterable[ShardEntry]) -> SourceEntry:
    found = list(shards)
    return SourceEntry(sum(s.tokens for s in found), sum(s.documents for s in found), found)
