"""Why Slurm ends a job, by what it says of it, and what follows where a requeue is not to be had."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc import slurm
from hpc.compose import compose
from hpc.errors import Failed
from hpc.processes import process_lives
from hpc.request import resolve
from hpc.requeue import Cause
from hpc.slurm import Forbidden, SlurmError
from hpc.slurm_allocation import SlurmAllocation


def allocation(folder: Path, *overrides: str, left: float = 1e5) -> SlurmAllocation:
    config = compose(["cluster=noctua2", "job=hello", *overrides])
    return SlurmAllocation(config, resolve(config), folder, "7_1", 1, ["n2gpu1201"], ends=time.time() + left)


@pytest.mark.parametrize(
    ("told", "left", "cause"),
    [
        ({"JobState": "RUNNING", "Restarts": "1"}, 1e5, None),
        ({"JobState": "COMPLETING", "Restarts": "1"}, 1e5, Cause.cancelled),
        ({"JobState": "COMPLETING", "Restarts": "2"}, 1e5, Cause.preemption),
        ({"JobState": "COMPLETING", "Restarts": "1"}, 10, Cause.time_limit),
        ({"JobState": "RUNNING", "Restarts": "1", "PreemptTime": "2026-01-31T12:00:00"}, 1e5, Cause.preemption),
        ({"JobState": "RUNNING", "Restarts": "1", "PreemptTime": "None"}, 1e5, None),
        ({"JobState": "TIMEOUT", "Restarts": "1"}, 1e5, Cause.time_limit),
        ({"JobState": "CANCELLED", "Restarts": "1"}, 10, Cause.cancelled),
        ({}, 1e5, None),
    ],
)
def test_a_cancelled_a_preempted_and_a_timed_out_job_are_told_apart(
    told: dict[str, str], left: float, cause: Cause | None, tmp_path: Path
) -> None:
    assert allocation(tmp_path, left=left)._verdict(told) is cause


def test_a_node_that_dies_while_slurm_is_asked_is_no_preemption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []

    def died() -> bool:  # between the first question and the second, whichever these are
        questions.append("asked")
        return len(questions) > 1

    monkeypatch.setattr(
        slurm, "job", lambda job_id: {"JobState": "COMPLETING" if died() else "RUNNING", "Restarts": "2"}
    )
    monkeypatch.setattr(slurm, "down_nodes", lambda nodes: list(nodes) if died() else [])
    cause, evidence = allocation(tmp_path).end_unbidden() or (None, "")
    assert cause is Cause.node_failure
    assert "n2gpu1201" in evidence


@pytest.fixture
def signals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A requeue ignores signals for good, which would outlive the test."""
    monkeypatch.setattr("hpc.slurm_allocation.signal.signal", lambda number, handler: None)
    monkeypatch.setattr("hpc.slurm_allocation.time.sleep", lambda seconds: None)


def test_a_controller_that_is_away_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_kept: None
) -> None:
    answers = iter([False, False, True])
    taken = []

    def requeue(job_id: str) -> bool:
        taken.append(next(answers))
        return taken[-1]

    def start_at(job_id: str, seconds: int, exclude: object) -> None:
        if not taken[-1]:
            raise SlurmError("Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "requeue", requeue)
    monkeypatch.setattr(slurm, "start_at", start_at)
    monkeypatch.setattr(slurm, "job", lambda job_id: {"JobState": "COMPLETING", "Restarts": "2"})
    assert allocation(tmp_path).requeue(4, []) == "ended"
    assert taken == [False, False, True]


def test_a_requeue_that_the_controller_forgot_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_kept: None
) -> None:
    states = iter([{"JobState": "RUNNING", "Restarts": "1"}, {"JobState": "PENDING", "Restarts": "2"}])
    taken = []
    monkeypatch.setattr(slurm, "requeue", lambda job_id: taken.append(job_id) or True)
    monkeypatch.setattr(slurm, "start_at", lambda *words: None)
    monkeypatch.setattr(slurm, "job", lambda job_id: next(states))
    assert allocation(tmp_path).requeue(4, []) == "ended"
    assert len(taken) == 2


def test_where_a_requeue_is_forbidden_a_successor_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_kept: None
) -> None:
    def requeue(job_id: str) -> bool:
        raise Forbidden("Requested operation is presently disabled")

    asked = []
    monkeypatch.setattr(slurm, "requeue", requeue)
    monkeypatch.setattr(slurm, "sbatch", lambda *words: asked.append(words) or "8")
    found = allocation(tmp_path)
    assert found.requeue(4, []) == "ended"
    assert asked == [(tmp_path / "submit.sh", None, "--dependency=afterany:7_1")]
    assert '"8"' in (tmp_path / "state.json").read_text()


def test_where_jobs_may_not_call_slurm_it_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_kept: None
) -> None:
    monkeypatch.setattr(slurm, "call", lambda *words, **more: pytest.fail("called"))
    found = allocation(tmp_path, "cluster.slurm_from_compute=false")
    assert found.taken_away() is None
    assert found.end_unbidden() is None
    assert found.cause_of_stop("SIGUSR2", 60)[0] is Cause.preemption
    with pytest.raises(Failed, match=r"sbatch .*submit\.sh"):
        found.requeue(4, [])


def test_an_ended_child_that_nobody_waited_for_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    end = time.monotonic() + 10
    while process_lives(child.pid, time.time()):
        assert time.monotonic() < end
        time.sleep(0.02)
    child.wait()
