"""Judging steps: what is skipped, what is a spike, when training must end."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import LossScaleConfig, WatchConfig
from trainer.guard import Guard, NonFiniteError, SpikeError, Verdict
from trainer.spike import Spikes

usual = st.floats(0.1, 20)


@given(st.lists(usual, min_size=2, max_size=40), st.floats(0.5, 10), st.floats(0, 5), st.booleans())
def test_a_spike_lies_further_above_the_window_than_sigma_deviations_and_nowhere_else(
    losses: list[float], sigma: float, beyond: float, above: bool
) -> None:
    spikes = Spikes(sigma, len(losses), losses)
    mean = math.fsum(losses) / len(losses)
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in losses) / len(losses))
    scale = max(deviation, 1e-3 * mean)
    loss = mean + scale * sigma * ((1.001 + beyond) if above else (0.999 - beyond))
    assert spikes.is_spike(loss) == above


@given(st.lists(usual, max_size=30), st.integers(2, 31), st.floats(0, 1e6))
def test_until_the_window_is_full_nothing_is_a_spike(losses: list[float], window: int, loss: float) -> None:
    spikes = Spikes(6.0, window, losses[: window - 1])
    assert not spikes.is_spike(loss)


@given(st.lists(usual, min_size=1, max_size=50), st.integers(2, 20))
def test_the_window_holds_the_newest_and_goes_on_from_what_it_gave(losses: list[float], window: int) -> None:
    spikes, again = Spikes(6.0, window), Spikes(6.0, window)
    for number, loss in enumerate(losses):
        spikes.add(loss)
        if number == len(losses) // 2:
            again = Spikes(6.0, window, json.loads(json.dumps(spikes.losses)))
        elif number > len(losses) // 2:
            again.add(loss)
    assert spikes.losses == losses[-window:] == again.losses


def test_a_slope_and_noise_are_no_spikes_and_sigma_0_finds_none() -> None:
    falling = [10 * math.exp(-n / 100) + 2 + 0.1 * math.sin(n) for n in range(1000)]
    spikes = Spikes(6.0, 128)
    for loss in falling:
        assert not spikes.is_spike(loss)
        spikes.add(loss)
    assert spikes.is_spike(falling[-1] + 1)
    assert not Spikes(0.0, 128, falling).is_spike(1e9)


def guard(**fields: float) -> Guard:
    watch = WatchConfig(**{"skip_non_finite": 2, "spike_window": 4, **fields})  # type: ignore[arg-type]
    return Guard(watch, LossScaleConfig(minimum=1.0))


def failure(guard: Guard, *, rewinding: bool = False) -> Exception | None:
    return guard.failure(7, math.nan, 1.0, rewinding=rewinding, since="there is no checkpoint yet")


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, math.inf), (2.0, math.nan), (2.0, math.inf)])
def test_more_steps_in_a_row_that_are_not_finite_than_allowed_end_training(loss: float, norm: float) -> None:
    watched = guard()
    for _ in range(2):
        for _ in range(2):
            assert watched.judge(loss, norm, None) is Verdict.not_finite
            assert watched.troubled and failure(watched) is None
        assert watched.judge(2.0, 1.0, None) is Verdict.good
        assert not watched.troubled
    for _ in range(3):
        watched.judge(loss, norm, None)
    assert isinstance(failure(watched), NonFiniteError)


def test_an_overflow_of_fp16_counts_only_where_the_loss_scale_can_fall_no_further() -> None:
    watched = guard()
    for _ in range(20):
        assert watched.judge(2.0, math.inf, 1024.0) is Verdict.overflow
        assert not watched.troubled and failure(watched) is None
    for _ in range(2):
        assert watched.judge(2.0, math.nan, 1.0) is Verdict.overflow
        assert failure(watched) is None
    watched.judge(2.0, math.inf, 1.0)
    assert isinstance(failure(watched), NonFiniteError)
    assert watched.judge(math.nan, math.nan, 1024.0) is Verdict.not_finite  # the scale is not to blame for the loss


def test_a_spike_is_not_part_of_what_is_usual_unless_it_is_accepted() -> None:
    watched = guard(spike_rewinds=1)
    for loss in (2.0, 2.1, 1.9, 2.0):
        assert watched.judge(loss, 1.0, None) is Verdict.good
    assert watched.judge(9.0, 1.0, None) is Verdict.spike
    assert watched.judge(9.0, 1.0, None) is Verdict.spike
    assert failure(watched, rewinding=True) is None
    watched.rewinds = 1
    assert isinstance(failure(watched, rewinding=True), SpikeError)
    assert failure(watched) is None  # there is nothing to go back to
    watched.accept(9.0)
    assert watched.judge(9.0, 1.0, None) is Verdict.good


@given(
    st.lists(st.sampled_from([(2.0, 1.0), (2.1, 1.0), (9.0, 1.0), (math.nan, 1.0), (2.0, math.inf)]), max_size=40),
    st.integers(0, 40),
    st.sampled_from([None, 1.0, 8.0]),
)
def test_a_restart_changes_no_verdict(steps: list[tuple[float, float]], cut: int, scale: float | None) -> None:
    one, two = guard(), guard()
    for number, (loss, norm) in enumerate(steps):
        if number == cut:
            two = Guard(two.watch, two.scale, json.loads(json.dumps(two.state())))
        assert one.judge(loss, norm, scale) is two.judge(loss, norm, scale)
    assert one.state() == two.state()
