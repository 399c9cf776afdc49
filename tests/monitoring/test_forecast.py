"""What a run's past lets expect: checked against a simulation where a formula is an approximation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.forecast import Course, Range, best_interval, ettr, expected_ettr, failures, on_nodes, seconds_left
from monitoring.goodput import Bucket

HOUR = 3600.0


def simulated(*, mtbf: float, restart: float, interval: float, save: float, work: float) -> float:
    """Productive share of a run that fails at random."""
    dice, done, wall = random.Random(1), 0.0, 0.0
    fails = dice.expovariate(1 / mtbf)
    while done < work:
        block = interval + save
        if fails >= block:
            fails, wall, done = fails - block, wall + block, done + interval
        else:
            wall += fails + restart
            fails = dice.expovariate(1 / mtbf)
    return done / wall


def test_what_failures_leave_is_what_a_simulation_gives() -> None:
    for mtbf, interval in ((24 * HOUR, 53.7 * 60), (24 * HOUR, 4 * HOUR), (6 * HOUR, 26.8 * 60)):
        given = {"mtbf": mtbf, "restart": 600.0, "interval": interval, "save": 60.0}
        truth = simulated(**given, work=20_000 * HOUR)
        assert expected_ettr(**given) == pytest.approx(truth, abs=0.01)


def test_no_other_interval_loses_less() -> None:
    for mtbf in (6 * HOUR, 84 * HOUR):
        best = best_interval(save=60.0, mtbf=mtbf)
        assert best is not None
        shares = {
            factor: simulated(mtbf=mtbf, restart=600.0, interval=best * factor, save=60.0, work=50_000 * HOUR)
            for factor in (0.4, 1.0, 2.5)
        }
        assert max(shares, key=shares.__getitem__) == 1.0


def test_without_a_cost_or_a_failure_no_interval_is_best() -> None:
    assert best_interval(save=0.0, mtbf=HOUR) is None
    assert best_interval(save=60.0, mtbf=math.inf) is None
    assert best_interval(save=600.0, mtbf=100.0) == 100.0


def test_only_ends_before_which_nothing_was_saved_are_failures() -> None:
    assert failures(["time_limit", "node_failure", "crash", "preemption", "finished", None]) == 2


def test_queueing_counts_in_the_wall_clock_and_not_in_the_time_on_nodes() -> None:
    seconds = dict.fromkeys(Bucket, 0.0) | {Bucket.queue: 50.0, Bucket.training: 40.0, Bucket.startup: 10.0}
    assert ettr(seconds) == 0.4
    assert on_nodes(seconds) == 50.0
    assert ettr(dict.fromkeys(Bucket, 0.0)) is None


def test_slices_and_failures_make_a_run_longer() -> None:
    gap = Range(60.0, 600.0, 7200.0)
    smooth = Course(Range(100.0, 100.0, 100.0), gap, math.inf)
    assert seconds_left(1000.0 * HOUR, smooth) == (10 * HOUR,) * 3
    sliced = Course(Range(100.0, 100.0, 100.0), gap, 4 * HOUR)
    assert seconds_left(1000.0 * HOUR, sliced) == (10 * HOUR + 120, 10 * HOUR + 1200, 10 * HOUR + 14400)
    failing = Course(Range(100.0, 100.0, 100.0), gap, math.inf, mtbf=5 * HOUR, interval=HOUR)
    likely = seconds_left(1000.0 * HOUR, failing)
    assert likely is not None
    assert likely.likely == pytest.approx(10 * HOUR + 2 * (600 + HOUR / 2))


speeds = st.tuples(*[st.floats(1e-3, 1e9)] * 3).map(lambda found: Range(*sorted(found)))
gaps = st.tuples(*[st.floats(0, 1e6)] * 3).map(lambda found: Range(*sorted(found)))


@given(st.floats(0, 1e15), st.builds(Course, speeds, gaps, st.floats(1, 1e7) | st.just(math.inf), st.floats(60, 1e7)))
def test_a_range_is_one(tokens: float, course: Course) -> None:
    found = seconds_left(tokens, course)
    assert found is not None
    assert found.low <= found.likely * (1 + 1e-9) and found.likely <= found.high * (1 + 1e-9)


def test_without_a_speed_nothing_can_be_said() -> None:
    assert seconds_left(1.0, Course(Range(0.0, 0.0, 0.0), Range(0, 0, 0), math.inf)) is None
