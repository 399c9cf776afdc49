"""Findings of run folders: what of a file can be judged, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring import layout
from monitoring.findings import Finding
from monitoring.reader import Reader
from monitoring.recorder import PROTOCOL
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
