"""Bringing routed rows to their experts and back: without limit, or up to each expert's capacity.

Routed row t·K + k is token t on its way to its k-th expert. A dispatch puts the rows that are computed into an
order in which each expert owns a contiguous stretch, its slots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import MoEConfig, Scope


class Dispatch(NamedTuple):
    """Where rows go. ``rows_E`` is None where all experts own the same number of slots."""

    row_R: Tensor  # int64: the routed row in each slot; -1: the slot is empty
    slot_N: Tensor  # int64, of T·K rows: the slot of each routed row; -1: it is dropped
    rows_E: Tensor | None  # int64: slots of each expert


def dropless(expert_TK: Tensor, tokens_E: Tensor) -> Dispatch:
    """Every routed row gets a slot. Within an expert, rows keep the order of their tokens on every device."""
    row_R = expert_TK.flatten().argsort(stable=True)
    slot_N = torch.empty_like(row_R)
    slot_N[row_R] = torch.arange(row_R.numel(), device=row_R.device)
    return Dispatch(row_R, slot_N, tokens_E)


def capacity(config: MoEConfig, tokens: int, *, training: bool) -> int | None:
    """Rows that an expert takes of ``tokens`` tokens; None: as many as come (dropless).

    ceil(factor · tokens · K / E), at least ``min_capacity``, at most all tokens (GShard, arXiv:2006.16668,
    section 2.2).
    """
    factor = config.capacity_factor
    if factor is None:
        return None
    if not training and config.eval_capacity_factor is not None:
        factor = config.eval_capacity_factor
    wanted = math.ceil(factor * tokens * config.top_k / config.experts)
    return min(tokens, max(wanted, config.min_capacity))


def limited(expert_BSK: Tensor, config: MoEConfig, *, training: bool, draw_BS: Tensor | None) -> Dispatch:
    """Each expert has ``capacity`` slots for each sequence (or for all of the rank's, by ``scope``).

    Tokens' first choices come before their second ones; within these the first tokens come first, or, where
    there is a draw, those with the smallest numbers.
    """
    batch, size, top_k = expert_BSK.shape
    if config.scope is Scope.rank:
        expert_BSK = expert_BSK.reshape(1, batch * size, top_k)
        draw_BS = None if draw_BS is None else draw_BS.reshape(1, -1)
        batch, size = 1, batch * size
    slots = capacity(config, size, training=training)
    assert slots is not None
    device = expert_BSK.device

    # Routed rows of a sequence in the order in which experts take them: choice by choice, token by token.
    token_BS = torch.arange(size, device=device).expand(batch, size) if draw_BS is None else draw_BS.argsort(1)
    choice_K = torch.arange(top_k, device=device)
    row_BN = (token_BS.unsqueeze(1) * top_k + choice_K.view(1, -1, 1)).flatten(1)
    expert_BN = expert_BSK.flatten(1).gather(1, row_BN)
    expert_E = torch.arange(config.experts, device=device)
    sent_BNE = (expert_BN.unsqueeze(-1) == expert_E).to(torch.int32)
    before_BN = sent_BNE.cumsum(dim=1).gather(2, expert_BN.unsqueeze(-1)).squeeze(-1) - 1

    sequence_B1 = torch.arange(batch, device=device).unsqueeze(1)
    slot_BN = (expert_BN * batch + sequence_B1) * slots + before_BN
    total = config.experts * batch * slots
    slot_BN = torch.where(before_BN < slots, slot_BN, -1)
    global_row_BN = sequence_B1 * (size * top_k) + row_BN

    slot_N = torch.empty(batch * size * top_k, dtype=torch.int64, device=device)
    slot_N[global_row_BN.flatten()] = slot_BN.flatten()
    # One slot too many takes what is dropped.
    row_R = torch.full((total + 1,), -1, dtype=torch.int64, device=device)
    row_R[torch.where(slot_BN < 0, total, slot_BN).flatten()] = global_row_BN.flatten()
    return Dispatch(row_R[:total], slot_N, None)


class Gather(torch.autograd.Function):
    """x[index // copies], zero where the index is -1; ``inverse`` says where each row of x, ``copies`` times, went.

    The gradient gathers too, through the inverse: what autograd derives from indexing is a serial index_put on
    CPUs and is not deterministic on GPUs.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, index_R: Tensor, inverse_R: Tensor, copies: int, holes: bool) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.copies = copies
        ctx.holes = holes
        # Rounded down, so that -1 stays -1, the row of zeros at the end.
        return _with_zeros(x_ND, holes)[index_R.div(copies, rounding_mode="floor") if copies > 1 else index_R]

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inverse_R,) = ctx.saved_tensors
        gradient_RD = _with_zeros(gradients[0], ctx.holes)[inverse_R]
        if ctx.copies > 1:
            gradient_RD = gradient_RD.unflatten(0, (-1, ctx.copies)).sum(dim=1)
        return gradient_RD, None, None, None, None


def _with_zeros(x_ND: Tensor, holes: bool) -> Tensor:
    return torch.cat((x_ND, x_ND.new_zeros(1, x_ND.shape[1]))) if holes else x_ND
