"""A run whose job will not come back is gone, everywhere by that word, and a finding says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitoring import layout
from monitoring.job import NO_JOB, JobState
from monitoring.reader import Reader
from monitoring.terminal.plain import plain, to_json
from monitoring.terminal.screen import header
from tests.monitoring.generate import START, Shape, Try, generate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = generate(tmp_path / "demo" / "20260309-115900-0000", Shape((Try(0, 60),), layers=()))
    say(folder, "running", "17")
    return folder


def say(run: Path, state: str, job_id: str) -> None:
    (run / layout.STATE).write_text(json.dumps({"state": state, "job_id": job_id, "cluster": "noctua2"}))


def kinds(run: Path, job: JobState, after: float) -> set[str]:
    return {each.kind for each in Reader(run).read(job, START + after).findings}


LATER = 3600.0


@pytest.mark.parametrize("state", [NO_JOB, "NODE_FAIL"])
def test_a_gone_run_is_told_of_and_is_no_stall(run: Path, state: str) -> None:
    found = Reader(run).read(JobState("17", state), START + LATER)
    told = next(each for each in found.findings if each.kind == "gone")
    assert told.severity == "critical" and "hpc resume RUN" in told.do and "job 17" in told.evidence
    assert "stall" not in {each.kind for each in found.findings}
    assert found.state == "gone" and found.eta_s is None and found.outlook.left is None
    assert found.outlook.spans[-1].end < START + LATER  # nobody counts time that nobody spends
    assert "state      gone" in plain(found) or "gone on noctua2" in plain(found)
    assert to_json(found)["state"] == "gone"
    assert "GONE" in "".join(row.plain for row in header(found, 80))


def test_how_it_ended_is_said_and_when(run: Path) -> None:
    found = Reader(run).read(JobState("17", "OUT_OF_MEMORY", ended=START + 900), START + LATER)
    told = next(each for each in found.findings if each.kind == "gone")
    assert "OUT_OF_MEMORY" in told.title and told.since == START + 900


def test_the_state_is_judged_anew_when_the_job_is_another(run: Path) -> None:
    reader = Reader(run)
    assert "stall" in {each.kind for each in reader.read(JobState("17", "RUNNING"), START + LATER).findings}
    found = reader.read(JobState("17", NO_JOB), START + LATER + 1)
    assert {"gone"} <= {each.kind for each in found.findings} and "stall" not in {f.kind for f in found.findings}


def test_what_ends_just_now_or_goes_on_in_another_job_is_not_gone(run: Path) -> None:
    last = Reader(run).read(None, START + LATER).updated
    assert last is not None
    assert "gone" not in kinds(run, JobState("17", NO_JOB), last - START + 60)
    say(run, "queued", "18")
    assert "gone" not in kinds(run, JobState("17", NO_JOB), LATER)
    assert Reader(run).read(JobState("17", NO_JOB), START + LATER).state == "queued"


@pytest.mark.parametrize("state", ["finished", "failed", "cancelled"])
def test_what_has_ended_by_its_own_word_is_not_gone(run: Path, state: str) -> None:
    say(run, state, "17")
    assert "gone" not in kinds(run, JobState("17", NO_JOB), LATER)


def test_without_slurm_it_is_the_supervisor_that_is_gone(run: Path) -> None:
    say(run, "running", "local-4711")
    found = Reader(run).read(JobState("local-4711", NO_JOB), START + LATER)
    assert found.reason == "its supervisor was killed"
