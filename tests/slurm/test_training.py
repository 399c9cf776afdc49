"""Training on a real Slurm, interrupted in every way, has the losses of a run that was left alone: bit by bit.

Four ranks on two nodes, fp32. The emulated cluster has four nodes, so that a run whose node died finds another.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from hpc import ledger, slurm
from hpc.emulate import Emulation
from hpc.runs import Run
from hpc.waiting import outcome, settle
from monitoring.tail import header
from tests.slurm import training
from tests.slurm.training import Submit, at_step, causes, ended, hpc, losses, lost, told

# A job of one minute that stops half a minute before its end trains for 24 s at most, so more than 48 s of training
# pass two time limits at least. On two quiet cores a step takes 0.18 s, and slower ones only pass more limits.
STEPS = 450


@pytest.fixture(scope="module")
def submit(emulation: Emulation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    with training.submitting(tmp_path_factory.mktemp("training")) as call:
        yield call


def train(submit: Submit, steps: int, *overrides: str) -> Run:
    return training.train(submit, steps, *overrides, decay=STEPS)


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


def test_a_stall_that_nobody_else_noticed_is_acted_on(submit: Submit, undisturbed: dict[int, str]) -> None:
    run = train(submit, 80, "job.silence=600", "train.watch.hang_seconds=5", "train.watch.hang_factor=3")
    at_step(run, 0, 30)
    for rank in range(4):  # their watchdogs stop with them
        os.kill(_pid(run, rank), signal.SIGSTOP)
    end = time.monotonic() + 90
    while not (found := _findings(run, "stall")):
        assert time.monotonic() < end, told(run)
        time.sleep(2)
    assert found[0]["severity"] == "critical" and causes(run) == [None]
    hpc("findings", "--act", str(run.folder))
    ended(run, 120)
    done = json.loads((run.folder / "acted.jsonl").read_text())
    assert done["done"] == f"job {run.job_id} was put back into the queue" and done["finding"]["kind"] == "stall"
    assert causes(run)[-1] == "finished" and losses(run) == {step: undisturbed[step] for step in range(1, 81)}


def _findings(run: Run, kind: str) -> list[dict[str, str]]:
    return [each for each in json.loads(hpc("findings", "--json", str(run.folder))) if each["kind"] == kind]


def _pid(run: Run, rank: int) -> int:
    said = header(ledger.folder(run, 0), rank)
    assert said is not None
    return int(said["pid"])


@pytest.mark.parametrize("site", ["emulation", "accounted"])
def test_a_second_submission_beside_a_held_requeue_is_refused(
    submit: Submit, site: str, request: pytest.FixtureRequest
) -> None:
    emulation: Emulation = request.getfixturevalue(site)
    place = ["cluster=noctua2", f"cluster.name={emulation.name}", "cluster.requeue_hold=6"]
    run = submit(*place, "job=hello", "job.nodes=1", "job.ranks_per_node=2", "job.seconds=8")
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
    hpc("cancel", str(run.folder))
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
