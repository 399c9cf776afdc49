"""A small text in many scripts, made for these tests, and data folders prepared from it or from numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config import CorpusConfig, CorpusSource
from trainer.data.manifest import Manifest, ShardEntry, SourceEntry
from trainer.data.prepare import prepare
from trainer.data.shards import ShardWriter
from trainer.data.tokenizer import Tokenizer

TEXTS = Path(__file__).parent / "texts"


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Texts by "language/name"."""
    return {
        f"{file.parent.name}/{file.stem}": file.read_text(encoding="utf-8") for file in sorted(TEXTS.glob("*/*.txt"))
    }


@pytest.fixture
def corpus() -> CorpusConfig:
    """What asks for those texts."""
    return CorpusConfig(CorpusSource.files, [str(TEXTS / "*" / "*.txt")], vocab_size=400, validation_share=0.2)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder; not to be changed."""
    path = tmp_path_factory.mktemp("data") / "texts"
    config = CorpusConfig(CorpusSource.files, [str(TEXTS / "*" / "*.txt")], vocab_size=400)
    prepare(path, config, path.parent / "cache", say=lambda line: None)
    return path


@pytest.fixture(scope="session")
def tokenizer(texts: dict[str, str]) -> Tokenizer:
    return Tokenizer.train(texts.values(), 400)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Makes a data folder from documents of token ids: source -> shards -> documents."""

    def make(sources: dict[str, list[list[list[int]]]], vocab_size: int = 400) -> Path:
        path = tmp_path / "data"
        (path / "train").mkdir(parents=True)
        entries = {}
        for source, shards in sources.items():
            found = []
            for number, documents in enumerate(shards):
                file = f"train/{source}-{number:05d}.tokens"
                with ShardWriter(path / file, vocab_size) as writer:
                    for document in documents:
                        writer.add(document)
                    header = writer.close()
                digest = header.digest.hex()
                found.append(ShardEntry(file, header.file_bytes, header.tokens, header.documents, digest))
            tokens, documents = sum(s.tokens for s in found), sum(s.documents for s in found)
            entries[source] = SourceEntry(tokens, documents, found)
        tokenizer.save(path / "tokenizer.json")
        Manifest({}, "numbers", vocab_size, 0, tokenizer.digest(), {"train": entries}).write(path)
        return path

    return make
