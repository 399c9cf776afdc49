"""Removing runs and checkpoints: what goes, and above all what stays."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc import garbage
from hpc.cli import main
from hpc.garbage import Policy
from hpc.runs import Run, every, mark_finished, new_id, write_json
from trainer import checkpoint_folder as checkpoints

OLD = 5 * 86400


@pytest.fixture
def made(here: Path) -> Callable[..., Run]:
    """Makes a run's folder with complete checkpoints of these steps."""

    def make(state: str, *steps: int, name: str = "demo", init_from: object = "null", keep_every: int = 0) -> Run:
        run = Run(here / "runs" / name / new_id())
        (run.attempts / "0").mkdir(parents=True)
        checkpoint = f"  checkpoint:\n    keep_latest: 2\n    keep_every: {keep_every}\n"
        run.config_file.write_text(f"train:\n  tokens: 24000\n{checkpoint}  init_from: {init_from}\n")
        write_json(run.manifest_file, {"cluster": "local", "host": "elsewhere"})
        write_json(run.state_file, {"state": state, "cluster": "local", "job_id": "local-1"})
        if state == "finished":
            mark_finished(run.folder, step=max(steps, default=0))
        for step in steps:
            temporary = checkpoints.make_temporary(run.checkpoints, step)
            (temporary / "__0_0.distcp").write_bytes(b"x" * 1000)
            checkpoints.commit(run.checkpoints, temporary, step, {"progress": {"step": step}})
        return run

    return make


def steps(run: Run) -> list[int]:
    return checkpoints.complete_steps(run.checkpoints)


def gc(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["gc", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


# -- gc ----------------------------------------------------------------------------------------------------------


def test_nothing_is_removed_unless_asked_for(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = made("finished", 10, 20, 30)
    said = gc(capsys)
    assert (said["removed"], [Path(p["path"]).name for p in said["pieces"]]) == (False, ["step-10", "step-20"])
    assert said["bytes"] >= 2000
    assert main(["gc"]) == 0
    assert "Nothing was removed; to remove them, add: --yes" in capsys.readouterr().out
    assert steps(run) == [10, 20, 30]
    assert gc(capsys, "--yes")["removed"]
    assert steps(run) == [30]
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-30"]
    assert gc(capsys, "--yes") == {"removed": False, "bytes": 0, "pieces": []}


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([], [20, 40, 50]),  # as the run says: multiples of 20
        (["--keep-every", "0"], [50]),
        (["--keep-every", "25"], [50]),
        (["--keep-latest", "2", "--keep-every", "30"], [30, 40, 50]),
        (["--keep-latest", "9"], [10, 20, 30, 40, 50]),
    ],
    ids=str,
)
def test_policies(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str], words: list[str], left: list[int]
) -> None:
    run = made("finished", 10, 20, 30, 40, 50, keep_every=20)
    gc(capsys, "--yes", *words)
    assert steps(run) == left


