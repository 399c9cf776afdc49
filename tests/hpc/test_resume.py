"""Going on with a run that has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc import ledger
from hpc.resume import words
from hpc.runs import Run


def hpc(home: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HPC_HOME": str(home / "h"), "HPC_RUNS": str(home / "runs"), "HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "hpc", *typed], cwd=home, capture_output=True, text=True, timeout=120, env=env
    )


def started(home: Path, *typed: str) -> Run:
    done = hpc(home, "submit", "--json", "job=hello", *typed)
    assert done.returncode == 0, done.stderr
    return Run(Path(json.loads(done.stdout)["folder"]))


def ready(run: Run, number: int = 0) -> None:
    end = time.monotonic() + 60
    while not (ledger.folder(run, number) / "READY").exists():
        assert time.monotonic() < end, run.log.read_text()
        time.sleep(0.05)


@pytest.fixture
def cancelled(tmp_path: Path) -> Run:
    """A run of two ranks that was cancelled before it was done."""
    run = started(tmp_path, "job.seconds=60")
    ready(run)
    assert hpc(tmp_path, "cancel", run.id).returncode == 0
    end = time.monotonic() + 60
    while run.state()["state"] != "cancelled":
        assert time.monotonic() < end, run.log.read_text()
        time.sleep(0.05)
    return run


def test_a_cancelled_run_goes_on_in_its_folder_with_what_was_changed(cancelled: Run, tmp_path: Path) -> None:
    done = hpc(tmp_path, "resume", cancelled.id, "job.ranks_per_node=1", "job.seconds=0", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == cancelled.id
    assert [record.cause for record in ledger.history(cancelled)] == ["cancelled", "finished"]
    assert json.loads(cancelled.finished_file.read_text())["ranks"] == 1
    assert words(cancelled, []) == ["job=hello", "job.ranks_per_node=1", "job.seconds=0"]
    (resumed,) = json.loads(cancelled.manifest_file.read_text())["resumed"]
    assert resumed["typed"] == ["job.ranks_per_node=1", "job.seconds=0"]
    assert len(list(cancelled.folder.parent.iterdir())) == 1


def test_a_dry_run_shows_the_script_and_changes_nothing(cancelled: Run, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in cancelled.folder.rglob("*") if p.is_file()}
    done = hpc(tmp_path, "resume", cancelled.id, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!")
    assert {p: p.read_bytes() for p in cancelled.folder.rglob("*") if p.is_file()} == before


def test_a_run_that_lives_or_is_finished_or_a_mistake_is_refused(tmp_path: Path) -> None:
    run = started(tmp_path, "job.seconds=60")
    ready(run)
    assert "has not ended" in (lives := hpc(tmp_path, "resume", run.id)).stderr
    assert hpc(tmp_path, "cancel", "--now", run.id).returncode == 0
    wrong = hpc(tmp_path, "resume", run.id, "job.secnods=1")
    over = started(tmp_path, "--wait")
    assert "is finished" in (finished := hpc(tmp_path, "resume", over.id)).stderr
    assert [done.returncode for done in (lives, wrong, finished, hpc(tmp_path, "resume"))] == [2, 2, 2, 2]
    assert "job.seconds" in wrong.stderr


def test_a_new_override_takes_the_place_of_the_old_one_of_its_key(cancelled: Run) -> None:
    assert words(cancelled, ["job.seconds=1"]) == ["job=hello", "job.seconds=1"]
    assert words(cancelled, ["+name=x"]) == ["job=hello", "job.seconds=60", "+name=x"]
