"""Random draws that are functions of (seed, step, sample, place) alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import keys
from trainer.model import context
from trainer.model.context import dropout, uniform


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 40),
    step=st.integers(0, 1 << 30),
    first=st.integers(0, 1 << 50),
    place=st.integers(0, 1000),
    split=st.integers(1, 5),
)
def test_a_sample_draws_the_same_wherever_it_lies(seed: int, step: int, first: int, place: int, split: int) -> None:
    together = uniform(keys(seed, step, range(first, first + 6)), place, (3, 5))
    parts = [
        uniform(keys(seed, step, range(start, min(start + split, first + 6))), place, (3, 5))
        for start in range(first, first + 6, split)
    ]
    assert together.equal(torch.cat(parts))
    assert together.shape == (6, 3, 5)
    assert (together >= 0).all()
    assert (together < 1).all()


def test_making_draws_a_few_sequences_at_a_time_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    key_B = keys(1, 2, range(7))
    expected = uniform(key_B, 3, (4, 8))
    monkeypatch.setattr(context, "DRAWN", 70)
    assert uniform(key_B, 3, (4, 8)).equal(expected)


def test_draws_are_uniform() -> None:
    drawn = uniform(keys(0, 1, range(64)), 9, (4096,)).double()
    count = drawn.numel()
    assert abs(drawn.mean().item() - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(drawn.var().item() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    # Chi-square over 256 cells: 255 degrees of freedom, five deviations.
    cells = torch.histc(drawn, 256, 0, 1)
    chi = ((cells - count / 256).square() / (count / 256)).sum().item()
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    # Neighbours in a sequence, and neighbouring sequences, do not know of each other.
    for one, other in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()) < 5 / math.sqrt(count)


def test_another_seed_step_sample_or_place_draws_otherwise() -> None:
    drawn = [
        uniform(keys(seed, step, range(sample, sample + 1)), place, (4096,)).flatten()
        for seed in (0, 1)
        for step in (0, 1)
        for sample in (0, 1)
        for place in (0, 1, 8)
    ]
    table = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert table.abs().max() < 5 / math.sqrt(4096)


def test_dropout_keeps_the_mean_and_its_share() -> None:
    x = torch.ones(16, 64, 64, requires_grad=True)
    y = dropout(x, 0.25, keys(0, 1, range(16)), 3)
    kept = y != 0
    assert kept.double().mean().item() == pytest.approx(0.75, abs=5 * math.sqrt(0.1875 / x.numel()))
    assert y[kept].eq(1 / 0.75).all()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.equal(y.detach())


def test_nothing_is_drawn_without_a_key_or_a_probability() -> None:
    x = torch.randn(2, 3)
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, keys(0, 0, range(2)), 0) is x
