"""Every second of a run is in one bucket, whatever its clocks and its attempts did; and in the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.goodput import Bucket, Past, Pause, Span, Work, drawn, spans, totals

moments = st.floats(-1e5, 1e5, allow_nan=False)
seconds = st.one_of(st.floats(-10, 1e4, allow_nan=False), st.just(float("nan")))


@st.composite
def works(draw: st.DrawFn) -> Work:
    count = draw(st.integers(0, 6))
    column = st.lists(seconds, min_size=count, max_size=count).map(np.array)
    return Work(
        times=np.array(draw(st.lists(moments, min_size=count, max_size=count)), float),
        step_s=draw(column),
        evaluation_s=draw(column),
        checkpoint_s=draw(column),
        rewind_s=draw(column),
        kept=np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool),
        after=draw(st.lists(st.builds(Pause, moments, st.sampled_from(Bucket)), max_size=3)),
    )


actions = st.sampled_from([None, "end", "stop", "requeue", "restart"])
pasts = st.lists(
    st.builds(Past, st.integers(0, 9), moments, st.none() | moments, actions, st.floats(0, 300), works()), max_size=5
)


@given(st.lists(moments, max_size=3), pasts, moments, st.booleans())
def test_the_buckets_add_up_to_the_wall_clock(asked: list[float], attempts: list[Past], now: float, over: bool) -> None:
    found = spans(asked, attempts, now, over=over)
    assert all(span.end > span.begin for span in found)
    assert all(one.end == other.begin for one, other in pairwise(found))
    if found:
        assert found[0].begin == min([*asked, *(past.began for past in attempts[:1])])
        assert sum(totals(found).values()) == pytest.approx(found[-1].end - found[0].begin, abs=1e-6)


@dataclass
class Told:
    """A run as it really went, second by second, and what its attempts recorded of it."""

    at: float = 1000.0
    truth: list[Span] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.truth = []

    def spend(self, bucket: Bucket, seconds: float, attempt: int | None = None) -> float:
        if seconds > 0:
            self.truth.append(Span(bucket, self.at, self.at + seconds, attempt))
        self.at += seconds
        return seconds


@dataclass(frozen=True)
class Plan:
    """One attempt as it will go."""

    queue: float
    hold: float
    startup: float
    steps: Sequence[tuple[float, float, float]]  # seconds of evaluation and checkpoint before a step, then of it
    lost: int
    final_save: float
    ending: float


durations = st.floats(0.5, 100)
plans = st.builds(
    Plan,
    durations,
    durations,
    durations,
    st.lists(st.tuples(durations, durations, st.just(5.0)), min_size=1, max_size=8),
    st.integers(0, 3),
    durations,
    durations,
)


@given(st.lists(plans, min_size=1, max_size=4))
def test_a_run_whose_course_is_known_is_accounted_for_within_a_second(told: list[Plan]) -> None:
    run, attempts = Told(), []
    submitted = run.at
    for number, plan in enumerate(told):
        if number:
            run.spend(Bucket.hold, plan.hold)
            attempts[-1] = replace(attempts[-1], hold=plan.hold)
        run.spend(Bucket.queue, plan.queue)
        attempts.append(_attempt(run, number, plan))
    found = totals(spans([submitted], attempts, run.at, over=True))
    assert found == pytest.approx(totals(run.truth), abs=1.0)


def _attempt(run: Told, number: int, plan: Plan) -> Past:
    began = run.at
    run.spend(Bucket.startup, plan.startup, number)
    times, evaluation, checkpoint = [], [], []
    kept = [row < len(plan.steps) - plan.lost for row in range(len(plan.steps))]
    for row, (evaluated, saved, step) in enumerate(plan.steps):
        if row:
            evaluation.append(run.spend(Bucket.evaluation, evaluated, number))
            checkpoint.append(run.spend(Bucket.checkpoint, saved, number))
        else:
            evaluation.append(np.nan)
            checkpoint.append(np.nan)
        run.spend(Bucket.training if kept[row] else Bucket.repeated, step, number)
        times.append(run.at)
    run.spend(Bucket.checkpoint, plan.final_save, number)
    after = [Pause(run.at, Bucket.checkpoint)]
    run.spend(Bucket.ending, plan.ending, number)
    nothing = np.full(len(times), np.nan)
    work = Work(
        np.array(times),
        np.array([step for *_, step in plan.steps]),
        np.array(evaluation),
        np.array(checkpoint),
        nothing,
        np.array(kept),
        after,
    )
    return Past(number, began, run.at, "requeue", 0.0, work)


def _steady(times: list[float], step_s: list[float], **more: object) -> Work:
    nothing = np.full(len(times), np.nan)
    plain = Work(np.array(times), np.array(step_s), nothing, nothing, nothing, np.ones(len(times), bool))
    return replace(plain, **more)


def test_a_first_step_that_compiles_is_a_start_as_far_as_it_took_longer() -> None:
    work = _steady([140.0, 142.0, 144.0], [40.0, 2.0, 2.0])
    found = totals(spans([90.0], [Past(0, 100.0, 144.0, "end", 0.0, work)], 200.0, over=True))
    assert (found[Bucket.queue], found[Bucket.startup], found[Bucket.training]) == (10.0, 38.0, 6.0)


def _two(ended: float | None) -> list[Past]:
    """A first attempt of 900 steps from 1010 on, and a second one from 2000 on of 3890."""
    one = _steady([1010.0 + step for step in range(1, 901)], [1.0] * 900)
    two = _steady([2010.0 + step for step in range(1, 3891)], [1.0] * 3890)
    return [Past(0, 1000.0, ended, None if ended is None else "requeue", 0.0, one), Past(1, 2000.0, work=two)]


def test_an_attempt_of_whose_end_nobody_told_has_ended_when_another_begins() -> None:
    found = totals(spans([1000.0], _two(None), 5901.0, over=False))
    assert (found[Bucket.training], found[Bucket.startup], found[Bucket.unknown]) == (4791.0, 20.0, 90.0)
    assert found == pytest.approx(totals(spans([1000.0], _two(None), 5901.0, over=True)), abs=1.0)


def test_of_two_attempts_at_once_the_newer_one_counts() -> None:
    found = totals(spans([1000.0], _two(4000.0), 5901.0, over=False))
    assert (found[Bucket.training], found[Bucket.startup], found[Bucket.ending]) == (4791.0, 20.0, 90.0)


def test_an_attempt_that_began_before_the_one_before_it_does_not_take_that_ones_time() -> None:
    attempts = _two(1911.0)
    attempts[1] = replace(attempts[1], began=900.0)
    found = totals(spans([1000.0], attempts, 5901.0, over=False))
    assert found[Bucket.training] == pytest.approx(4791.0, abs=1.0)


def test_the_last_checkpoint_of_an_attempt_counts_also_where_nobody_told_of_its_end() -> None:
    work = _steady([101.0, 102.0], [1.0, 1.0], after=[Pause(107.0, Bucket.checkpoint)])
    found = totals(spans([100.0], [Past(0, 100.0, work=work)], 500.0, over=True))
    assert (found[Bucket.training], found[Bucket.checkpoint]) == (2.0, 5.0)


def test_a_gap_between_steps_that_nothing_explains_is_unknown() -> None:
    work = _steady([102.0, 104.0, 166.0], [2.0, 2.0, 2.0])
    found = totals(spans([100.0], [Past(0, 100.0, 166.0, "end", 0.0, work)], 200.0, over=True))
    assert (found[Bucket.unknown], found[Bucket.training]) == (60.0, 6.0)


@pytest.mark.parametrize("wrong", [{10: 1e9}, {10: 1e9, 11: 1e9 + 1, 60: 0.0}, {0: 1e9}, {99: 0.0}, {0: 0.0, 99: 1e9}])
@pytest.mark.parametrize("ended", [1110.0, None])
def test_a_clock_that_was_wrong_for_a_record_costs_no_other_step_its_time(
    wrong: dict[int, float], ended: float | None
) -> None:
    times = np.arange(1001.0, 1101.0)
    for row, time in wrong.items():
        times[row] = time
    work = _steady([*times], [1.0] * 100)
    found = totals(
        spans([990.0], [Past(0, 1000.0, ended, "end" if ended else None, 0.0, work)], 1110.0, over=bool(ended))
    )
    assert found[Bucket.training] == pytest.approx(100.0 if ended else 110.0, abs=10.0 if 99 in wrong else 3.0)
    assert sum(found.values()) == pytest.approx(120.0)


def test_a_run_that_a_person_resumed_was_stopped_until_then() -> None:
    first, second = Past(0, 10.0, 20.0, "stop"), Past(1, 95.0, 100.0, "end")
    found = totals(spans([0.0, 90.0], [first, second], 100.0, over=True))
    assert (found[Bucket.stopped], found[Bucket.queue]) == (70.0, 15.0)


def test_a_restart_inside_the_allocation_waits_in_no_queue() -> None:
    found = totals(spans([0.0], [Past(0, 0.0, 20.0, "restart"), Past(1, 21.0, 30.0, "end")], 30.0, over=True))
    assert found[Bucket.queue] == found[Bucket.hold] == 0.0
    assert found[Bucket.startup] == 30.0


def test_a_running_attempt_is_believed_for_a_while() -> None:
    past = Past(0, 100.0, None, None, 0.0, _steady([102.0, 104.0], [2.0, 2.0]))
    assert totals(spans([100.0], [past], 110.0, over=False))[Bucket.training] == 10.0
    late = totals(spans([100.0], [past], 300.0, over=False))
    assert (late[Bucket.training], late[Bucket.unknown]) == (14.0, 186.0)


def test_a_run_that_waits_is_in_the_queue_and_one_that_is_over_is_not() -> None:
    past = Past(0, 0.0, 10.0, "requeue", hold=4.0)
    waiting = totals(spans([0.0], [past], 30.0, over=False))
    assert (waiting[Bucket.hold], waiting[Bucket.queue]) == (4.0, 16.0)
    assert sum(totals(spans([0.0], [replace(past, action="stop")], 30.0, over=True)).values()) == 10.0


# -- what a bar shows of it --


@given(
    st.lists(st.tuples(st.sampled_from(list(Bucket)), st.floats(0.01, 1e4)), min_size=1, max_size=60),
    st.integers(2, 40),
)
def test_a_bar_has_no_gaps_and_keeps_its_ends(pieces: list[tuple[Bucket, float]], most: int) -> None:
    found, at = [], 1000.0
    for bucket, lasted in pieces:
        found.append(Span(bucket, at, at + lasted, 0))
        at += lasted
    shown = drawn(found, most)
    assert len(shown) <= most and (shown[0].begin, shown[-1].end) == (1000.0, at)
    assert all(one.end == two.begin for one, two in pairwise(shown))


def test_a_bar_shows_what_most_of_each_part_was_however_short_its_pieces() -> None:
    found, at = [Span(Bucket.queue, 0.0, 60.0)], 60.0
    for number in range(9000):  # a checkpoint every other moment; from the middle on it takes longer than the steps
        for bucket, lasted in ((Bucket.training, 3.0), (Bucket.checkpoint, 1.0 if number < 4500 else 1.1)):
            pieces = 1 if number < 4500 or bucket is Bucket.training else 3
            for _ in range(pieces):
                found.append(Span(bucket, at, at + lasted, 0))
                at += lasted
    shown = drawn(found)
    assert [span.bucket for span in shown if span.seconds > (at / 600)] == [Bucket.training, Bucket.checkpoint]
    assert sum(span.seconds for span in shown) == pytest.approx(at)
