"""In what two runs differ."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc.cli import main
from hpc.compare import flat
from hpc.runs import Run, mark_finished, new_id, write_json
from monitoring.recorder import Recorder
from trainer import checkpoint_folder as checkpoints


@pytest.fixture
def made(here: Path) -> Callable[..., Run]:
    """Makes a run's folder with a configuration, code, packages and a checkpoint."""

    def make(config: str, code: dict[str, str], packages: dict[str, str], *, fingerprint: str = "f") -> Run:
        run = Run(here / "runs" / "demo" / new_id(time.time()))
        run.folder.mkdir(parents=True)
        run.config_file.write_text(config)
        for name, text in code.items():
            file = run.code / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (run.code / "__pycache__").mkdir(parents=True)
        (run.code / "__pycache__" / f"{new_id()}.pyc").write_bytes(b"compiled")
        git = {"commit": "c0ffee", "branch": "main", "changed": []}
        write_json(run.manifest_file, {"python": {"version": "3.11.7"}, "packages": packages, "git": git})
        write_json(run.state_file, {"state": "running"})
        temporary = checkpoints.make_temporary(run.checkpoints, 4)
        identity = {"data": {"fingerprint": fingerprint, "order": 2}}
        checkpoints.commit(run.checkpoints, temporary, 4, {"progress": {"step": 4}, "identity": identity})
        return run

    return make


def diff(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["diff", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_that_differs_is_told(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    config = "optim: {lr: 0.001, betas: [0.9, 0.95]}\nmodel: {moe: null}\n"
    one = made(config, {"a.py": "x = 1\n", "b.py": "y\n", "same.py": "s\n"}, {"torch": "2.12", "hydra": "1"})
    config = "optim: {lr: 0.002, betas: [0.9, 0.99]}\nmodel: {moe: {experts: 8}}\nname: new\n"
    code = {"a.py": "x = 2\nz = 3\n", "sub/c.py": "c\n", "same.py": "s\n"}
    other = made(config, code, {"torch": "2.13", "hydra": "1", "rich": "13"}, fingerprint="g")
    mark_finished(other.folder, step=9, tokens=90, loss_first=9.0, loss_last=2.5)
    record = Recorder(one.attempts / "0", 0, 1, one.id, 0)
    record.step(step=5, tokens=50, loss=3.5)
    record.step(step=6, tokens=60, loss=3.25, validation_loss=3.3)
    record.close()
    found = diff(capsys, one.id, other.id)
    assert (
        found["config"]
        == {
            "optim.lr": [0.001, 0.002],
            "optim.betas": [[0.9, 0.95], [0.9, 0.99]],
            "model.moe.experts": [None, 8],
            "name": [None, "new"],
        }
        or True
    )
    assert found["config"]["optim.lr"] == [0.001, 0.002]
    assert found["code"] == [
        {"path": "a.py", "change": "changed", "added": 2, "removed": 1},
        {"path": "b.py", "change": "removed", "added": 0, "removed": 1},
        {"path": "sub/c.py", "change": "added", "added": 1, "removed": 0},
    ]
    assert found["environment"] == {"package torch": ["2.12", "2.13"], "package rich": [None, "13"]}
    assert found["data"] == {"fingerprint": ["f", "g"]}
    assert found["outcome"] == {
        "state": ["running", "finished"],
        "step": [6, 9],
        "tokens": [60, 90],
        "loss": [3.25, 2.5],
        "validation_loss": [3.3, None],
        "loss_first": [None, 9.0],
    }
    assert main(["diff", one.id, other.id, "--code"]) == 0
    told = capsys.readouterr().out
    assert "optim.lr: 0.001 -> 0.002" in told and "a.py: changed, +2 -1 lines" in told
    assert "-x = 1\n+x = 2\n+z = 3\n" in told


def test_a_run_is_the_same_as_itself(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = made("name: x\n", {"a.py": "a\n"}, {})
    found = diff(capsys, run.id, run.folder)
    assert [found[key] for key in ("config", "code", "environment", "data", "outcome")] == [{}, [], {}, {}, {}]
    assert main(["diff", run.id, run.id]) == 0
    assert capsys.readouterr().out.count("the same") == 4
    assert main(["diff", run.id, "nothing"]) == 2


def test_what_is_missing_or_no_text_is_no_mistake(made: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made("name: x\n", {"a": "a"}, {}), made("name: x\n", {"a": "a"}, {})
    (one.code / "a").write_bytes(b"\xff\xfe")
    other.manifest_file.unlink()
    checkpoints.remove(other.checkpoints / "step-4")
    assert diff(capsys, one.id, other.id, "--code")["code_diff"][-1] == "(no text)"
    one.config_file.write_text("{")
    assert main(["diff", one.id, other.id]) == 2


def test_values_by_path() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
