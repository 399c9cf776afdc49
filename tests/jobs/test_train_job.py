"""job=train as ranks run it: fresh processes, a run folder, prepared data, signals; from the start to FINISHED."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpc import attempt
from hpc.compose import compose
from hpc.runs import DIVERGED, READY, REFUSED, Run, read_json
from monitoring import layout
from trainer.config import CorpusConfig, CorpusSource
from trainer.data.prepare import prepare

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "tests" / "trainer" / "data" / "texts"
PATIENCE = 90.0
RANKS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    corpus = CorpusConfig(source=CorpusSource.files, files=[f"{TEXTS}/*/*.txt"], vocab_size=400)
    prepare(folder / "texts", corpus, folder / "cache", lambda line: None)
    return folder / "texts"


def new_run(folder: Path, data: Path, *overrides: str) -> Run:
    config = compose(
        [
            "data=files",
            f"data.path={data}",
            "data.corpus.vocab_size=400",
            "data.seq_len=32",
            "model.d_model=32",
            "model.layers=2",
            "model.d_ff=64",
            "model.moe.experts=4",
            "model.moe.d_ff=32",
            "parallel.micro_batch=2",
            "train.batch_tokens=256",
            "train.tokens=7680",
            "train.sample_tokens=8",
            "train.sample_prompt=Debian GNU",
            "train.checkpoint.every_steps=10",
            "optim.warmup_tokens=512",
            *overrides,
        ]
    )
    run = Run(folder)
    run.folder.mkdir(parents=True)
    run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return run


@dataclass
class Attempt:
    """All ranks of one attempt, started as the supervisor starts them where there is no Slurm."""

    run: Run
    number: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.run.attempts / str(self.number)

    def start(self) -> Attempt:
        self.folder.mkdir(parents=True)
        common = {
            attempt.RUN: str(self.run.folder),
            attempt.ATTEMPT: str(self.number),
            attempt.JOB_ID: "1",
            attempt.RANKS_PER_NODE: str(RANKS),
            attempt.WORLD_SIZE: str(RANKS),
            attempt.NODE: "here",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        entry = f"from hpc.attempt import start; start({str(self.run.folder)!r})"
        for rank in range(RANKS):
            mine = {attempt.RANK: str(rank), attempt.LOCAL_RANK: str(rank)}
            with layout.rank_log(self.folder, rank).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", entry],
                        env={**os.environ, **common, **mine},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        return self

    def wait(self) -> list[int]:
        """Exit statuses by rank."""
        end = time.monotonic() + PATIENCE
        return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.log()
            assert any(process.poll() is None for process in self.processes), self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def records(self, rank: int = 0) -> list[dict]:
        path = layout.rank_records(self.folder, rank)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def losses(self) -> dict[int, float]:
        return {record["step"]: record["loss"] for record in self.records() if record["kind"] == "step"}

    def steps(self) -> int:
        """Steps done by now. The log has them at once, the records half a second later, when all may be done."""
        path = layout.rank_log(self.folder, 0)
        return path.read_text().count("] step ") if path.exists() else 0

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("rank-*.log")))


@pytest.fixture
def begin() -> Iterator[Callable[[Run, int], Attempt]]:
    """Starts attempts, and ends what is left of them."""
    begun: list[Attempt] = []

    def start(run: Run, number: int) -> Attempt:
        begun.append(Attempt(run, number))
        return begun[-1].start()

    yield start
    for each in begun:
        each.kill()


def test_a_run_signalled_and_killed_ends_as_the_uninterrupted_one(
    begin: Callable[[Run, int], Attempt], tmp_path: Path, data: Path
) -> None:
    whole = begin(new_run(tmp_path / "whole", data), 1)
    assert whole.wait() == [0, 0], whole.log()
    finished = read_json(whole.run.finished_file)
    assert finished is not None
    assert (finished["step"], finished["tokens"]) == (30, 7680)
    assert finished["loss_last"] < finished["loss_first"]
    assert finished["tokens_per_s"] > 0
    assert sum(source["tokens"] for source in finished["by_source"].values()) == 7680
    assert whole.run.sample.read_text().startswith("Debian GNU")
    assert (whole.folder / READY).exists()
    kinds = [record["event"] for record in whole.records() if record["kind"] == "event"]
    assert kinds == ["started", *["sources", "checkpoint_begin", "checkpoint"] * 3, "finished"]
    assert list(whole.losses()) == list(range(1, 31))

    run = new_run(tmp_path / "parts", data)
    signalled = begin(run, 1)
    signalled.until(lambda: signalled.steps() >= 3)
    signalled.processes[1].send_signal(signal.SIGUSR2)  # one rank alone is told
    assert signalled.wait() == [0, 0], signalled.log()
    assert not run.finished
    stopped = signalled.records()[-1]
    assert (stopped["event"], stopped["reason"]) == ("stopped", "SIGUSR2")
    saved = len(signalled.losses())
    assert (run.checkpoints / f"step-{saved}" / "COMPLETE").exists()

    killed = begin(run, 2)
    killed.until(lambda: killed.steps() >= 10)  # at least one checkpoint
    killed.kill()
    last = begin(run, 3)
    assert last.wait() == [0, 0], last.log()
    assert run.finished
    assert {**signalled.losses(), **killed.losses(), **last.losses()} == whole.losses()
    again = read_json(run.finished_file)
    assert again is not None
    assert (again["loss_first"], again["by_source"]) == (finished["loss_first"], finished["by_source"])
    assert run.sample.read_text() == whole.run.sample.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=300", "has 400 token ids. Try: model.vocab_size=400"),
        ("train.batch_tokens=300", "must be a multiple of data.seq_len x parallel.micro_batch x ranks"),
        ("data.path=/nowhere", "/nowhere"),
        ("cluster=noctua2", "train.device=auto: this process sees no GPU"),  # which Slurm was asked for
    ],
)
def test_a_mistake_is_refused_before_anything_is_built(
    begin: Callable[[Run, int], Attempt], tmp_path: Path, data: Path, override: str, message: str
) -> None:
    refused = begin(new_run(tmp_path / "run", data, override), 1)
    assert refused.wait() == [2, 2], refused.log()
    assert message in (refused.folder / REFUSED).read_text()
    assert "Traceback" not in refused.log()
    assert not refused.run.checkpoints.exists()


def test_a_training_that_cannot_go_on_says_so_and_is_not_tried_again(
    begin: Callable[[Run, int], Attempt], tmp_path: Path, data: Path
) -> None:
    overrides = ("optim.lr=1e30", "optim.clip=0", "optim.warmup_tokens=0", "train.watch.skip_non_finite=1")
    diverged = begin(new_run(tmp_path / "run", data, *overrides), 1)
    assert diverged.wait() == [1, 1], diverged.log()
    assert "the gradient norm nan, after 1 such steps" in (diverged.folder / DIVERGED).read_text()
    assert "Traceback" not in diverged.log()


def test_a_damaged_shard_ends_the_run_with_one_clear_message(
    begin: Callable[[Run, int], Attempt], tmp_path: Path, data: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    for shard in (tmp_path / "data" / "train").glob("*.tokens"):
        content = bytearray(shard.read_bytes())
        content[45] ^= 1
        shard.write_bytes(content)
    failed = begin(new_run(tmp_path / "run", tmp_path / "data"), 1)
    assert failed.wait() == [2, 2], failed.log()
    assert "has a damaged header. Make the data again" in failed.log()
    assert "Traceback" not in failed.log()
    assert (failed.folder / REFUSED).exists()
