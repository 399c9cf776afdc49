"""Why a run waits or died, in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from hpc.explain import Subject, explain, reason
from hpc.ledger import Record
from hpc.requeue import Cause
from hpc.runs import Run
from hpc.waiting import wait
from monitoring.snapshot import JobState

NOW = 1_800_000_000.0


def record(number: int = 0, cause: str | None = "crash", **known: object) -> Record:
    ended = None if cause is None else NOW - 10
    fields = {"job_id": "7", "nodes": ["n1"], "began": NOW - 100, "ended": ended, "cause": cause, **known}
    return Record(number=number, **fields)  # type: ignore[arg-type]


def text(subject: Subject, attempts: list[Record], job: JobState | None = None) -> str:
    told = explain(subject, attempts, job, NOW)
    return "\n".join([*told.sentences, *told.attempts, *(command for command, _ in told.commands)])


@pytest.mark.parametrize(
    ("given", "words", "vain"),
    [
        ("Priority", "higher priority", False),
        ("(Resources)", "not free yet", False),
        ("PartitionTimeLimit", "more time than the partition", True),
        ("QOSMaxWallDurationPerJobLimit", "more time than its QoS", True),
        ("QOSMaxJobsPerUserLimit", "limit of its QoS", False),
        ("JobHeldUser", "scontrol release 7_1", False),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained or reserved", False),
        ("SomethingNew", "Slurm says SomethingNew", False),
        ("None", "not looked", False),
    ],
)
def test_the_reason_of_a_job_that_waits_is_put_in_words(given: str, words: str, vain: bool) -> None:
    said, never = reason(given, "7_1")
    assert words in said
    assert never is vain


def test_a_job_that_will_never_start_is_to_be_cancelled() -> None:
    job = JobState("7", "PENDING", "PartitionTimeLimit", submitted=NOW - 3600)
    said = text(Subject("r-1", "pending", "PartitionTimeLimit", False), [], job)
    assert "waits since 1:00:00" in said
    assert "hpc cancel r-1" in said


def test_a_requeued_run_says_why_it_queues() -> None:
    job = JobState("7", "PENDING", "BeginTime", submitted=NOW - 60, started=NOW + 30)
    past = record(cause="gpu_fault", reason="gpu fault (rank 3 on n1: Xid 79)", exclude=["n1"], action="requeue")
    said = text(Subject("r-1", "pending", "", False), [past], job)
    assert "after attempt 0: gpu fault (rank 3 on n1: Xid 79)" in said
    assert "start in 30s" in said
    assert "then requeue without n1" in said


@pytest.mark.parametrize("cause", [c.value for c in Cause if c not in (Cause.finished, Cause.cancelled)])
def test_every_end_of_a_failed_run_comes_with_a_command(cause: str) -> None:
    past = record(cause=cause, evidence="rank 3 on n1: words", suspects=["n1"], step=5, lost_steps=2)
    told = explain(Subject("r-1", "failed", "why", True), [past], None, NOW)
    assert told.commands[-1][0] == "hpc resume r-1"
    assert "r-1 is failed: why." in told.sentences
    assert any("words" in sentence for sentence in told.sentences)


def test_where_the_time_went_adds_up() -> None:
    seconds = {"queued": 10.0, "starting": 10.0, "training": 70.0, "saving": 8.0, "ending": 2.0}
    said = text(Subject("r-1", "finished", "", True), [record(cause="finished", seconds=seconds, step=9)])
    assert "Of 1:40: queued 10s, starting 10s, training 1:10, saving 8s, ending 2s (70% in steps)." in said


def test_of_a_run_that_ended_on_this_machine(start: Callable[..., Run]) -> None:
    run = start("job=hello")
    assert wait(run, quiet=True) == 0
    command = [sys.executable, "-m", "hpc", "explain", run.id]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert f"{run.id} is finished." in plain
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, timeout=30, check=True).stdout)
    (only,) = told["records"]
    assert sum(only["seconds"].values()) == pytest.approx(
        only["ended"] - only["began"] + only["seconds"]["queued"], abs=1e-3
    )
