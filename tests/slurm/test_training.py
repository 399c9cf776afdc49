"""Training on a real Slurm, interrupted in every way, has the losses of a run that was left alone: bit by bit.

Four ranks on two nodes, fp32. The emulated cluster has four nodes, so that a run whose node died finds another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import monitoring
from hpc import ledger, slurm
from hpc.emulate import Emulation
from hpc.runs import Run
from hpc.waiting import outcome, settle
from monitoring.tail import last_step

TEXT = Path(__file__).resolve().parent.parent / "trainer" / "data" / "texts"
# A job of one minute that stops half a minute before its end trains for 24 s at most, so more than 48 s of training
# pass two time limits at least. On two quiet cores a step takes 0.18 s, and slower ones only pass more limits.
STEPS = 450
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
    f"optim.decay_tokens={STEPS * BATCH}",
    "train.checkpoint.every_steps=25",
    "train.sample_tokens=5",
]
Submit = Callable[..., Run]


@pytest.fixture(scope="module")
def submit(emulation: Emulation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    """Submit to the emulated cluster as a person would; what still runs at the end is cancelled."""
    folder = tmp_path_factory.mktemp("training")
    places = [f"cluster.runs={folder}/runs", f"cluster.data={folder}/data"]
    started: list[Run] = []

    def call(*overrides: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "hpc", "submit", "--json", *places, *overrides],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        started.append(Run(Path(json.loads(done.stdout)["folder"])))
        return started[-1]

    prepared = call("job=prepare", *(word for word in SHAPE if word.startswith("data")))
    ended(prepared, 120)
    yield call
    for run in started:
        if outcome(run) is None:
            subprocess.run([sys.executable, "-m", "hpc", "cancel", "--now", str(run.folder)], timeout=60, check=False)


def train(submit: Submit, steps: int, *overrides: str) -> Run:
    return submit(*SHAPE, f"train.tokens={steps * BATCH}", *overrides)


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


@pytest.fixture(scope="module")
def undisturbed(submit: Submit) -> dict[int, str]:
    """The losses of a run that was left alone."""
    run = train(submit, STEPS)
    ended(run, 500)
    assert causes(run) == ["finished"]
    found = losses(run)
    assert sorted(found) == list(range(1, STEPS + 1))
    return found


@pytest.mark.timeout(1500)
def test_two_time_limits_leave_no_trace_in_the_losses(submit: Submit, undisturbed: dict[int, str]) -> None:
    run = train(submit, STEPS, "job.time=1", "job.grace=30", "job.max_fruitless=9")
    ended(run, 900)
    assert causes(run).count("time_limit") >= 2, causes(run)
    assert losses(run) == undisturbed
    assert lost(run) == 0
    assert {record.job_id for record in ledger.history(run)} == {run.job_id}


def test_a_preemption_leaves_no_trace_in_the_losses(
    submit: Submit, undisturbed: dict[int, str], emulation: Emulation
) -> None:
    run = train(submit, 60, f"job.partition={emulation.preemptible}")
    at_step(run, 0, 30)
    ended(submit("cluster=noctua2", "job=hello", "job.nodes=4", "job.ranks_per_node=1"), 60)
    ended(run, 200)
    assert causes(run) == ["preemption", "finished"]
    assert losses(run) == {step: undisturbed[step] for step in range(1, 61)}
    assert lost(run) == 0


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint(
    submit: Submit, undisturbed: dict[int, str], emulation: Emulation
) -> None:
    run = train(submit, 80)
    at_step(run, 0, 35)
    node = ledger.history(run)[0].nodes[1]
    emulation.kill_node(node)
    try:
        ended(run, 300)
    finally:
        emulation.start_node(node)
    first, *rest = ledger.history(run)
    assert rest[-1].cause == "finished"
    assert first.cause in ("node_failure", "crash")
    assert node not in rest[-1].nodes
    assert losses(run) == {step: undisturbed[step] for step in range(1, 81)}
    reached = first.step
    assert reached is not None
    assert lost(run) == reached - reached // 25 * 25


def test_a_second_submission_beside_a_held_requeue_is_refused(submit: Submit, emulation: Emulation) -> None:
    run = submit(
        "cluster=noctua2", "job=hello", "job.nodes=1", "job.ranks_per_node=2", "job.seconds=8", "cluster.requeue_hold=6"
    )
    end = time.monotonic() + 60
    while not (ledger.folder(run, 0) / "READY").exists():
        assert time.monotonic() < end, told(run)
        time.sleep(0.1)
    slurm.signal_batch(str(run.job_id), "USR2", emulation.environment)
    while run.state().get("state") != "requeued":
        assert time.monotonic() < end, told(run)
        time.sleep(0.05)
    second = slurm.sbatch(run.script, emulation.environment)
    ended(run, 60)
    while slurm.in_queue(second, emulation.environment) is not None:
        assert time.monotonic() < end, "the second job did not leave"
        time.sleep(0.2)
    assert "refused" in run.log.read_text()
    assert {record.job_id for record in ledger.history(run)} == {run.job_id}


def test_cancel_saves_and_nothing_follows(submit: Submit, emulation: Emulation) -> None:
    run = train(submit, STEPS)
    at_step(run, 0, 5)
    subprocess.run([sys.executable, "-m", "hpc", "cancel", str(run.folder)], check=True, timeout=60)
    end = time.monotonic() + 60
    while outcome(run) is None:
        assert time.monotonic() < end, told(run)
        time.sleep(0.1)
    settle(run)
    assert causes(run) == ["cancelled"]
    reached = ledger.history(run)[0].step
    assert (run.checkpoints / f"step-{reached}" / "COMPLETE").exists()
    while slurm.in_queue(str(run.job_id), emulation.environment) is not None:
        assert time.monotonic() < end
        time.sleep(0.2)
