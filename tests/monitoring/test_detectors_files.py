"""Findings of run folders: what of a file can be judged, and what cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import monitoring
from monitoring import layout
from monitoring.findings import Finding
from monitoring.reader import Reader
from monitoring.recorder import PROTOCOL
from monitoring.report.run import report
from monitoring.snapshot import JobState
from tests.monitoring.generate import START, Shape, Try, generate

HOURS_LATER = START + 20_000


def a_run(folder: Path) -> Path:
    """A running attempt whose last step is hours old."""
    run = generate(folder / "run", Shape((Try(0, 200),), layers=(), world_size=8))
    (run / layout.STATE).write_text('{"state": "running"}')
    return run


def judged(run: Path) -> list[Finding]:
    return list(Reader(run).read(JobState("17", "RUNNING", started=START - 5), HOURS_LATER).findings)


def of(kind: str, found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.kind == kind]


def newer(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"protocol":%d' % PROTOCOL, b'"protocol":%d' % (PROTOCOL + 1)))


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)  # as for somebody who may not read it, also for root


def test_records_of_a_newer_version_ask_for_an_update_and_damaged_ones_for_a_look_at_the_disk(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    path = layout.rank_records(layout.attempt_folder(run, 0), 0)
    path.write_bytes(path.read_bytes() + b"torn\n")
    assert ["hpc doctor" in each.do for each in of("records_lost", judged(run))] == [True]
    newer(path)
    assert "update hpc here: what wrote them is newer" in {each.do for each in of("records_lost", judged(run))}


@pytest.mark.parametrize("spoil", [newer, unreadable])
def test_records_that_cannot_be_read_are_no_silence(tmp_path: Path, spoil: object) -> None:
    run = a_run(tmp_path)
    assert of("stall", judged(run))
    spoil(layout.rank_records(layout.attempt_folder(run, 0), 0))  # type: ignore[operator]
    found = judged(run)
    assert not of("stall", found) and not of("dead_rank", found)
    assert of("records_lost", found)


@pytest.mark.parametrize("spoil", [newer, unreadable])
def test_a_rank_whose_records_cannot_be_read_is_not_dead(tmp_path: Path, spoil: object) -> None:
    run = a_run(tmp_path)
    spoil(layout.rank_records(layout.attempt_folder(run, 0), 2))  # type: ignore[operator]
    assert not of("dead_rank", judged(run))


def test_what_was_measured_of_checkpoints_is_judged_and_kept(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape((Try(0, 200, "finished"),), layers=()))

    def measure(step: int, loss: float) -> None:
        path = layout.evaluation(run, step)
        path.parent.mkdir(exist_ok=True)
        said = {"step": step, "loss": loss, "trained_tokens": 4096 * step, "tokens": 1000}
        path.write_text(json.dumps({**said, "by_source": {"de": {"loss": loss + 0.5}}}))

    for step in range(10, 130, 10):
        measure(step, 3 - 0.001 * step)
    reader = Reader(run)
    assert not of("evaluation_out_of_line", list(reader.read(now=HOURS_LATER).findings))
    measure(110, 4.0)
    layout.evaluation(run, 130).write_text('{"loss": "?"}')
    layout.evaluation(run, 140).write_text('{"loss":')
    found = of("evaluation_out_of_line", list(reader.read(now=HOURS_LATER + 60).findings))
    assert {each.title for each in found} == {
        "checkpoint_loss 4 at step 110 is out of line",
        "checkpoint_loss/de 4.5 at step 110 is out of line",
    }
    frame = monitoring.load(run).evaluations
    assert (
        list(frame.columns) == ["step", "trained_tokens", "tokens", "loss", "perplexity", "loss/de"]
        and len(frame) == 12
    )
    assert frame["perplexity"].tolist()[10] == pytest.approx(math.exp(4))
    assert "Evaluations of checkpoints" in report(run) and "54.60" in report(run)
    assert monitoring.sql(run, "select max(loss) most from evaluations")["most"].tolist() == [4.0]


def test_a_run_without_evaluations_has_an_empty_frame(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert not len(monitoring.load(run).evaluations) and "Evaluations" not in report(run)
