"""Preparing: the same text gives the same bytes, a killed beginning is finished, and nothing is written over."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config import CorpusConfig, DataConfig
from trainer.data import DataError, TokenDataset, Tokenizer
from trainer.data import prepare as preparing
from trainer.data.manifest import Manifest
from trainer.data.prepare import prepare
from trainer.data.shards import Shard

ROOT = Path(__file__).parents[3]


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def quiet(line: str) -> None:
    pass


def dataset(path: Path) -> TokenDataset:
    return TokenDataset(DataConfig(path=str(path), seq_len=16), seed=0, tokens=1)


def test_all_documents_come_back_from_the_shards(prepared: Path, texts: dict[str, str]) -> None:
    manifest, tokenizer = Manifest.read(prepared), Tokenizer.load(prepared / "tokenizer.json")
    found = set()
    for sources in manifest.splits.values():
        for source, entry in sources.items():
            for described in entry.shards:
                shard = Shard(prepared / described.file)
                shard.verify()
                for i in range(shard.header.documents):
                    *ids, last = shard.document(i).tolist()
                    assert last == tokenizer.eos
                    found.add((source, tokenizer.decode(ids)))
    assert found == {(name.split("/")[0], text.strip()) for name, text in texts.items()}


def test_tokens_are_counted_by_source_and_split(prepared: Path) -> None:
    manifest = Manifest.read(prepared)
    for split, sources in manifest.splits.items():
        for entry in sources.values():
            headers = [Shard(prepared / shard.file).header for shard in entry.shards]
            assert entry.tokens == sum(header.tokens for header in headers)
            assert entry.documents == sum(header.documents for header in headers)
        assert manifest.tokens(split) == sum(entry.tokens for entry in sources.values())


def test_the_same_text_gives_the_same_bytes(tmp_path: Path, corpus: CorpusConfig) -> None:
    first = prepare(tmp_path / "a", corpus, tmp_path, quiet)
    second = prepare(tmp_path / "b", corpus, tmp_path, quiet)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert first.fingerprint == second.fingerprint == Manifest.read(tmp_path / "a").fingerprint
    assert first.tokens("validation") > 0


def test_prepared_data_is_not_made_again(tmp_path: Path, corpus: CorpusConfig) -> None:
    prepare(tmp_path / "a", corpus, tmp_path, quiet)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "a").rglob("*")}
    said: list[str] = []
    assert prepare(tmp_path / "a", corpus, tmp_path, said.append) == Manifest.read(tmp_path / "a")
    assert len(said) == 1
    assert "prepared already" in said[0]
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "a").rglob("*")} == before


def test_data_that_lost_a_shard_is_made_again(tmp_path: Path, corpus: CorpusConfig) -> None:
    prepare(tmp_path / "a", corpus, tmp_path, quiet)
    before = digests(tmp_path / "a")
    next((tmp_path / "a" / "train").glob("*.tokens")).unlink()
    prepare(tmp_path / "a", corpus, tmp_path, quiet)
    assert digests(tmp_path / "a") == before


def test_big_sources_are_cut_into_shards_and_read_as_one(
    tmp_path: Path, corpus: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "one", replace(corpus, validation_share=0.0), tmp_path, quiet)
    monkeypatch.setattr(preparing, "SHARD_TOKENS", 100)
    manifest = prepare(tmp_path / "many", replace(corpus, validation_share=0.0), tmp_path, quiet)
    assert len(manifest.splits["train"]["en"].shards) == 2
    one, many = (dataset(tmp_path / name) for name in ("one", "many"))
    indices = range(2 * int(one.lengths.sum()))
    assert one.batch(indices).tokens.tolist() == many.batch(indices).tokens.tolist()


def test_another_request_for_the_same_folder_is_refused(tmp_path: Path, corpus: CorpusConfig) -> None:
    other = replace(corpus, vocab_size=300)
    prepare(tmp_path / "a", corpus, tmp_path, quiet)
    before = digests(tmp_path / "a")
    with pytest.raises(DataError, match=r"vocab_size=400 \(wanted: 300\).*data\.path="):
        prepare(tmp_path / "a", other, tmp_path, quiet)
    assert digests(tmp_path / "a") == before
    (tmp_path / "a" / "dataset.json").unlink()  # now it is an unfinished one
    with pytest.raises(DataError, match=r"vocab_size=400 \(wanted: 300\)"):
        prepare(tmp_path / "a", other, tmp_path, quiet)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, corpus: CorpusConfig) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(DataError, match=r"thesis holds other things"):
        prepare(tmp_path / "thesis", corpus, tmp_path, quiet)
    assert [entry.name for entry in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(tmp_path: Path, corpus: CorpusConfig, share: float) -> None:
    with pytest.raises(DataError, match="validation_share"):
        prepare(tmp_path / "a", replace(corpus, validation_share=share), tmp_path, quiet)
    assert not (tmp_path / "a").exists()


DIES = """
import os, signal, sys
from pathlib import Path
from trainer.config import CorpusConfig, CorpusSource
from trainer.data.prepare import prepare

left = int(sys.argv[3])
replace = Path.replace
def dying(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return replace(self, target)
Path.replace = dying
corpus = CorpusConfig(CorpusSource.files, [sys.argv[2]], vocab_size=400, validation_share=0.2)
prepare(Path(sys.argv[1]), corpus, Path(sys.argv[1]).parent)
"""


def start(code: str, *argv: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *argv], env=environment, stdout=subprocess.PIPE)


def test_killed_before_any_file_it_is_finished_by_the_next_call(tmp_path: Path, corpus: CorpusConfig) -> None:
    whole = prepare(tmp_path / "whole", corpus, tmp_path, quiet)
    files = len(whole.shards()) + 3  # request, tokenizer, shards, dataset.json
    for left in (0, 1, 2, 3, files // 2, files - 1):
        path = tmp_path / f"killed-{left}"
        child = start(DIES, str(path), corpus.files[0], str(left))
        assert child.wait(timeout=60) == -signal.SIGKILL
        with pytest.raises(DataError, match=r"did not finish|holds no prepared data"):
            dataset(path)
        assert prepare(path, corpus, tmp_path, quiet).fingerprint == whole.fingerprint
        assert digests(path) == digests(tmp_path / "whole")  # leftovers are gone


def test_killed_at_any_moment_it_is_never_taken_for_whole(tmp_path: Path, corpus: CorpusConfig) -> None:
    whole = prepare(tmp_path / "whole", corpus, tmp_path, quiet)
    path = tmp_path / "killed"
    for tenths in range(1, 8):
        child = start(DIES, str(path), corpus.files[0], "1000")
        time.sleep(tenths / 10)
        child.kill()
        child.wait()
        try:
            assert Manifest.read(path).fingerprint == whole.fingerprint
        except DataError:
            assert not (path / "dataset.json").exists()
    assert prepare(path, corpus, tmp_path, quiet).fingerprint == whole.fingerprint
    assert digests(path) == digests(tmp_path / "whole")


def test_what_is_left_of_other_documents_does_not_stay(tmp_path: Path, corpus: CorpusConfig) -> None:
    """The texts changed between the attempt that died and the next one."""
    path = tmp_path / "data"
    prepare(path, corpus, tmp_path, quiet)
    (path / "dataset.json").unlink()
    stranger = path / "train" / "xx-00000.tokens"
    stranger.write_bytes(b"of an earlier attempt")
    prepare(path, corpus, tmp_path, quiet)
    assert not stranger.exists()
    assert json.loads((path / "dataset.json").read_text())["vocab_size"] == 400
