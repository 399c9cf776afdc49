"""Validation reads the same sequences of every source each time, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import numbered

from trainer.config import DataConfig, MixtureConfig, Packing
from trainer.data import DataError, ValidationSet
from trainer.samples import IGNORED

Folder = Callable[..., Path]
TRAIN = {"de": [numbered(50)], "en": [numbered(50)], "zh": [numbered(50)]}
VALIDATION = {"de": [numbered(300)], "en": [numbered(25, 300)], "zh": [numbered(6, 350)]}


def opened(path: Path, samples: int, **fields: Any) -> ValidationSet:
    return ValidationSet(DataConfig(path=str(path), seq_len=10, **fields), samples)


def test_samples_are_shared_out_evenly_over_sources(folder: Folder) -> None:
    data = opened(folder(TRAIN, VALIDATION), 9)
    assert data.sources == ("de", "en", "zh")
    samples = data.batch(range(len(data)))
    assert np.bincount(samples.sources).tolist() == [3, 2, 1]  # en and zh have no more
    assert len(np.unique(samples.tokens, axis=0)) == 6


def test_every_source_has_a_sample_however_few_are_asked_for(folder: Folder) -> None:
    data = opened(folder(TRAIN, VALIDATION), 1)
    assert sorted(data.batch(range(len(data))).sources.tolist()) == [0, 1, 2]


def test_a_source_that_is_too_small_for_a_sequence_is_padded(folder: Folder) -> None:
    data = opened(folder(TRAIN, VALIDATION), 3)
    tokens, targets, documents, sources = data.batch(range(len(data)))
    zh = sources.tolist().index(2)
    assert tokens[zh, :5].tolist() == [350, 351, 352, 353, 354]
    assert targets[zh].tolist() == [351, 352, 353, 354, 355] + [IGNORED] * 5
    assert (targets[sources != 2] != IGNORED).all()
    assert documents is None


@pytest.mark.parametrize("packing", list(Packing))
def test_it_is_the_same_each_time_and_in_any_shares(folder: Folder, packing: Packing) -> None:
    path = folder(TRAIN, VALIDATION)
    whole = opened(path, 12, packing=packing).batch(range(16))
    again = opened(path, 12, packing=packing)
    parts = [again.batch(range(i, i + 4)) for i in range(0, 16, 4)]
    assert np.concatenate([part.tokens for part in parts]).tolist() == whole.tokens.tolist()
    assert np.concatenate([part.targets for part in parts]).tolist() == whole.targets.tolist()


def test_beyond_its_end_nothing_is_learned(folder: Folder) -> None:
    data = opened(folder(TRAIN, VALIDATION), 3)
    samples = data.batch(range(7))
    valid = (samples.targets != IGNORED).any(axis=1)
    assert valid.tolist() == [True] * len(data) + [False] * (7 - len(data))


def test_only_what_is_trained_on_is_validated_on(folder: Folder) -> None:
    path = folder({**TRAIN, "fr": [numbered(50)]}, VALIDATION)
    mixture = MixtureConfig(weights={"d*": 1.0, "fr": 1.0})
    assert opened(path, 8, mixture=mixture).sources == ("de",)


def test_data_without_validation_documents_is_refused(folder: Folder) -> None:
    with pytest.raises(DataError, match=r"no documents to validate on.*data\.corpus\.validation_share"):
        opened(folder(TRAIN, {}), 8)
