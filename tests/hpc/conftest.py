"""A private place for runs, and the command as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpc.runs import Run
from trainer.data.manifest import Manifest, ShardEntry, SourceEntry
from trainer.data.shards import ShardWriter


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder and home of a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of prepared data from so many tokens of each source, nought after nought."""

    def split(path: Path, name: str, sources: dict[str, int], vocab_size: int) -> dict[str, SourceEntry]:
        (path / name).mkdir(parents=True)
        found = {}
        for source, tokens in sources.items():
            file = f"{name}/{source}-00000.tokens"
            with ShardWriter(path / file, vocab_size) as writer:
                writer.add([0] * tokens)
                head = writer.close()
            entry = ShardEntry(file, head.file_bytes, head.tokens, head.documents, head.digest.hex())
            found[source] = SourceEntry(tokens, 1, [entry])
        return found

    def make(train: dict[str, int], *, vocab_size: int = 400, name: str = "made") -> Path:
        path = tmp_path / name
        splits = {"train": split(path, "train", train, vocab_size), "validation": {}}
        (path / "tokenizer.json").write_text("{}")
        Manifest({}, "nought", vocab_size, 0, "digest", splits).write(path)
        return path

    return make


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., Run]]:
    """Submit to this machine; whatever still runs at the end of the test is ended by pid."""
    started: list[Run] = []

    def submit(*overrides: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "hpc", "submit", "--json", *overrides],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
            timeout=60,
        )
        started.append(Run(Path(json.loads(done.stdout)["folder"])))
        return started[-1]

    yield submit
    for run in started:
        for process in processes(run):
            process.kill()


def processes(run: Run) -> list[psutil.Process]:
    """The supervisor and the ranks of a run that still live."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(run.folder) in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def everything(folder: Path) -> list[str]:
    """Every path below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