def test_only_finished_runs_unless_all_are_meant_and_none_that_has_not_ended(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {state: made(state, 1, 2) for state in ("finished", "failed", "cancelled", "running", "queued", "requeued")}
    live = runs["running"]
    (live.checkpoints / ".step-3.tmp-0123abcd").mkdir()
    gc(capsys, "--yes")
    assert [len(steps(run)) for run in runs.values()] == [1, 2, 2, 2, 2, 2]
    gc(capsys, "--yes", "--all")
    assert [len(steps(run)) for run in runs.values()] == [1, 1, 1, 2, 2, 2]
    assert (live.checkpoints / ".step-3.tmp-0123abcd").exists()
    assert main(["gc", live.id]) == 2


def test_age_is_that_of_the_runs_end(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    new, old = made("finished", 1, 2), made("finished", 1, 2)
    for file in (old.state_file, old.finished_file):
        os.utime(file, (time.time() - OLD, time.time() - OLD))
    gc(capsys, "--yes", "--older-than", "4d")
    assert (steps(new), steps(old)) == ([1, 2], [2])


def test_the_newest_whose_marker_can_be_read_stays_too(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("finished", 1, 2, 3)
    (run.checkpoints / "step-3" / "COMPLETE").write_text("{")
    gc(capsys, "--yes")
    assert steps(run) == [2, 3]


def test_what_another_run_is_to_begin_from_stays(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = made("finished", 1, 2, 3)
    child = made("failed", init_from=run.checkpoints / "step-1")
    gc(capsys, "--yes")
    assert steps(run) == [1, 3]
    assert main(["rm", "--yes", run.id]) == 2
    assert child.id in capsys.readouterr().err
    assert main(["rm", "--yes", run.id, child.id]) == 0
    assert list(every(run.folder.parent.parent)) == []


def test_leftovers_go_and_what_is_being_written_stays(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("finished", 1)
    gone = [
        run.checkpoints / ".step-2.tmp-0123abcd" / "half",
        run.checkpoints / "step-3" / "half",
        run.folder / ".code.old" / "hpc" / "half",
        run.folder / ".state.json.0123abcd.tmp",
        run.attempts / ".1.0123abcd.tmp" / "half",
        run.folder.parent / ".20260101-000000-0000.tmp" / "half",
        run.folder.parent / ".20260101-000000-0000.removed-0123abcd" / "half",
    ]
    stay = run.folder.parent / ".20260101-000000-0001.tmp" / "half"
    for file in (*gone, stay):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    for path in (gone[3], gone[4], gone[4].parent, gone[5], gone[5].parent):
        os.utime(path, (1, 1))
    gc(capsys, "--yes")
    assert [path for path in gone if path.exists() or (path.parent != run.folder and path.parent.exists())] == []
    assert stay.exists() and steps(run) == [1]


def test_code_that_is_a_link_and_files_that_are_shared_are_left_alone(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = made("finished", 1, 2)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("x")
    (run.folder / ".code.old").symlink_to(tmp_path / "shared")
    kept = tmp_path / "linked"
    os.link(run.checkpoints / "step-1" / "__0_0.distcp", kept)
    said = gc(capsys, "--yes")
    assert (tmp_path / "shared" / "file").exists() and kept.read_bytes() == b"x" * 1000
    assert said["bytes"] < 1000  # the file of the checkpoint is still held by its other name


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 20))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_always_stays(made: Callable[..., Run], saved: set[int], latest: int, nth: int) -> None:
    run = made("finished", *saved)
    for piece in garbage.of_run(run, Policy(latest, nth), {}):
        garbage.remove(piece.path)
    left = steps(run)
    assert left[-1] == max(saved)
    assert left[-min(latest, len(saved)) :] == sorted(saved)[-latest:]
    assert all(step in left for step in saved if nth and step % nth == 0)


# -- rm ----------------------------------------------------------------------------------------------------------


def test_ended_runs_go_whole_and_others_are_refused(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    failed, live, other = made("failed", 1), made("running"), made("finished", 1, 2)
    assert main(["rm", "--yes", failed.id, live.id]) == 2
    assert "hpc cancel" in capsys.readouterr().err
    assert failed.folder.exists()  # all or nothing
    assert main(["rm", "--yes", "--json", failed.id, str(other.folder), failed.id]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["removed"] == [str(failed.folder), str(other.folder)] and said["bytes"] > 3000
    assert [path.name for path in failed.folder.parent.iterdir()] == [live.id]


def test_without_a_person_to_ask_nothing_goes(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = made("failed")
    assert main(["rm", run.id]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run.folder.exists()


@pytest.mark.parametrize(("answer", "left"), [("y", False), ("n", True), ("", True)])
def test_a_person_is_asked(made: Callable[..., Run], answer: str, left: bool) -> None:
    run = made("failed")
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpc", "rm", run.id], stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ
        )
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(30) == left
    finally:
        os.close(ours)
        os.close(theirs)
    assert run.folder.exists() is left


def test_a_run_that_went_on_meanwhile_stays(made: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made("failed", 1)
    size = garbage.size

    def resumed(path: Path) -> int:
        run.set_state("queued", job_id="")
        return size(path)

    monkeypatch.setattr(garbage, "size", resumed)
    assert main(["rm", "--yes", run.id]) == 2
    assert run.folder.exists()


def test_a_run_that_is_half_removed_is_never_listed(
    made: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    run = made("failed", 1)

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(garbage.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            garbage.remove(run.folder)
    assert list(every(here / "runs")) == []
    assert [piece.why for piece in garbage.beside(here / "runs")] == ["half removed"]


def test_a_sweep_goes_with_its_runs_once_none_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "-m", "--wait", "--json", "job=hello", "job.ranks_per_node=1", "job.seconds=0,0.1"]
    done = subprocess.run([sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[0])
    assert len(list(every(here / "runs"))) == 2
    assert main(["rm", "--yes", found["sweep"]]) == 0
    assert list(Path(found["folder"]).parent.iterdir()) == []
