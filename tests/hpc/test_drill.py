"""Faults that a person brings into a run on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import ledger
from hpc.runs import Run
from hpc.waiting import wait
from monitoring.tail import last_step

Start = Callable[..., Run]
TEXT = Path(__file__).resolve().parent.parent / "trainer" / "data" / "texts"
SHAPE = [
    "data=files",
    f"data.corpus.files=[{TEXT}/*/*.txt]",
    "data.corpus.vocab_size=512",
    "data.seq_len=64",
    "model.vocab_size=512",
    "model.d_model=64",
    "model.layers=2",
    "model.d_ff=128",
    "model.moe.d_ff=64",
    "train.batch_tokens=2048",
    "parallel.micro_batch=4",
    "train.checkpoint.every_steps=10",
    "train.sample_tokens=2",
    "train.watch.hang_seconds=4",
    "train.watch.hang_factor=2",
]


def drill(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpc", "drill", *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def training(start: Start, here: Path) -> Iterator[Run]:
    assert wait(start("job=prepare", *(word for word in SHAPE if word.startswith("data"))), quiet=True) == 0
    run = start(*SHAPE, f"train.tokens={2048 * 4000}")
    end = time.monotonic() + 60
    while (last_step(ledger.folder(run, 0)) or 0) < 15:
        assert time.monotonic() < end
        time.sleep(0.1)
    yield run
    subprocess.run([sys.executable, "-m", "hpc", "cancel", "--now", run.id], timeout=60, check=False)


def test_a_run_survives_the_drills_of_this_machine_and_others_are_refused_in_words(training: Run) -> None:
    for words, said in (
        (("timeout", training.id), "has no Slurm"),
        (("kill-rank", training.id, "--rank", "7"), "ranks 0 to 1"),
        (("node-failure", training.id), "only on an emulated cluster"),
    ):
        done = drill(*words)
        assert done.returncode == 2
        assert said in done.stderr
    assert len(ledger.history(training)) == 1
    for fault, cause in (("kill-rank", "crash"), ("hang", "hang")):
        done = drill(fault, training.id, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["cause"] == cause, told
        assert 0 < told["ended_s"] <= told["began_s"] <= told["step_s"]
    assert [record.action for record in ledger.history(training)[:2]] == ["restart", "restart"]


def test_out_of_memory_is_survived_with_a_smaller_micro_batch(training: Run) -> None:
    done = drill("oom", training.id, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    first = ledger.history(training)[0]
    assert first.cause == "host_memory", first
    assert first.changed == {"parallel.micro_batch": [4, 2]}
    assert training.config().parallel.micro_batch == 2
    assert "parallel.micro_batch=2" in training.overrides_file.read_text()
