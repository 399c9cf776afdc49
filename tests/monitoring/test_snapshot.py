"""One run at one moment, whatever of its files is there yet, damaged, or gone again."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from monitoring import layout
from monitoring.evidence import Gathering
from monitoring.latest import Latest
from monitoring.reader import Reader
from monitoring.recorder import encode
from monitoring.snapshot import JobState
from tests.monitoring.generate import BATCH, START, Shape, Try, generate, loss

JOB = JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", ends=START + 900, emulated=True)


def test_a_snapshot_joins_the_files_of_a_run(tmp_path: Path) -> None:
    run = generate(tmp_path / "tiny_moe" / "20251122-1f2e")
    snapshot = Reader(run).read(JOB, now=START + 400)
    assert (snapshot.name, snapshot.id, snapshot.cluster) == ("tiny_moe", "20251122-1f2e", "noctua2")
    assert snapshot.state == "running" and snapshot.emulated and not snapshot.done and snapshot.job == JOB
    assert (snapshot.step, snapshot.tokens) == (290, 290 * BATCH)
    assert (snapshot.target_steps, snapshot.target_tokens, snapshot.share) == (500, 500 * BATCH, 0.58)
    assert snapshot.tokens_per_s == pytest.approx(BATCH / 0.85, rel=0.05)
    assert snapshot.eta_s == pytest.approx(210 * 0.85, rel=0.05)
    assert snapshot.loss.values.tolist() == [loss(step) for step in range(1, 291)]
    assert snapshot.metrics["loss"] == loss(290) and "validation_loss" in snapshot.metrics
    assert [(a.number, a.cause, a.first_step, a.last_step, a.lost_steps) for a in snapshot.attempts] == [
        (0, "time_limit", 1, 120, 0),
        (1, "node_failure", 121, 201, 51),
        (2, None, 151, 290, 0),
    ]
    assert [a.resumed_from for a in snapshot.attempts] == [0, 120, 150]
    assert snapshot.lost_steps == 51
    assert [load.layer for load in snapshot.experts] == [2, 4]
    assert snapshot.experts[0].shares.mean() == pytest.approx(1.0)
    assert snapshot.log_name == "rank-0.log" and snapshot.log[-1].startswith("step 290 of 500")
    with pytest.raises(FrozenInstanceError):
        snapshot.step = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_that_waits_has_no_figures_and_no_false_ones(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 0),), layers=()))
    shutil.rmtree(run / layout.ATTEMPTS)
    snapshot = Reader(run).read()
    assert snapshot.step is snapshot.tokens is snapshot.tokens_per_s is snapshot.eta_s is snapshot.updated is None
    assert snapshot.job is None and snapshot.attempts == () and snapshot.share == 0.0
    assert (snapshot.log_name, snapshot.log) == ("job.log", ("attempt 0",))


def test_only_the_marker_of_the_end_makes_a_run_finished(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 100),), steps=100))
    reader = Reader(run)
    assert not reader.read(JobState("17", "COMPLETED")).done
    (run / layout.FINISHED).write_text('{"step": 100}')
    (run / layout.SAMPLE).write_text("Guten Tag")
    snapshot = reader.read()
    assert snapshot.done and snapshot.state == "finished" and snapshot.eta_s is None
    assert snapshot.attempts[-1].cause == "finished"  # the supervisor has not said so yet
    assert snapshot.summary == {"step": 100} and snapshot.sample == "Guten Tag"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"nodes": 3, "resumed_from": "x", "job_id": 4}'])
def test_damaged_files_of_the_supervisor_cost_only_what_they_said(tmp_path: Path, content: str) -> None:
    run = generate(tmp_path / "run")
    layout.attempt_info(layout.attempt_folder(run, 2)).write_text(content)
    (run / layout.STATE).write_text(content)
    snapshot = Reader(run).read()
    assert snapshot.step == 290 and snapshot.lost_steps == 51


def test_a_run_that_is_deleted_while_watched_is_an_empty_one(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    reader = Reader(run)
    assert reader.read().step == 290
    shutil.rmtree(run)
    snapshot = reader.read()
    assert snapshot.step is None and snapshot.state == "unknown"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        Reader(tmp_path)


def test_a_second_look_takes_what_is_new(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 100, "time_limit"),)))
    reader = Reader(run)
    assert reader.read().step == 100
    more = generate(tmp_path / "more", Shape(tries=(Try(0, 0), Try(80, 90))))
    shutil.copytree(layout.attempt_folder(more, 1), layout.attempt_folder(run, 1))
    snapshot = reader.read()
    assert (snapshot.step, snapshot.lost_steps, len(snapshot.attempts)) == (90, 20, 2)


def test_the_goodput_of_a_run_that_is_over_stays_what_it_was(tmp_path: Path) -> None:
    """Also where the supervisor died, and nobody wrote when the attempt ended."""
    run = generate(tmp_path / "run", Shape((Try(0, 60),), layers=()))
    (run / layout.STATE).write_text(json.dumps({"state": "cancelled"}))
    first, later = (Reader(run).read(now=START + after).outlook for after in (300, 86_400))
    assert first.seconds == later.seconds and first.ettr == later.ettr
    assert first.ettr is not None and first.ettr > 0.5


def test_a_rank_that_hangs_for_hours_keeps_its_last_summaries(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape((Try(0, 60),), world_size=2, layers=()))
    samples = [encode(100 + n, START + 60 + 10 * n, "device", {"gpu_util": 0.0, "note": 1.0}) for n in range(2000)]
    with layout.rank_records(layout.attempt_folder(run, 0), 1).open("ab") as file:
        file.write(b"".join(line for each in samples for line in each))
    reader = Reader(run)
    (_, pulse) = Gathering(run).gather(reader.read(now=START + 30_000), reader.history, {}).pulses
    assert pulse.steps.tolist() == [10, 20, 30, 40, 50, 60] and len(pulse.devices) == 64


def test_the_records_of_a_device_are_found_behind_the_steps_since_the_last_one(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape((Try(0, 60),), world_size=1, layers=()))
    lines = []
    for minute in range(30):
        lines += encode(100 + len(lines), START + 60 * minute, "device", {"gpu_util": minute / 100})
        steps = ({"step": 61 + 200 * minute + n, "tokens": 1, "loss": 1.0} for n in range(200))
        lines += [line for step in steps for line in encode(100 + len(lines), START + 60 * minute, "step", step)]
    with layout.rank_records(layout.attempt_folder(run, 0), 0).open("ab") as file:
        file.write(b"".join(lines))
    reader, gathering = Reader(run), Gathering(run)
    for _ in range(2):
        (pulse,) = gathering.gather(reader.read(now=START + 1800), reader.history, {}).pulses
        assert [record["gpu_util"] for record in pulse.devices] == [minute / 100 for minute in range(18, 30)]
    assert Latest(run, ("device", "step")).read()[0]["device"]["gpu_util"] == 0.29


def test_a_rank_without_a_file_moves_no_other_to_another_node(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape((Try(0, 60),), world_size=4, layers=()))
    for rank in (2, 3):
        layout.rank_records(layout.attempt_folder(run, 0), rank).unlink()
    reader = Reader(run)
    snapshot = reader.read(now=START + 100)
    pulses = Gathering(run).gather(snapshot, reader.history, {}).pulses
    assert [each.node for each in pulses] == [snapshot.attempts[-1].node(0), snapshot.attempts[-1].node(1)]
    assert len({each.node for each in pulses}) == 1
