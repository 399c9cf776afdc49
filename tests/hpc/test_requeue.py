"""What follows the end of an attempt."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.compose import compose
from hpc.config import After, Policy, RequeueConfig
from hpc.ledger import Record
from hpc.requeue import BLAMELESS, Action, Cause, Decision, decide, fruitless

POLICIES: RequeueConfig = compose(["job=hello"]).requeue


def attempts(*ends: tuple[str, int | None]) -> list[Record]:
    return [Record(number=i, job_id="1", cause=cause, step=step) for i, (cause, step) in enumerate(ends)]


def after(past: list[Record], policies: RequeueConfig = POLICIES, **known: Any) -> Decision:
    return decide(past, policies, **{"max_fruitless": 3, "seconds_left": 1e6, "grace": 60, **known})


def follow(past: list[Record], **known: Any) -> Action:
    return after(past, **known).action


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
        ("host_memory", Action.restart),
        ("gpu_memory", Action.restart),
        ("gpu_fault", Action.requeue),
        ("network", Action.restart),
        ("hang", Action.restart),
        ("storage", Action.restart),
        ("error", Action.restart),
    ],
)
def test_each_cause_has_its_action(cause: str, action: Action) -> None:
    assert follow(attempts((cause, 5))) is action


def test_a_crash_near_the_end_of_the_allocation_is_requeued() -> None:
    assert follow(attempts(("crash", 5)), seconds_left=100) is Action.requeue


def test_three_attempts_without_a_new_step_stop_the_chain() -> None:
    past = attempts(("time_limit", 10), ("crash", 10), ("crash", 10), ("time_limit", None))
    assert follow(past[:3]) is Action.restart
    assert follow(past) is Action.stop
    assert "3 attempts" in after(past).reason


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


def test_every_cause_that_is_followed_has_a_policy_and_the_other_way_round() -> None:
    ends = {Cause.finished, Cause.cancelled, Cause.refused, Cause.diverged}
    assert {cause.value for cause in Cause if cause not in ends} == {f.name for f in fields(RequeueConfig)}


def test_a_budget_counts_over_the_run_whatever_was_gained_between() -> None:
    policies = replace(POLICIES, crash=Policy(action=After.restart, budget=2))
    past = attempts(("crash", 1), ("time_limit", 2), ("crash", 3), ("crash", 4))
    assert after(past[:3], policies).action is Action.restart
    assert after(past, policies).action is Action.stop
    assert "requeue.crash.budget=2" in after(past, policies).reason


def test_the_same_error_twice_without_a_step_is_in_the_code() -> None:
    assert follow(attempts(("error", 5))) is Action.restart
    assert follow(attempts(("error", 5), ("error", 5), ("error", 5))) is Action.stop
    assert follow(attempts(("error", 5), ("error", 8), ("error", 9))) is Action.restart


def test_a_restart_that_ends_in_the_same_way_gives_the_nodes_back() -> None:
    first = replace(attempts(("hang", 5))[0], action="restart")
    second = replace(first, number=1)
    assert follow([first]) is Action.restart
    assert follow([first, second]) is Action.requeue
    assert follow([first, replace(second, cause="crash")]) is Action.restart
    assert follow([first, replace(second, restart_count=1)]) is Action.restart


def test_suspects_are_left_out_as_far_as_nodes_can_be_spared() -> None:
    past = [
        replace(a, suspects=[f"n{a.number}"]) for a in attempts(("gpu_fault", 1), ("time_limit", 2), ("gpu_fault", 3))
    ]
    assert after(past, spare_nodes=5).exclude == ("n2", "n0")
    assert after(past, spare_nodes=1).exclude == ("n2",)
    assert after(past, spare_nodes=0).exclude == ()
    assert after(past, spare_nodes=0).action is Action.requeue


@pytest.mark.parametrize("cause", ["host_memory", "gpu_memory"])
def test_out_of_memory_is_answered_once_with_a_smaller_micro_batch(cause: str) -> None:
    past = attempts((cause, None), (cause, 4))
    assert after(past[:1], can_shrink=True) == Decision(Action.restart, f"{cause.replace('_', ' ')} ()", shrink=True)
    assert not after(past[:1]).shrink
    assert after(past, can_shrink=True).action is Action.stop


def test_never_stops_at_whatever_goes_wrong() -> None:
    never = compose(["job=hello", "requeue=never"]).requeue
    assert after(attempts(("crash", 5)), never).action is Action.stop
    assert after(attempts(("time_limit", 5)), never).action is Action.requeue
