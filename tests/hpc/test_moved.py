"""A run's folder may be moved once the run has ended: everything about it works where it is now."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpc import ledger, sweep
from hpc.cli import main
from hpc.runs import Run


def hpc(*typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hpc", *typed], capture_output=True, text=True, timeout=120)


def submitted(*typed: str) -> dict:
    done = hpc("submit", "--json", "--wait", "job=hello", "job.ranks_per_node=1", *typed)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[0])


def move(folder: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(place)


def again(run: Run, *new: str) -> None:
    """Go on with a run that is to be said unfinished."""
    run.finished_file.unlink()
    run.set_state("failed", reason="for this test")
    done = hpc("resume", str(run.folder), "--wait", "--json", *new)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["folder"]) == run.folder
    assert [record.cause for record in ledger.history(run)] == ["finished", "finished"]


@pytest.mark.parametrize("place", ["elsewhere/other/20260101-000000-0000", "größe & so/a b/c"], ids=str)
def test_a_moved_run_is_looked_at_and_goes_on_where_it_is(
    here: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    old = Path(submitted()["folder"])
    run = Run(move(old, here / place))
    assert main(["status", str(run.folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["folder"]) == ("finished", str(run.folder))
    for words in (["logs", str(run.folder), "--all"], ["logs", str(run.folder), "--rank", "0"], ["runs", "--json"]):
        assert main(words) == 0
    assert "agree" in capsys.readouterr().out
    again(run)
    assert not old.exists()
    # Nothing that a next attempt reads speaks of where the run was.
    for file in (run.pickle, run.config_file):
        assert str(old).encode() not in file.read_bytes()
    assert hpc("rm", "--yes", str(run.folder)).returncode == 0
    assert not run.folder.exists()


def test_a_moved_run_of_a_sweep_whose_code_is_out_of_reach_gets_its_own(here: Path) -> None:
    found = sweep.Sweep(Path(submitted("-m", "job.seconds=0,0.01")["folder"]))
    run = Run(move(found.run(1).folder, here / "elsewhere" / "one" / found.run(1).id))
    assert run.code.is_symlink() and not run.code.exists()
    again(run)
    assert (run.code / "hpc" / "supervise.py").is_file() and not run.code.is_symlink()
    assert found.run(0).code.exists()


def test_all_runs_moved_together_and_the_sweep_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sweep.Sweep(Path(submitted("-m", "job.seconds=0,0.01")["folder"]))
    move(here / "runs", here / "scratch" / "runs")
    monkeypatch.setenv("HPC_RUNS", str(here / "scratch" / "runs"))
    moved = sweep.find(here / "scratch" / "runs", found.id)
    run = moved.run(1)
    assert sweep.of_run(run) == moved.folder
    run.finished_file.unlink()
    run.set_state("failed", reason="for this test")
    assert hpc("sweep", "resume", found.id).returncode == 0
    done = hpc("sweep", "status", "--wait", "--json", found.id)
    assert [each["state"] for each in json.loads(done.stdout)["runs"]] == ["finished", "finished"], done.stderr
    assert not (here / "runs").exists()
