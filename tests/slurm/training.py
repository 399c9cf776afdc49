"""Training runs on an emulated cluster, submitted as a person would, and what tests ask of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import monitoring
from hpc import ledger, slurm
from hpc.queue import controller
from hpc.runs import Run
from hpc.waiting import outcome, settle
from monitoring.tail import last_step

TEXT = Path(__file__).resolve().parent.parent / "trainer" / "data" / "texts"
BATCH = 4096
SHAPE = [
    "cluster=noctua2",
    "job.nodes=2",
    "job.ranks_per_node=2",
    "cluster.requeue_hold=3",
    "data=files",
    f"data.corpus.files=[{TEXT}/*/*.txt]",
    "data.corpus.vocab_size=512",
    "data.seq_len=64",
    "model.vocab_size=512",
    "model.d_model=64",
    "model.layers=2",
    "model.d_ff=128",
    "model.moe.d_ff=64",
    f"train.batch_tokens={BATCH}",
    "parallel.micro_batch=8",
    "train.checkpoint.every_steps=25",
    "train.sample_tokens=5",
]
Submit = Callable[..., Run]


@contextmanager
def submitting(folder: Path) -> Iterator[Submit]:
    """A function that submits to the emulated cluster; what still runs at the end is cancelled. The data is there."""
    places = [f"cluster.runs={folder}/runs", f"cluster.data={folder}/data"]
    started: list[Run] = []

    def call(*overrides: str) -> Run:
        started.append(Run(Path(json.loads(hpc("submit", "--json", *places, *overrides))["folder"])))
        return started[-1]

    prepared = call("job=prepare", *(word for word in SHAPE if word.startswith("data")))
    ended(prepared, 120)
    try:
        yield call
    finally:
        for run in started:
            if outcome(run) is None:
                command = [sys.executable, "-m", "hpc", "cancel", "--now", str(run.folder)]
                subprocess.run(command, timeout=60, check=False)


def hpc(*typed: str) -> str:
    """What the command prints; it must succeed."""
    command = [sys.executable, "-m", "hpc", *typed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(submit: Submit, steps: int, *overrides: str, decay: int) -> Run:
    """Submit a training of ``steps`` steps, whose learning rate falls over ``decay`` steps."""
    return submit(*SHAPE, f"train.tokens={steps * BATCH}", f"optim.decay_tokens={decay * BATCH}", *overrides)


def ended(run: Run, patience: float) -> None:
    """Wait until the run finished; anything else fails with what the run said."""
    end = time.monotonic() + patience
    while (code := outcome(run)) is None:
        assert time.monotonic() < end, f"not ended within {patience} s\n{told(run)}"
        time.sleep(0.2)
    assert code == 0, told(run)
    settle(run)


def told(run: Run) -> str:
    logs = [run.log, *sorted(run.attempts.glob("*/rank-0.log"))]
    return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists())


def at_step(run: Run, attempt: int, step: int, patience: float = 120) -> None:
    end = time.monotonic() + patience
    while (last_step(ledger.folder(run, attempt)) or 0) < step:
        assert time.monotonic() < end and outcome(run) is None, told(run)
        time.sleep(0.1)


def losses(run: Run) -> dict[int, str]:
    """Each step's loss to the last bit."""
    history = monitoring.load(run.folder).history
    return {int(step): float(loss).hex() for step, loss in zip(history["step"], history["loss"], strict=True)}


def lost(run: Run) -> int:
    return sum(int(n) for n in monitoring.load(run.folder).attempts["lost_steps"])


def causes(run: Run) -> list[str | None]:
    return [record.cause for record in ledger.history(run)]


def left(run: Run, patience: float = 60) -> None:
    """Wait until a run that was asked to end has done so, and its job is out of the queue."""
    end = time.monotonic() + patience
    while outcome(run) is None or slurm.in_queue(str(run.job_id), controller(run)) is not None:
        assert time.monotonic() < end, told(run)
        time.sleep(0.1)
    settle(run)
