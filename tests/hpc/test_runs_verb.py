"""hpc runs: which runs are listed, and what people write on them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from hpc import notes
from hpc.cli import main
from hpc.runs import Run, mark_finished, new_id, write_json
from monitoring.recorder import Recorder


def made(root: Path, name: str, state: str, *, age: float = 0.0, cluster: str = "noctua2") -> Run:
    """A run's folder as far as lists look at it."""
    run = Run(root / name / new_id(time.time() - age))
    (run.attempts / "0").mkdir(parents=True)
    run.config_file.write_text("train:\n  tokens: 24000\n")
    write_json(run.manifest_file, {"cluster": cluster, "job_id": None})
    write_json(run.state_file, {"state": state, "cluster": cluster, "reason": ""})
    if state == "finished":
        mark_finished(run.folder, step=7, tokens=24000)
    return run


@pytest.fixture
def some(here: Path) -> dict[str, Run]:
    root = here / "runs"
    return {
        "old": made(root, "base", "finished", age=3 * 86400),
        "bad": made(root, "base", "failed", age=7200),
        "wide": made(root, "wide", "cancelled", age=3600, cluster="local"),
        "new": made(root, "wider", "finished"),
    }


def ids(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["runs", "--json", *words]) == 0
    return [row["id"] for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], ["new", "wide", "bad", "old"]),
        (["-n", "2"], ["new", "wide"]),
        (["--state", "failed,cancelled"], ["wide", "bad"]),
        (["--state", "finished", "-n", "1"], ["new"]),
        (["--name", "base"], ["bad", "old"]),
        (["--name", "wid*"], ["new", "wide"]),
        (["--cluster", "local"], ["wide"]),
        (["--since", "2d"], ["new", "wide", "bad"]),
        (["--since", "90m", "--state", "finished"], ["new"]),
        (["--tag", "good"], ["new", "old"]),
        (["--tag", "good,best"], ["old"]),
        (["--tag", "good", "--tag", "best"], ["old"]),
        (["--tag", "none"], []),
    ],
    ids=str,
)
def test_filters(some: dict[str, Run], capsys: pytest.CaptureFixture[str], words: list[str], meant: list[str]) -> None:
    notes.tag(some["old"], ["good", "best"])
    notes.tag(some["new"], ["good"])
    assert ids(capsys, *words) == [some[each].id for each in meant]


def test_tags_and_a_note_are_kept_and_shown(some: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = some["bad"]
    assert main(["runs", "tag", run.id, "good", "x.1", "twice", "twice"]) == 0
    assert main(["runs", "tag", run.id, "--remove", "x.1", "never-there"]) == 0
    assert main(["runs", "note", run.id, "$(touch pwned); the\x1b[31m best\nso far"]) == 0
    capsys.readouterr()
    assert notes.read(run) == notes.Notes(("good", "twice"), "$(touch pwned); the\x1b[31m best\nso far")
    assert main(["runs"]) == 0
    assert "#good #twice $(touch pwned); the best" in capsys.readouterr().out
    assert main(["runs", "note", run.id, ""]) == 0
    assert notes.read(run) == notes.Notes(("good", "twice"))


@pytest.mark.parametrize("tag", ["", "a b", "-x", "größe", "a,b", "a\nb", "$(x)", "x" * 33, "../x"])
def test_what_is_no_tag_is_refused_and_nothing_written(some: dict[str, Run], tag: str) -> None:
    assert main(["runs", "tag", some["new"].id, "fine", "--", tag]) == 2
    assert not some["new"].notes_file.exists()


def test_mistakes_are_told(some: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--state", "fialed"]) == 2
    assert "Allowed: queued" in capsys.readouterr().err
    assert main(["runs", "note", some["new"].id, "x" * 2001]) == 2
    assert main(["runs", "tag", some["new"].id, "a", "--remove", "a"]) == 2
    for words in (["runs", "--since", "soon"], ["runs", "-n", "-1"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2


def test_notes_that_are_damaged_are_none(some: dict[str, Run]) -> None:
    some["new"].notes_file.write_text('{"tags": 3, "note": ["x"')
    assert notes.read(some["new"]) == notes.Notes()
    some["new"].notes_file.write_text('{"tags": ["b", 1, "a"], "note": 3}')
    assert notes.read(some["new"]) == notes.Notes(("a", "b"))


def test_a_thousand_runs_are_listed_within_a_second(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(here / "runs", "first", "failed")
    record = Recorder(run.attempts / "0", 0, 1, run.id, 0)
    for step in range(600):
        record.step(step=step, tokens=step * 100, loss=2.0, grad_norm=0.25, tokens_per_s=1000.0)
    record.close()
    for number in range(999):
        shutil.copytree(run.folder, here / "runs" / f"name{number % 7}" / new_id(time.time() - number))
    assert main(["runs", "-n", "1"]) == 0  # imports
    capsys.readouterr()
    best = 9.0
    for _ in range(3):
        began = time.process_time()
        assert len(ids(capsys)) == 1000
        best = min(best, time.process_time() - began)
    assert best < 1.0
