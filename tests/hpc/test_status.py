"""hpc status of one run: what it was trained on, from its newest whole checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc.cli import main
from hpc.runs import Run, mark_finished, write_json
from monitoring.recorder import Recorder
from trainer import checkpoint_folder

SOURCES = {"de": {"tokens": 3000, "epochs": 1.5}, "en": {"tokens": 9000, "epochs": 0.25}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Saved at steps 8 and 16; a spike at step 18 led back to the latter, which was saved again with what it skips."""
    run = Run(tmp_path / "runs" / "demo" / "20260101-000000-0000")
    folder = run.attempts / "0"
    folder.mkdir(parents=True)
    run.config_file.write_text("train:\n  tokens: 24000\n")
    write_json(run.state_file, {"state": "failed", "reason": "for this test"})
    record = Recorder(folder, 0, 1, run.id, 0)
    record.step(step=16, tokens=12288, loss=2.0)
    record.event("spike", step=18, loss=9.25, grad_norm=3.0, samples=[136, 144], sigma=7.04)
    record.event("rewound", step=16, from_step=18, to_step=16, skipped=[128, 144])
    record.close()
    for step, next_sample, skipped in ((8, 64, []), (16, 144, [[40, 48], [128, 144]])):
        save(run, step, next_sample=next_sample, skipped=skipped, sources=SOURCES)
    return run


def save(run: Run, step: int, **progress: object) -> None:
    temporary = checkpoint_folder.make_temporary(run.checkpoints, step)
    marker = {"progress": {"step": step, **progress}}
    checkpoint_folder.commit(run.checkpoints, temporary, step, marker)


def status(run: Run, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["status", str(run.folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row


def test_the_state_of_the_data_is_listed_with_what_was_skipped_and_why(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    row = status(run, capsys)
    why = "the loss spiked at step 18: 9.25, 7.0 standard deviations above the usual"
    assert row["checkpoint"] == {
        "step": 16,
        "next_sample": 144,
        "skipped": [{"first": 40, "last": 48, "why": ""}, {"first": 128, "last": 144, "why": why}],
    }
    assert main(["status", str(run.folder)]) == 0
    told = capsys.readouterr().out
    assert "checkpoint: step 16; the next sample is 144" in told
    assert f"skipped: samples 128 to 143: {why}" in told


def test_tokens_of_each_source_are_listed_that_with_most_first(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(run, capsys)["sources"] == [
        {"source": "en", "tokens": 9000, "share": 0.75, "epochs": 0.25},
        {"source": "de", "tokens": 3000, "share": 0.25, "epochs": 1.5},
    ]
    assert main(["status", str(run.folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["en", "9,000", "75.00%", "0.25"] in rows and ["de", "3,000", "25.00%", "1.50"] in rows


def test_a_checkpoint_whose_marker_is_damaged_is_passed_over(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.checkpoints / "step-16" / "COMPLETE").write_text("{")
    assert status(run, capsys)["checkpoint"] == {"step": 8, "next_sample": 64, "skipped": []}


def test_a_finished_run_without_checkpoints_keeps_its_account(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (8, 16):
        checkpoint_folder.remove(run.checkpoints / f"step-{step}")
    assert status(run, capsys)["sources"] == []
    mark_finished(run.folder, step=20, tokens=15360, by_source={"de": {"tokens": 15360, "epochs": 2.0}})
    row = status(run, capsys)
    assert row["checkpoint"] is None
    assert row["sources"] == [{"source": "de", "tokens": 15360, "share": 1.0, "epochs": 2.0}]


def test_a_run_that_trains_nothing_has_no_account(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (8, 16):
        checkpoint_folder.remove(run.checkpoints / f"step-{step}")
    mark_finished(run.folder, sources=19, train_tokens=10**6)  # as job=prepare says
    row = status(run, capsys)
    assert (row["checkpoint"], row["sources"]) == (None, [])
