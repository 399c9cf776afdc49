"""Job ids mean something only to the Slurm that gave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpc import queue, slurm
from hpc.runs import Run, write_json
from hpc.slurm import QueueRow


def row(folder: Path) -> QueueRow:
    values = ["5", "RUNNING", "None", "x", "gpu", 1, "n1", "N/A", "N/A", "N/A", "me", str(folder)]
    return QueueRow(*values)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "run")
    found.folder.mkdir()
    found.set_state("running", job_id="5", cluster="noctua2", emulated=False)
    return found


def asked(monkeypatch: pytest.MonkeyPatch, rows: dict[str, QueueRow], environment: dict[str, str]) -> None:
    monkeypatch.setattr(queue, "target", lambda *words: environment)
    monkeypatch.setattr(slurm, "queue", lambda *words, **more: rows)


def test_a_job_is_known_by_its_folder_and_not_by_its_number_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, {"5": row(run.folder)}, {})
    assert queue.states([run])[run.folder].state == "RUNNING"
    asked(monkeypatch, {"5": row(run.folder.parent / "another")}, {})
    assert queue.states([run])[run.folder].state == "GONE"
    asked(monkeypatch, {}, {})
    assert queue.states([run])[run.folder].state == "GONE"


def test_a_real_run_is_not_looked_for_on_an_emulated_cluster_nor_the_reverse(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, {"5": replace(row(run.folder))}, {"SLURM_CONF": "emulated"})
    assert queue.controller(run) is None
    assert queue.states([run]) == {}
    run.set_state("running", emulated=True)
    assert queue.states([run])[run.folder].state == "RUNNING"
    asked(monkeypatch, {"5": row(run.folder)}, {})
    assert queue.controller(run) is None
    assert queue.states([run])[run.folder].state == "GONE"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": 3, "job_id": [1], "cluster": null}', "\udcff"])
def test_a_damaged_state_is_no_state(run: Run, text: str) -> None:
    run.state_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    write_json(run.manifest_file, {"job_id": "5", "cluster": "noctua2", "emulated": True})
    assert (run.job_id, run.cluster, run.state().get("state")) == ("5", "noctua2", None)
    assert run.emulated
