"""How jobs ended that left the queue is asked of the accounting: once where it says so, else ever more seldom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from hpc import departed, queue, slurm
from hpc.accounting import Row
from hpc.departed import Departed, End
from hpc.listing import row
from hpc.runs import Run
from hpc.slurm import SlurmError
from monitoring.job import NO_JOB


class Accounting:
    """Answers as sacct does, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[list[str]] | None = []
        self.asked: list[list[str]] = []
        monkeypatch.setattr(slurm, "sacct", self.sacct)

    def sacct(self, names: Sequence[str], job_ids: Mapping[str, None], environment: object) -> list[list[str]]:
        self.asked.append(list(job_ids))
        if self.lines is None:
            raise SlurmError("Slurm accounting storage is disabled")
        return self.lines

    def says(self, run: Run, job_id: str, *states: str, ended: str = "2026-01-31T12:00:00") -> None:
        for state in states:
            known = {"job_id": job_id, "state": state, "ended": ended, "folder": str(run.folder)}
            assert self.lines is not None
            self.lines.append([known.get(each.name, "") for each in fields(Row)])


@pytest.fixture
def accounting(monkeypatch: pytest.MonkeyPatch) -> Accounting:
    monkeypatch.setattr(queue, "target", lambda *words: {})
    monkeypatch.setattr(slurm, "queue", lambda *words, **more: {})
    return Accounting(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "run")
    found.folder.mkdir()
    found.set_state("running", job_id="5", cluster="noctua2", emulated=False)
    return found


def test_a_known_end_is_asked_for_once_and_is_the_jobs_state(run: Run, accounting: Accounting) -> None:
    accounting.says(run, "5", "PREEMPTED", "NODE_FAIL")  # two starts of one job
    told = Departed()
    for _ in range(3):
        job = queue.states([run], departed=told)[run.folder]
        assert (job.state, job.ended, job.over) == ("NODE_FAIL", slurm.unix("2026-01-31T12:00:00"), True)
    assert accounting.asked == [["5"]]
    assert row(run, job).state == "gone" and "its job is NODE_FAIL" in row(run, job).reason


@pytest.mark.parametrize("silent", [True, False])
def test_what_is_not_known_is_asked_for_ever_more_seldom(run: Run, accounting: Accounting, silent: bool) -> None:
    if silent:
        accounting.lines = None
    else:
        accounting.says(run, "5", "REQUEUED", "RUNNING", ended="Unknown")  # it has not heard of the end yet
    now = [0.0]
    told = Departed(lambda: now[0])
    for second in range(3600):
        now[0] = float(second)
        assert queue.states([run], departed=told)[run.folder].state == NO_JOB
    assert 7 <= len(accounting.asked) <= 14
    accounting.lines = []
    accounting.says(run, "5", "TIMEOUT")
    now[0] += departed.LONGEST
    assert queue.states([run], departed=told)[run.folder].state == "TIMEOUT"


def test_a_job_of_that_number_that_was_somebody_elses_says_nothing(run: Run, accounting: Accounting) -> None:
    accounting.says(Run(run.folder.parent / "another"), "5", "COMPLETED")
    assert Departed().ends([(run, "5")], {}) == {}


def test_all_of_a_cluster_are_asked_for_at_once(tmp_path: Path, run: Run, accounting: Accounting) -> None:
    other = Run(tmp_path / "other")
    other.folder.mkdir()
    other.set_state("running", job_id="6_3", cluster="noctua2", emulated=False)
    accounting.says(run, "5", "FAILED")
    accounting.says(other, "6_3", "OUT_OF_MEMORY")
    told = Departed()
    assert set(told.ends([(run, "5"), (other, "6_3")], {}).values()) == {
        End("FAILED", slurm.unix("2026-01-31T12:00:00")),
        End("OUT_OF_MEMORY", slurm.unix("2026-01-31T12:00:00")),
    }
    assert accounting.asked == [["5", "6_3"]]
