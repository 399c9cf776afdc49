"""Learning rates by tokens, and who is decayed."""

from __future__ import annotations

import pytest
import torch
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


def test_state_that_is_there_from_the_start_changes_no_step() -> None:
    config = OptimConfig(lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-6)
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)
    plain.load_state_dict(ours.state_dict())
    reference = torch.optim.AdamW(
        plain.parameters(), lr=config.lr, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, foreach=False
    )
    optimizer = adamw(ours.named_parameters(), config)
    for _ in range(3):
        ours.weight.grad = torch.randn(4, 5)
        plain.weight.grad = ours.weight.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-5, atol=1e-7)
