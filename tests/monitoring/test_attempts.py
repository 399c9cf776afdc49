"""Attempts whose end nobody wrote down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monitoring.attempts import settled
from monitoring.goodput import Bucket, Span
from monitoring.outlook import Outlook
from monitoring.snapshot import Attempt, JobState, Snapshot

RUNS = Attempt(1, began=200.0)
LIVE = Snapshot(
    Path("r"),
    "r",
    "1",
    now=9000.0,
    state="running",
    job=JobState("17", "RUNNING"),
    attempts=(Attempt(0, began=100.0), RUNS),
    updated=260.0,
    outlook=Outlook(
        spans=(Span(Bucket.training, 100.0, 210.0, 0), Span(Bucket.training, 200.0, 9000.0, 1)),
    ),
)


def test_an_attempt_ends_where_the_next_one_begins_and_the_newest_goes_on() -> None:
    assert settled(LIVE) == (Attempt(0, began=100.0, ended=200.0, cause="unknown"), RUNS)


def test_nothing_goes_on_in_a_run_that_ended_or_whose_job_is_gone() -> None:
    for state in ("GONE", "PENDING", "NODE_FAIL"):
        gone = settled(replace(LIVE, job=JobState("17", state)))[1]
        assert (gone.ended, gone.cause) == (260.0, "unknown")
    spans = (Span(Bucket.training, 200.0, 300.0, 1),)
    over = replace(LIVE, state="cancelled", outlook=Outlook(spans=spans))
    assert (settled(over)[1].ended, settled(over)[1].cause) == (300.0, "cancelled")
    failed = replace(over, state="failed", attempts=(Attempt(0), replace(RUNS, ended=250.0, cause="crash")))
    assert settled(failed) == (Attempt(0, cause="unknown"), replace(RUNS, ended=250.0, cause="crash"))
