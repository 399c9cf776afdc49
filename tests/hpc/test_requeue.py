"""What follows the end of an attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.ledger import Record
from hpc.requeue import BLAMELESS, Action, Cause, decide, fruitless


def attempts(*ends: tuple[str, int | None]) -> list[Record]:
    return [Record(number=i, job_id="1", cause=cause, step=step) for i, (cause, step) in enumerate(ends)]


def follow(past: list[Record], left: float = 1e6) -> Action:
    return decide(past, max_fruitless=3, seconds_left=left, grace=60).action


@pytest.mark.parametrize(
    ("cause", "action"),
    [
        ("finished", Action.end),
        ("cancelled", Action.end),
        ("refused", Action.stop),
        ("diverged", Action.stop),
        ("time_limit", Action.requeue),
        ("preemption", Action.requeue),
        ("node_failure", Action.requeue),
        ("crash", Action.restart),
    ],
)
def test_each_cause_has_its_action(cause: str, action: Action) -> None:
    assert follow(attempts((cause, 5))) is action


def test_a_crash_near_the_end_of_the_allocation_is_requeued() -> None:
    assert follow(attempts(("crash", 5)), left=100) is Action.requeue


def test_three_attempts_without_a_new_step_stop_the_chain() -> None:
    past = attempts(("time_limit", 10), ("crash", 10), ("crash", 10), ("time_limit", None))
    assert follow(past[:3]) is Action.restart
    assert follow(past) is Action.stop
    assert "3 attempts" in decide(past, max_fruitless=3, seconds_left=1e6, grace=60).reason


def test_repeating_lost_steps_is_no_progress() -> None:
    past = attempts(("crash", 50), ("crash", 50), ("crash", 50), ("crash", 50))
    assert fruitless(past) == 3


def test_preemptions_and_node_failures_do_not_count() -> None:
    past = attempts(
        ("crash", None), ("preemption", None), ("node_failure", None), ("preemption", None), ("crash", None)
    )
    assert fruitless(past) == 2
    assert follow(past) is Action.restart


@given(
    st.lists(
        st.tuples(st.sampled_from(["crash", "time_limit", *sorted(BLAMELESS)]), st.none() | st.integers(0, 9)),
        min_size=1,
    )
)
def test_a_new_step_always_goes_on_and_counts_from_zero(ends: list[tuple[str, int | None]]) -> None:
    past = [*attempts(*ends), Record(number=len(ends), job_id="1", cause="crash", step=10)]
    assert fruitless(past) == 0
    assert follow(past) is Action.restart


@given(st.lists(st.sampled_from(sorted(BLAMELESS)), min_size=1, max_size=20))
def test_blameless_ends_alone_never_stop_a_run(causes: list[str]) -> None:
    assert follow(attempts(*[(cause, None) for cause in causes])) is Action.requeue


def test_every_cause_is_decided() -> None:
    for cause in Cause:
        assert follow(attempts((cause.value, 1))) in Action
