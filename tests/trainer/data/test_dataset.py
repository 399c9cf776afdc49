"""Samples: a pure function of (data, seed, index), all tokens once an epoch, and no damaged file is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data import DataError, TokenDataset
from trainer.data.manifest import Manifest
from trainer.data.shards import Shard

Folder = Callable[..., Path]


def numbered(tokens: int, start: int = 0, length: int = 7) -> list[list[int]]:
    """Documents of ``length`` ids that count up, so that each token tells its place."""
    row = list(range(start, start + tokens))
    return [row[i : i + length] for i in range(0, tokens, length)]


@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 40], list(range(1, 60))])
def test_every_token_of_an_epoch_is_predicted_once(folder: Folder, cuts: list[int]) -> None:
    row = list(range(61))
    shards = [[row[a:b]] for a, b in zip([0, *cuts], [*cuts, 61], strict=True)]
    data = TokenDataset(folder({"en": shards}), seq_len=5, seed=1)
    assert data.samples_per_epoch == 12
    for epoch in (0, 1, 77):
        samples = data.batch(range(12 * epoch, 12 * (epoch + 1)))
        assert samples.dtype == np.int64
        assert samples.shape == (12, 6)
        assert sorted(samples[:, 1:].flatten().tolist()) == list(range(1, 61))
        assert (np.diff(samples) == 1).all()  # also where a sample spans shards


def test_no_sample_mixes_sources_and_each_says_its_own(folder: Folder) -> None:
    data = TokenDataset(folder({"de": [numbered(50)], "en": [numbered(5, 100)], "zh": [numbered(90, 200)]}), 10, 0)
    assert data.sources == ("de", "zh")  # en is too short for a sample
    assert data.samples_per_epoch == 4 + 8
    for index in range(24):
        assert {"de" if token < 100 else "zh" for token in data.tokens(index)} == {data.source(index)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(indices=st.lists(st.integers(0, 10**15), min_size=1, max_size=20), seed=st.integers(0, 2**32))
def test_a_sample_is_a_pure_function_of_seed_and_index(prepared: Path, indices: list[int], seed: int) -> None:
    data = TokenDataset(prepared, 16, seed)
    together = data.batch(indices)
    fresh = TokenDataset(prepared, 16, seed)
    for index, sample in zip(reversed(indices), reversed(together), strict=True):
        assert fresh.tokens(index).tolist() == sample.tolist()


def test_the_fingerprint_tells_all_that_samples_depend_on(folder: Folder, prepared: Path, tmp_path: Path) -> None:
    path = folder({"en": [numbered(300)]})
    data = TokenDataset(path, 8, 0)
    moved = tmp_path / "moved"
    shutil.copytree(path, moved)
    assert TokenDataset(moved, 8, 0).fingerprint == data.fingerprint
    others = [TokenDataset(path, 8, 1), TokenDataset(path, 9, 0), TokenDataset(prepared, 8, 0)]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_more_shards_than_a_process_may_have_files_are_read(folder: Folder) -> None:
    shards = [[[n % 400, (n + 1) % 400]] for n in range(1500)]
    data = TokenDataset(folder({"en": shards}), 3, 0)
    data.batch(range(data.samples_per_epoch))
    assert len(data._open) <= 256


def test_validation_documents_are_apart(prepared: Path) -> None:
    manifest = Manifest.read(prepared)
    seen: dict[str, set[bytes]] = {}
    for split, sources in manifest.splits.items():
        shards = [Shard(prepared / s.file) for entry in sources.values() for s in entry.shards]
        seen[split] = {s.document(i).tobytes() for s in shards for i in range(s.header.documents)}
    assert not seen["train"] & seen["validation"]


def test_a_folder_that_is_not_there_or_not_whole_is_refused(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such folder.*job=prepare"):
        TokenDataset(tmp_path / "nowhere", 8, 0)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="holds no prepared data"):
        TokenDataset(tmp_path / "other", 8, 0)
    (tmp_path / "other" / "request.json").write_text("{}")
    with pytest.raises(DataError, match="did not finish"):
        TokenDataset(tmp_path / "other", 8, 0)
    (tmp_path / "other" / "dataset.json").write_text('{"splits": 3}')
    with pytest.raises(DataError, match="no description of prepared data"):
        TokenDataset(tmp_path / "other", 8, 0)
    path = folder({"en": [numbered(100)]})
    with pytest.raises(DataError, match="no split 'test', only train"):
        TokenDataset(path, 8, 0, split="test")
    with pytest.raises(DataError, match=r"seq_len=100: the largest source .* has 100 tokens"):
        TokenDataset(path, 100, 0)
    with pytest.raises(DataError, match="seq_len=0"):
        TokenDataset(path, 0, 0)


def test_a_missing_or_cut_shard_is_refused_before_training(folder: Folder) -> None:
    path = folder({"en": [numbered(100), numbered(100, 100)]})
    shard = path / "train" / "en-00001.tokens"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"en-00001\.tokens has .* bytes where dataset\.json says"):
        TokenDataset(path, 8, 0)
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot read the shard .*en-00001"):
        TokenDataset(path, 8, 0)


def test_a_shard_of_other_data_is_refused_when_it_is_read(folder: Folder) -> None:
    path = folder({"en": [numbered(100)], "de": [numbered(100, 200)]})
    shutil.copy(path / "train" / "de-00000.tokens", path / "train" / "en-00000.tokens")  # of the same size
    data = TokenDataset(path, 8, 0)
    with pytest.raises(DataError, match=r"en-00000\.tokens is not the shard that dataset\.json speaks of"):
        data.batch(range(data.samples_per_epoch))


def test_an_id_that_the_tokenizer_does_not_know_is_refused(folder: Folder) -> None:
    path = folder({"en": [numbered(100)]})
    shard = path / "train" / "en-00000.tokens"
    raw = bytearray(shard.read_bytes())
    raw[64 + 2 * 50 : 64 + 2 * 51] = (40_000).to_bytes(2, "little")
    shard.write_bytes(raw)
    data = TokenDataset(path, 8, 0)
    with pytest.raises(DataError, match="token id 40000, and the tokenizer has 400 ids"):
        data.batch(range(data.samples_per_epoch))


def test_a_changed_dataset_json_is_refused(folder: Folder) -> None:
    file = folder({"en": [numbered(100)]}) / "dataset.json"
    file.write_text(file.read_text().replace('"vocab_size": 400', '"vocab_size": 500'))
    with pytest.raises(DataError, match="changed by hand"):
        TokenDataset(file.parent, 8, 0)
