"""Samples: a pure function of (data, seed, index), all tokens once an epoch, and no damaged file is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import tiny
from folders import EOS, Sources, numbered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import DataConfig, MixtureConfig, Packing, Phase, TrainConfig
from trainer.data import DataError, TokenDataset
from trainer.data.manifest import Manifest
from trainer.data.mixture import kept_phases
from trainer.data.shards import Shard
from trainer.identity import differences, identity, phase_starts
from trainer.samples import IGNORED
from trainer.train import sample_ids

Folder = Callable[..., Path]
SEPARATE = [(Packing.stream, True), (Packing.documents, False), (Packing.documents, True), (Packing.padded, False)]
WAYS = [(Packing.stream, False), *SEPARATE]
property_test = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def opened(path: Path, seq_len: int, seed: int = 0, tokens: int = 1, **fields: Any) -> TokenDataset:
    return TokenDataset(DataConfig(path=str(path), seq_len=seq_len, **fields), seed=seed, tokens=tokens)


def epoch(data: TokenDataset, number: int = 0) -> range:
    """The indices of an epoch of all sources, where they are drawn by size."""
    size = int(data.lengths.sum())
    return range(number * size, (number + 1) * size)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Sources, dict[int, int]]:
    """Sources of documents in which no two tokens are alike, and the document of each token."""
    sources: Sources = {}
    document_of = {}
    token, document = 1, 0
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        shards = draw(st.lists(st.lists(st.integers(0, 8) | st.integers(0, 40), max_size=8), min_size=1, max_size=3))
        sources[name] = []
        for shard in shards:
            sources[name].append([])
            for length in shard:
                sources[name][-1].append(list(range(token, token + length)))
                document_of |= dict.fromkeys(range(token, token + length), document)
                token, document = token + length, document + 1
    return sources, document_of


@given(corpus=corpora(), seq_len=st.integers(1, 24), way=st.sampled_from(WAYS), seed=st.integers(0, 99))
@property_test
def test_every_token_is_predicted_once_an_epoch_and_nothing_beyond_its_document(
    corpus: tuple[Sources, dict[int, int]],
    seq_len: int,
    way: tuple[Packing, bool],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    sources, document_of = corpus
    packing, mask = way
    path = folders.write(tmp_path_factory.mktemp("corpus") / "data", sources, vocab_size=4000)
    try:
        data = opened(path, seq_len, seed, packing=packing, document_mask=mask)
    except DataError:
        longest = max(sum(len(d) for shard in shards for d in shard) for shards in sources.values())
        assert longest <= seq_len if packing is Packing.stream else longest <= 8 * 3 * 40
        return
    learned = []
    for number in (0, 3):
        tokens, targets, documents, source_of = data.batch(epoch(data, number))
        learned.append(sorted(targets[targets != IGNORED].tolist()))
        assert (targets[targets != IGNORED] == tokens[targets != IGNORED] + 1).all()
        assert (documents is not None) == mask
        for i, row in enumerate(tokens):
            name = data.sources[source_of[i]]
            known = [t for t in row.tolist() if t != EOS]
            assert {t for shard in sources[name] for d in shard for t in d} >= set(known)
            if documents is not None:
                owners = [document_of[t] for t in known]
                changes = [0, *(int(a != b) for a, b in pairwise(owners))]
                found = documents[i, : len(known)]
                assert found[0] == 0
                # The last token before padding is padding too, where it predicts nothing.
                end = len(known) - (len(known) < seq_len or targets[i, -1] == IGNORED)
                assert np.diff(found[:end]).astype(bool).tolist() == [bool(c) for c in changes[1:end]]
                assert (np.diff(documents[i]) >= 0).all()
    assert learned[0] == learned[1]
    assert len(set(learned[0])) == len(learned[0])
    assert data.every_token == (way == (Packing.stream, False))
    if packing is Packing.stream and not mask:
        assert len(learned[0]) == len(epoch(data)) * seq_len
    elif packing is not Packing.stream:
        assert learned[0] == [t for t in document_of if document_of.get(t - 1) == document_of[t]]
    else:
        assert all(document_of[t - 1] == document_of[t] for t in learned[0])


@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 40], list(range(1, 60))])
def test_a_sample_may_span_shards(folder: Folder, cuts: list[int]) -> None:
    row = list(range(61))
    shards = [[row[a:b]] for a, b in zip([0, *cuts], [*cuts, 61], strict=True)]
    data = opened(folder({"en": shards}), 5)
    samples = data.batch(range(12))
    assert samples.tokens.dtype == samples.targets.dtype == np.int64
    assert sorted(samples.targets.flatten().tolist()) == list(range(1, 61))
    assert (samples.targets - samples.tokens == 1).all()


def test_no_sample_mixes_sources_and_each_says_its_own(folder: Folder) -> None:
    data = opened(folder({"de": [numbered(50)], "en": [numbered(5, 100)], "zh": [numbered(90, 200)]}), 10)
    assert data.sources == ("de", "zh")  # en is too short for a sample
    assert data.lengths.tolist() == [4, 8]
    samples = data.batch(range(24))
    for row, source in zip(samples.tokens, samples.sources, strict=True):
        assert {"de" if token < 100 else "zh" for token in row} == {data.sources[source]}


@given(
    indices=st.lists(st.integers(0, 10**15), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
    way=st.sampled_from(WAYS),
)
@property_test
def test_a_sample_is_a_pure_function_of_seed_and_index(
    prepared: Path, indices: list[int], seed: int, way: tuple[Packing, bool]
) -> None:
    packing, mask = way
    fields = {"packing": packing, "document_mask": mask, "mixture": MixtureConfig(temperature=3.0)}
    together = opened(prepared, 16, seed, **fields).batch(indices)
    fresh = opened(prepared, 16, seed, **fields)
    for place, index in reversed(list(enumerate(indices))):
        for one, several in zip(fresh.batch([index]), together, strict=True):
            assert (one is None) == (several is None)
            if one is not None and several is not None:
                assert np.array_equal(one[0], several[place])


@given(
    world_size=st.sampled_from([1, 2, 3, 4]),
    micro_batch=st.sampled_from([1, 2, 3, 5]),
    passes=st.integers(1, 3),
    step=st.integers(0, 10**6),
)
@property_test
def test_every_layout_of_ranks_sees_the_same_samples(
    prepared: Path, world_size: int, micro_batch: int, passes: int, step: int
) -> None:
    data = opened(prepared, 16, mixture=MixtureConfig(weights={"*": 1, "en": 3}))
    batch = world_size * micro_batch * passes
    first = step * batch
    parts = [
        data.batch(ids)
        for rank in range(world_size)
        for ids in sample_ids(first, rank, world_size, passes, micro_batch)
    ]
    seen = np.concatenate([np.column_stack([part.sources, part.tokens, part.targets]) for part in parts])
    whole = data.batch(range(first, first + batch))
    expected = np.column_stack([whole.sources, whole.tokens, whole.targets])
    assert sorted(map(bytes, seen)) == sorted(map(bytes, expected))
    assert data.drawn(first, first + batch).tolist() == np.bincount(seen[:, 0], minlength=len(data.sources)).tolist()


@given(first=st.integers(0, 5000), more=st.integers(0, 300), way=st.sampled_from(WAYS))
@property_test
def test_the_account_of_tokens_equals_a_count(prepared: Path, first: int, more: int, way: tuple[Packing, bool]) -> None:
    packing, mask = way
    data = opened(prepared, 16, packing=packing, document_mask=mask, mixture=MixtureConfig(weights={"*": 1, "en": 0.5}))
    sources, numbers = data.locate(range(first, first + more))
    count = len(data.sources)
    assert data.drawn(first, first + more).tolist() == np.bincount(sources, minlength=count).tolist()
    exact = [0] * count
    for source, number in zip(sources.tolist(), numbers.tolist(), strict=True):
        exact[source] += data._sequences.tokens_of(source, np.array([number]))
    assert data.tokens(first, first + more).tolist() == exact
    if packing is Packing.padded:
        assert (data.batch(range(first, first + more)).targets != IGNORED).sum() == sum(exact)


def test_epochs_of_a_small_source_are_told(folder: Folder) -> None:
    data = opened(
        folder({"big": [[[1] * 1001]], "small": [[[2] * 101]]}), 10, mixture=MixtureConfig(weights={"*": 1.0})
    )
    assert data.lengths.tolist() == [100, 10]
    assert data.epochs(0, 2560).tolist() == [12.8, 128.0]


def test_what_one_source_gives_does_not_depend_on_the_others(folder: Folder) -> None:
    path = folder({"de": [numbered(100)], "en": [numbered(200, 100)], "zh": [numbered(90, 300)]})
    orders = []
    for weights in ({"en": 1.0}, {"en": 1.0, "de": 5.0}, {"zh": 1.0, "en": 9.0, "de": 0.1}):
        data = opened(path, 10, mixture=MixtureConfig(weights=weights))
        samples = data.batch(range(300))
        orders.append(samples.tokens[samples.sources == data.sources.index("en")][:30, 0].tolist())
    assert orders[0] == orders[1] == orders[2]


def test_phases_change_the_mixture_where_they_should(folder: Folder) -> None:
    path = folder({"de": [numbered(100)], "en": [numbered(100, 100)], "zh": [numbered(90, 200)]})
    phases = [Phase(until=0.25, weights={"de": 1, "zh": 1}), Phase(until=1.0, weights={"en": 1})]
    data = opened(path, 10, tokens=4000, mixture=MixtureConfig(phases=phases))
    named = [data.sources[source] for source in data.batch(range(1000)).sources]
    assert set(named[:100]) == {"de", "zh"}
    assert set(named[100:]) == {"en"}
    assert data.drawn(0, 400).tolist() == [50, 300, 50]


def identified(path: Path, seq_len: int, seed: int = 0, tokens: int = 1, **fields: Any) -> dict[str, Any]:
    data, train = DataConfig(path=str(path), seq_len=seq_len, **fields), TrainConfig(tokens=tokens, seed=seed)
    return identity(replace(tiny.config(), data=data, train=train), opened(path, seq_len, seed, tokens, **fields))


def halves(*until: float) -> MixtureConfig:
    return MixtureConfig(
        phases=[Phase(until=end, weights={name: 1.0}) for end, name in zip(until, ("en", "de"), strict=True)]
    )


def test_the_identity_names_all_that_samples_depend_on(folder: Folder, prepared: Path, tmp_path: Path) -> None:
    path = folder({"en": [numbered(300)], "de": [numbered(99, 300)]})
    moved = tmp_path / "moved"
    shutil.copytree(path, moved)
    same = identified(path, 8)
    assert json.loads(json.dumps(same)) == same == identified(moved, 8)
    others = {
        "train.seed": identified(path, 8, seed=1),
        "data.seq_len": identified(path, 9),
        "data.fingerprint": identified(prepared, 8),
        "data.packing": identified(path, 8, packing=Packing.documents),
        "data.document_mask": identified(path, 8, document_mask=True),
        "data.mixture.weights": identified(path, 8, mixture=MixtureConfig(weights={"en": 1.0})),
        "data.mixture.temperature": identified(path, 8, mixture=MixtureConfig(temperature=2.0)),
    }
    for field, other in others.items():
        [different] = differences(same, other)
        assert different.field == field
    begun = identified(path, 8, tokens=8000, mixture=halves(0.5, 1.0))
    [moved_phase] = differences(begun, identified(path, 8, tokens=8000, mixture=halves(0.3, 1.0)))
    assert str(moved_phase) == "data.mixture.phases[1].first_sample is 300, was 500"


def test_weights_that_mean_the_same_are_the_same(folder: Folder) -> None:
    path = folder({"en": [numbered(300)], "de": [numbered(99, 300)]})

    def weighted(**weights: float) -> dict[str, Any]:
        return identified(path, 8, mixture=MixtureConfig(weights=weights))

    assert weighted(en=1, de=2.0) == weighted(de=2, en=1.0)
    assert weighted(**{"e*": 1, "*": 2}) != weighted(**{"*": 2, "e*": 1})
    [other] = differences(weighted(en=1, de=2.5), weighted(en=1, de=2))
    assert str(other) == "data.mixture.weights is {de: 2, en: 1}, was {de: 2.5, en: 1}"
    assert other.fix == "'data.mixture.weights={de: 2.5, en: 1}'"


def test_a_run_may_grow_and_its_phases_can_stay_where_they_were(folder: Folder) -> None:
    path = folder({"en": [numbered(300)], "de": [numbered(99, 300)]})
    assert identified(path, 8, tokens=8000) == identified(path, 8, tokens=16000)
    begun = identified(path, 8, tokens=8000, mixture=halves(0.5, 1.0))
    assert phase_starts({"identity": begun}) == [0, 500]
    assert begun != identified(path, 8, tokens=16000, mixture=halves(0.5, 1.0))
    kept = MixtureConfig(phases=kept_phases(halves(0.5, 1.0).phases, [0, 500], 3001))
    assert begun == identified(path, 8, tokens=3001 * 8, mixture=kept)
    short, long = opened(path, 8, tokens=8000, mixture=halves(0.5, 1.0)), opened(path, 8, tokens=24008, mixture=kept)
    assert np.array_equal(short.batch(range(1500)).tokens, long.batch(range(1500)).tokens)


def test_a_mixture_that_the_data_does_not_have_is_refused(folder: Folder) -> None:
    path = folder({"de": [numbered(100)], "en": [numbered(5, 100)]})
    with pytest.raises(DataError, match=r"weights=dee: no such source.* Try: de in place of dee"):
        opened(path, 10, mixture=MixtureConfig(weights={"dee": 1.0}))
    with pytest.raises(DataError, match=r"no source that it draws has more than data\.seq_len=10 tokens"):
        opened(path, 10, mixture=MixtureConfig(weights={"en": 1.0}))


def test_documents_of_one_token_teach_nothing(folder: Folder) -> None:
    with pytest.raises(DataError, match="too short to learn from"):
        opened(folder({"de": [[[1]] * 5]}), 10, packing=Packing.padded)


def test_more_shards_than_a_process_may_have_files_are_read(folder: Folder) -> None:
    shards = [[[n % 400, (n + 1) % 400]] for n in range(600)]
    data = opened(folder({"en": shards}), 3)
    data.batch(epoch(data))
    assert data._sequences._rows[0]._shards.open.cache_info().currsize <= 256


def test_validation_documents_are_apart(prepared: Path) -> None:
    manifest = Manifest.read(prepared)
    seen: dict[str, set[bytes]] = {}
    for split, sources in manifest.splits.items():
        shards = [Shard(prepared / s.file) for entry in sources.values() for s in entry.shards]
        seen[split] = {s.document(i).tobytes() for s in shards for i in range(s.header.documents)}
    assert not seen["train"] & seen["validation"]


def test_a_folder_that_is_not_there_or_not_whole_is_refused(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such folder.*job=prepare"):
        opened(tmp_path / "nowhere", 8)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="holds no prepared data"):
        opened(tmp_path / "other", 8)
    (tmp_path / "other" / "request.json").write_text("{}")
    with pytest.raises(DataError, match="did not finish"):
        opened(tmp_path / "other", 8)
    (tmp_path / "other" / "dataset.json").write_text('{"splits": 3}')
    with pytest.raises(DataError, match="no description of prepared data"):
        opened(tmp_path / "other", 8)
    path = folder({"en": [numbered(100)]})
    with pytest.raises(DataError, match="no split 'test', only train"):
        TokenDataset(DataConfig(path=str(path), seq_len=8), seed=0, tokens=1, split="test")
    with pytest.raises(DataError, match=r"seq_len=100: the largest source .* has 100 tokens"):
        opened(path, 100)
    with pytest.raises(DataError, match="seq_len=0"):
        opened(path, 0)


def test_a_missing_or_cut_shard_is_refused_before_training(folder: Folder) -> None:
    path = folder({"en": [numbered(100), numbered(100, 100)]})
    shard = path / "train" / "en-00001.tokens"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"en-00001\.tokens has .* bytes where its header says"):
        opened(path, 8)
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot read the shard .*en-00001"):
        opened(path, 8)


def test_a_shard_of_other_data_is_refused_before_training(folder: Folder) -> None:
    path = folder({"en": [numbered(100)], "de": [numbered(100, 200)]})
    shutil.copy(path / "train" / "de-00000.tokens", path / "train" / "en-00000.tokens")  # of the same size
    with pytest.raises(DataError, match=r"en-00000\.tokens is not the shard that dataset\.json speaks of"):
        opened(path, 8)


def test_ranks_share_the_looking_and_none_reads_a_shard_of_other_data(folder: Folder) -> None:
    path = folder({"en": [numbered(100)], "de": [numbered(100, 200)]})
    (path / "train" / "de-00000.tokens").write_bytes(b"something else that is not a shard" * 10)
    config = DataConfig(path=str(path), seq_len=8)
    found = TokenDataset(config, seed=0, tokens=1, rank=0, world_size=2)
    with pytest.raises(DataError, match=r"de-00000\.tokens is no token shard"):
        TokenDataset(config, seed=0, tokens=1, rank=1, world_size=2)
    with pytest.raises(DataError, match=r"de-00000\.tokens is no token shard"):
        found.batch(epoch(found))


def test_an_id_that_the_tokenizer_does_not_know_is_refused(folder: Folder) -> None:
    path = folder({"en": [numbered(100)]})
    shard = path / "train" / "en-00000.tokens"
    raw = bytearray(shard.read_bytes())
    raw[64 + 2 * 50 : 64 + 2 * 51] = (40_000).to_bytes(2, "little")
    shard.write_bytes(raw)
    data = opened(path, 8)
    with pytest.raises(DataError, match=r"en-00000\.tokens holds token id 40000, and the tokenizer has 400 ids"):
        data.batch(epoch(data))


def test_a_changed_dataset_json_is_refused(folder: Folder) -> None:
    file = folder({"en": [numbered(100)]}) / "dataset.json"
    file.write_text(file.read_text().replace('"vocab_size": 400', '"vocab_size": 500'))
    with pytest.raises(DataError, match="changed by hand"):
        opened(file.parent, 8)
