"""Which routed rows get a slot of their expert, against a loop that goes through them one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.config import MoEConfig, Scope
from trainer.model.dispatch import Gather, capacity, dropless, limited


def taken(expert_BSK: Tensor, slots: int, scope: Scope, draw_BS: Tensor | None) -> set[tuple[int, int, int]]:
    """(sequence, token, choice) of the rows that find a slot: first choices first, then the smallest draws."""
    batch, size, top_k = expert_BSK.shape
    groups = [[b] for b in range(batch)] if scope is Scope.sequence else [list(range(batch))]
    found: set[tuple[int, int, int]] = set()
    for sequences in groups:
        tokens = [(b, s) for b in sequences for s in range(size)]
        if draw_BS is not None:
            tokens.sort(key=lambda token: draw_BS[token].item())
        load: dict[int, int] = {}
        for choice in range(top_k):
            for b, s in tokens:
                expert = int(expert_BSK[b, s, choice])
                if load.get(expert, 0) < slots:
                    load[expert] = load.get(expert, 0) + 1
                    found.add((b, s, choice))
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data(), scope=st.sampled_from(list(Scope)), random=st.booleans(), training=st.booleans())
def test_rows_get_slots_as_one_by_one(data: st.DataObject, scope: Scope, random: bool, training: bool) -> None:
    batch, size, experts = (data.draw(st.integers(1, most)) for most in (4, 9, 5))
    top_k = data.draw(st.integers(1, experts))
    config = MoEConfig(
        experts=experts,
        top_k=top_k,
        d_ff=8,
        capacity_factor=data.draw(st.sampled_from([0.25, 0.5, 1.0, 1.5, 8.0])),
        eval_capacity_factor=data.draw(st.sampled_from([None, 2.0])),
        min_capacity=data.draw(st.integers(1, 4)),
        scope=scope,
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    expert_BSK = torch.rand(batch, size, experts, generator=generator).argsort(-1)[..., :top_k]
    draw_BS = torch.rand(batch, size, generator=generator) if random else None

    dispatch = limited(expert_BSK, config, training=training, draw_BS=draw_BS)

    tokens = size if scope is Scope.sequence else batch * size
    slots = capacity(config, tokens, training=training)
    assert slots is not None
    expected = taken(expert_BSK, slots, scope, draw_BS)
    slot_BSK = dispatch.slot_N.view(batch, size, top_k)
    found = {(int(b), int(s), int(k)) for b, s, k in (slot_BSK >= 0).nonzero()}
    assert found == expected
    # Each slot belongs to one row and one expert, whose stretch it lies in.
    assert dispatch.rows_E is None
    stretch = dispatch.row_R.numel() // experts
    assert stretch == slots * (batch if scope is Scope.sequence else 1)
    for row, slot in enumerate(dispatch.slot_N.tolist()):
        if slot >= 0:
            assert dispatch.row_R[slot] == row
            assert slot // stretch == expert_BSK.flatten()[row]
    assert (dispatch.row_R >= 0).sum() == len(expected)


@pytest.mark.parametrize("random", [False, True])
def test_capacity_of_a_sequence_does_not_ask_what_lies_beside_it(random: bool) -> None:
    config = MoEConfig(experts=4, top_k=2, d_ff=8, capacity_factor=0.75, min_capacity=1)
    expert_BSK = torch.rand(5, 12, 4).argsort(-1)[..., :2]
    draw_BS = torch.rand(5, 12) if random else None
    together = limited(expert_BSK, config, training=True, draw_BS=draw_BS).slot_N.view(5, 12, 2) >= 0
    for b in range(5):
        own = None if draw_BS is None else draw_BS[b : b + 1]
        alone = limited(expert_BSK[b : b + 1], config, training=True, draw_BS=own).slot_N.view(12, 2) >= 0
        assert together[b].equal(alone)


@pytest.mark.parametrize(
    ("factor", "evaluation", "least", "tokens", "training", "expected"),
    [
        (1.0, None, 4, 2048, True, 128),
        (1.0, None, 4, 2048, False, 128),
        (1.25, 2.0, 4, 2048, True, 160),
        (1.25, 2.0, 4, 2048, False, 256),
        (1.0, None, 4, 20, True, 4),  # at least min_capacity
        (1.0, None, 1, 20, True, 2),  # rounded up
        (1.0, None, 4, 3, True, 3),  # at most all tokens
        (None, None, 4, 2048, True, None),
    ],
)
def test_capacity(
    factor: float | None, evaluation: float | None, least: int, tokens: int, training: bool, expected: int | None
) -> None:
    config = MoEConfig(
        experts=16, top_k=1, d_ff=8, capacity_factor=factor, eval_capacity_factor=evaluation, min_capacity=least
    )
    assert capacity(config, tokens, training=training) == expected
    if factor and expected and expected not in (least, tokens):
        assert expected == math.ceil((factor if training else evaluation or factor) * tokens / 16)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 30), experts=st.integers(1, 6), top_k=st.integers(1, 3))
def test_dropless_sorts_all_rows_by_expert_and_keeps_their_order(tokens: int, experts: int, top_k: int) -> None:
    top_k = min(top_k, experts)
    expert_TK = torch.rand(tokens, experts).argsort(-1)[:, :top_k]
    counts_E = expert_TK.flatten().bincount(minlength=experts)
    dispatch = dropless(expert_TK, counts_E)
    assert dispatch.rows_E is counts_E
    expert_R = expert_TK.flatten()[dispatch.row_R]
    assert expert_R.equal(expert_TK.flatten().sort().values)
    for expert in range(experts):
        assert dispatch.row_R[expert_R == expert].diff().gt(0).all()
    assert dispatch.row_R[dispatch.slot_N].equal(torch.arange(tokens * top_k))


@pytest.mark.parametrize("holes", [False, True])
def test_gathering_there_and_back_has_the_gradients_of_indexing(holes: bool) -> None:
    config = MoEConfig(experts=3, top_k=2, d_ff=8, capacity_factor=0.5 if holes else None, min_capacity=1)
    expert_BSK = torch.rand(2, 6, 3).argsort(-1)[..., :2]
    if holes:
        dispatch = limited(expert_BSK, config, training=True, draw_BS=None)
    else:
        expert_TK = expert_BSK.flatten(0, 1)
        dispatch = dropless(expert_TK, expert_TK.flatten().bincount(minlength=3))
    x_TD = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)

    def through(x_TD: Tensor) -> Tensor:
        x_RD = Gather.apply(x_TD, dispatch.row_R, dispatch.slot_N, 2, holes)
        return Gather.apply(x_RD.sin(), dispatch.slot_N, dispatch.row_R, 1, holes)

    expected = x_TD.repeat_interleave(2, dim=0).sin() * (dispatch.slot_N >= 0).unsqueeze(1)
    torch.testing.assert_close(through(x_TD), expected)
    weights = torch.randn_like(expected)
    [ours] = torch.autograd.grad((through(x_TD) * weights).sum(), x_TD)
    [theirs] = torch.autograd.grad((expected * weights).sum(), x_TD)
    torch.testing.assert_close(ours, theirs)
