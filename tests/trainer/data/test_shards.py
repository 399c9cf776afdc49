"""A shard gives back its documents, and refuses to be read when it is not what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.files import DataError
from trainer.data.shards import HEADER_BYTES, Shard, ShardWriter, bytes_per_token


def write(path: Path, documents: list[list[int]], vocab_size: int = 1000) -> Path:
    with ShardWriter(path, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return path


@st.composite
def vocabularies_and_documents(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    vocab_size = draw(st.sampled_from([1, 257, 1 << 16, (1 << 16) + 1, 1 << 32]))
    ids = st.integers(0, vocab_size - 1)
    return vocab_size, draw(st.lists(st.lists(ids, max_size=12), max_size=8))


@given(case=vocabularies_and_documents())
def test_documents_come_back_as_they_were_written(
    case: tuple[int, list[list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    vocab_size, documents = case
    shard = Shard(write(tmp_path_factory.mktemp("shard") / "s.tokens", documents, vocab_size))
    assert [shard.document(i).tolist() for i in range(shard.header.documents)] == documents
    assert shard.tokens.tolist() == [token for document in documents for token in document]
    assert shard.tokens.itemsize == bytes_per_token(vocab_size)
    assert shard.header.largest == max(shard.tokens.tolist(), default=0)
    shard.verify()


@pytest.mark.parametrize("vocab_size", [100, 1 << 17])
def test_a_file_cut_anywhere_or_grown_is_refused(tmp_path: Path, vocab_size: int) -> None:
    whole = write(tmp_path / "s.tokens", [[1, 2, 3], [4], []], vocab_size).read_bytes()
    path = tmp_path / "broken.tokens"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"broken\.tokens"):
            Shard(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DataError, match="cut or written over"):
        Shard(path)


def test_every_flipped_bit_is_found_by_verify_at_the_latest(tmp_path: Path) -> None:
    whole = write(tmp_path / "s.tokens", [[1, 2, 3], [4]]).read_bytes()
    path = tmp_path / "flipped.tokens"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError):
            Shard(path).verify()


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(np.arange(200, dtype=np.uint16).tobytes())
    with pytest.raises(DataError, match=r"model\.bin is no token shard"):
        Shard(path)
    with pytest.raises(DataError, match="absent"):
        Shard(tmp_path / "absent")


def test_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tokens", [[1]])
    raw = bytearray(path.read_bytes())
    raw[8] = 9
    path.write_bytes(raw)
    with pytest.raises(DataError, match="version 9, and only 1"):
        Shard(path)


@pytest.mark.parametrize("wrong", [-1, 1000, 70000])
def test_an_id_outside_of_the_vocabulary_is_never_written(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(DataError, match=str(wrong)):
        write(tmp_path / "s.tokens", [[1, 2], [wrong]])
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_under_the_name_until_the_shard_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.tokens"
    writer = ShardWriter(path, 10)
    writer.add([1, 2, 3])
    assert not path.exists()
    writer.close()
    assert path.stat().st_size == writer_size(3, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.tokens"]


def writer_size(tokens: int, documents: int) -> int:
    return HEADER_BYTES + -(-tokens * 2 // 8) * 8 + 8 * (documents + 1)
