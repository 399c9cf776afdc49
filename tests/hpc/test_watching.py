"""A training run on this machine, looked into and got going again: ``hpc profile``, and a rank that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import ledger
from hpc.cli.profile import profile
from hpc.errors import Failed, Refused
from hpc.runs import READY, Run
from hpc.waiting import wait
from monitoring.layout import rank_log
from monitoring.tail import last_step
from tests.hpc.conftest import processes

Start = Callable[..., Run]
TEXTS = Path(__file__).parents[1] / "trainer" / "data" / "texts"
DATA = ["data=files", f"data.corpus.files=[{TEXTS}/*/*.txt]", "data.corpus.vocab_size=300", "data.seq_len=32"]
MODEL = [
    *("model.vocab_size=300", "model.d_model=32", "model.layers=2", "model.d_ff=64"),
    *("model.moe.experts=4", "model.moe.d_ff=32", "parallel.micro_batch=4", "train.batch_tokens=1024"),
    *("train.sample_tokens=2", "optim.warmup_tokens=0", "job.ranks_per_node=2"),
]


def until(condition: Callable[[], object], patience: float = 120) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def trains(run: Run, attempt: int, step: int) -> Callable[[], bool]:
    folder = ledger.folder(run, attempt)
    return lambda: folder.exists() and (last_step(folder) or 0) >= step


def hpc(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=200, env=os.environ
    )


def test_a_running_run_is_profiled_and_a_rank_that_hangs_is_found_and_the_ranks_start_again(start: Start) -> None:
    assert wait(start("job=prepare", *DATA), quiet=True) == 0
    watch = ["train.watch.hang_seconds=4", "train.watch.hang_factor=4"]
    run = start(*DATA, *MODEL, *watch, "train.tokens=1000000000", "train.checkpoint.every_steps=20")
    until(trains(run, 0, 3))

    done = hpc("profile", run.id, "--steps", "2", "--rank", "1", "--json")
    assert done.returncode == 0, done.stderr + run.log.read_text()
    found = json.loads(done.stdout)
    assert (found["last_step"] - found["first_step"], found["rank"]) == (1, 1)
    assert Path(found["trace"]).stat().st_size > 1000
    table = hpc("profile", "last")
    assert table.returncode == 0 and "rank 0: time spent in each operator" in table.stdout, table.stderr
    assert "aten::" in table.stdout and table.stdout.splitlines()[-1].endswith(".json.gz")
    for words in (["--steps", "0"], ["--rank", "2"], ["--rank", "-1"]):
        refused = hpc("profile", "last", *words)
        assert refused.returncode == 2 and words[0] in refused.stderr

    until(trains(run, 0, 21))
    rank_1 = next(p for p in processes(run) if p.environ().get("HPC_RANK") == "1" and "_submit" in str(p.cmdline()))
    rank_1.send_signal(signal.SIGSTOP)
    with pytest.raises(Failed, match="no step"):
        profile(run, steps=1, rank=0, patience=1.0)
    until(trains(run, 1, 22))
    first = ledger.history(run)[0]
    assert (first.cause, first.exit_code, first.action) == ("hang", 75, "restart")
    assert "HangError: a step did not end within" in first.evidence
    assert "most recent call first" in (ledger.folder(run, 0) / "hang-rank-0.txt").read_text()
    assert "resumed from the checkpoint of step" in rank_log(ledger.folder(run, 1), 0).read_text()

    assert hpc("cancel", run.id).returncode == 0
    assert wait(run, quiet=True) == 1
    ended = hpc("profile", run.id)
    assert ended.returncode == 2 and "has ended already: cancelled" in ended.stderr
    until(lambda: processes(run) == [])


def test_what_does_not_train_is_not_profiled(start: Start) -> None:
    run = start("job=hello", "job.seconds=30")
    with pytest.raises(Refused, match="trains nothing"):
        profile(run, steps=1, rank=0, patience=1)
    until(lambda: (ledger.folder(run, 0) / READY).exists())
