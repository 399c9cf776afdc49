"""Learning rates by tokens, and who is decayed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.config import OptimConfig, TrainConfig
from trainer.optim import adamw, learning_rate

TRAIN = TrainConfig(tokens=1000, batch_tokens=10)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [(1, 0.01), (50, 0.5), (100, 1.0), (550, 0.55), (1000, 0.1), (2000, 0.1)],
)
def test_rate_warms_up_to_its_peak_then_follows_the_cosine_and_stays(tokens: int, rate: float) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.1, warmup_tokens=100)
    assert learning_rate(tokens, optim, TRAIN) == pytest.approx(rate)


def test_decay_may_end_before_or_after_the_run() -> None:
    early = OptimConfig(lr=1.0, decay_tokens=500)
    assert learning_rate(500, early, TRAIN) == pytest.approx(0.0)
    late = OptimConfig(lr=1.0, decay_tokens=2000)
    assert learning_rate(1000, late, TRAIN) == pytest.approx(0.5)


@given(
    tokens=st.integers(1, 10**13),
    warmup=st.integers(0, 10**12),
    end=st.integers(1, 10**12) | st.none(),
    floor=st.floats(0, 1),
)
def test_rate_never_leaves_its_bounds(tokens: int, warmup: int, end: int | None, floor: float) -> None:
    optim = OptimConfig(lr=1.0, min_lr=floor, warmup_tokens=warmup, decay_tokens=end)
    rate = learning_rate(tokens, optim, TRAIN)
    assert 0 < rate <= 1.0 or (rate == floor == 0) or tokens < warmup
    assert tokens < warmup or rate >= floor - 1e-12


def test_matrices_are_decayed_and_vectors_spared() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4))
    optimizer = adamw(model.named_parameters(), OptimConfig(lr=0.1, weight_decay=0.3))
    decayed, spared = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
