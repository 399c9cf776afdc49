"""A small text in many scripts, made for these tests, and data folders prepared from it or from numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folders
import pytest

from trainer.config import CorpusConfig, CorpusSource
from trainer.data.prepare import prepare
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
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a data folder from token ids, see ``folders.write``."""
    return lambda *splits, **more: folders.write(tmp_path / "data", *splits, **more)
