"""How often to save: the interval that loses least, in steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import CheckpointConfig
from trainer.interval import FIRST, Cost, due, optimal_s, steps_between

SECONDS = st.floats(1e-3, 1e4)
MTTF = st.floats(60.0, 1e7)


def expected_loss(interval: float, lost: float, mttf: float) -> float:
    """Time that a second of work takes, with failures at random moments and no time for restarts (Daly, eq. 13)."""
    return mttf * math.expm1((interval + lost) / mttf) / interval


@given(lost=SECONDS, mttf=MTTF)
def test_no_other_interval_loses_much_less(lost: float, mttf: float) -> None:
    best = optimal_s(lost, mttf)
    assert best > 0
    if lost < mttf / 2:  # beyond, training gets nowhere with any interval
        here = expected_loss(best, lost, mttf)
        for factor in (0.5, 0.9, 1.1, 2.0):
            assert here <= expected_loss(best * factor, lost, mttf) * 1.001


def test_cheap_saves_follow_youngs_formula() -> None:
    assert optimal_s(1.0, 86_400.0) == pytest.approx(math.sqrt(2 * 86_400), rel=0.01)
    assert optimal_s(100.0, 40.0) == 40.0


@given(blocked=SECONDS, beside=SECONDS, cpu=SECONDS, step=st.floats(1e-3, 100.0), hours=st.floats(0.1, 1000.0))
def test_a_save_is_complete_before_the_next_is_due(
    blocked: float, beside: float, cpu: float, step: float, hours: float
) -> None:
    cost = Cost(blocked_s=blocked, complete_s=blocked + beside, cpu_s=cpu, step_s=step)
    assert cost.lost_s <= cost.complete_s
    steps = steps_between(cost, hours)
    assert steps >= 1
    assert steps * step >= cost.complete_s * 0.999
    # At least the interval asked for, and at most one step longer.
    wanted = max(optimal_s(cost.lost_s, hours * 3600), cost.complete_s)
    assert wanted * 0.999 <= steps * step <= wanted + step * 1.001


def test_a_first_save_comes_early_and_tells_the_cost_of_the_next() -> None:
    auto = CheckpointConfig(every_steps="auto", mttf_hours=24.0)
    assert [step for step in range(1, FIRST + 1) if due(auto, step=step, saved_at=0, cost=None)] == [FIRST]
    cost = Cost(blocked_s=0.1, complete_s=2.0, cpu_s=0.4, step_s=1.0)
    steps = steps_between(cost, 24.0)
    assert steps == pytest.approx(math.sqrt(2 * 0.5 * 86_400), rel=0.01)
    assert not due(auto, step=FIRST + steps - 1, saved_at=FIRST, cost=cost)
    assert due(auto, step=FIRST + steps, saved_at=FIRST, cost=cost)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [5, 6, 7, 8, 9]), (4, [8])])
def test_a_number_of_steps_means_its_multiples(every: int, steps: list[int]) -> None:
    config = CheckpointConfig(every_steps=every)
    assert [step for step in range(5, 10) if due(config, step=step, saved_at=4, cost=None)] == steps
