"""Causal attention on CPUs in tiles of queries, each against the keys up to its end only.

Kernels that walk over small blocks of keys leave no large products. Here one product makes the scores of a tile of one
head, which stay in the second-level cache of the core that has the head until they are used. Backward makes them again
instead of keeping them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from trainer.model import cores
from trainer.model.products import multiply

TILE = 256  # queries
SHORTEST = 256  # positions from which tiles pay
MOST_THREADS = 8  # more find the interpreter busy, which each product asks for


def suits(query_BHSC: Tensor) -> bool:
    """Whether tiles are faster than torch's own kernel."""
    return (
        query_BHSC.device.type == "cpu"
        and query_BHSC.dtype in (torch.float32, torch.bfloat16)
        and query_BHSC.shape[2] >= SHORTEST
        and _few_threads()
    )


@torch.compiler.assume_constant_result
def _few_threads() -> bool:
    return torch.get_num_threads() <= MOST_THREADS


def causal_attention(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    """softmax(query · key / sqrt(C)) · value, causal; each of the G keys and values serves H / G queries."""
    # Out here, the compiler can scale and lay out the queries and keys in the pass that gives them their positions.
    scaled_BHSC = query_BHSC / math.sqrt(query_BHSC.shape[-1])
    return attend(scaled_BHSC.contiguous(), key_BGSC.contiguous(), value_BGSC.contiguous())


@torch.library.custom_op("trainer::attend", mutates_args=())
def attend(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    """softmax(query · key) · value, causal."""
    mixed_BHSC = _like(query_BHSC)
    query_PSC, key_PSC, value_PSC = (_heads(x.contiguous()) for x in (query_BHSC, key_BGSC, value_BGSC))
    serves = query_BHSC.shape[1] // key_BGSC.shape[1]
    future_QQ = _future(TILE, query_BHSC.dtype)
    mixed_PSC = _heads(mixed_BHSC)

    def attend_head(pair: int) -> None:
        query_SC, key_SC, value_SC = query_PSC[pair], key_PSC[pair // serves], value_PSC[pair // serves]
        for begin, end in _tiles(query_SC):
            weight_QK = _weights(query_SC[begin:end], key_SC[:end], future_QQ)
            mixed_PSC[pair][begin:end] = multiply(weight_QK, value_SC[:end])

    cores.each(attend_head, len(query_PSC))
    return mixed_BHSC


@attend.register_fake
def _(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    return _like(query_BHSC)


@torch.library.custom_op("trainer::attend_backward", mutates_args=())
def _backward(
    gradient_BHSC: Tensor, query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    slopes = _like(query_BHSC), _like(key_BGSC), _like(value_BGSC)
    slope_PSC, key_slope_PSC, value_slope_PSC = map(_heads, slopes)
    gradient_PSC, query_PSC, key_PSC, value_PSC = (
        _heads(x.contiguous()) for x in (gradient_BHSC, query_BHSC, key_BGSC, value_BGSC)
    )
    serves = query_BHSC.shape[1] // key_BGSC.shape[1]
    future_QQ = _future(TILE, query_BHSC.dtype)

    def descend(shared: int) -> None:
        key_SC, value_SC = key_PSC[shared], value_PSC[shared]
        key_slope_CS = value_slope_CS = None
        for pair in range(shared * serves, (shared + 1) * serves):
            # The last tile first: it reaches all keys, and what it finds the others are added to.
            for begin, end in reversed(_tiles(key_SC)):
                query_QC, gradient_QC = query_PSC[pair][begin:end], gradient_PSC[pair][begin:end]
                weight_QK = _weights(query_QC, key_SC[:end], future_QQ)
                value_slope_CS = _plus(value_slope_CS, multiply(gradient_QC.mT, weight_QK))
                slope_QK = multiply(gradient_QC, value_SC[:end].mT)
                slope_QK = torch.ops.aten._softmax_backward_data(slope_QK, weight_QK, -1, weight_QK.dtype)
                slope_PSC[pair][begin:end] = multiply(slope_QK, key_SC[:end])
                key_slope_CS = _plus(key_slope_CS, multiply(query_QC.mT, slope_QK))
        if key_slope_CS is not None and value_slope_CS is not None:
            key_slope_PSC[shared].copy_(key_slope_CS.mT)
            value_slope_PSC[shared].copy_(value_slope_CS.mT)

    cores.each(descend, len(key_PSC))
    return slopes


@_backward.register_fake
def _(gradient_BHSC: Tensor, query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query_BHSC), _like(key_BGSC), _like(value_BGSC)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient_BHSC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(gradient_BHSC, *ctx.saved_tensors)


attend.register_autograd(_gradients, setup_context=_save)


def _weights(query_QC: Tensor, key_KC: Tensor, future_QQ: Tensor) -> Tensor:
    """Softmax of a tile's scores. Only among the last keys, those at the tile's own positions, are future ones."""
    score_QK = multiply(query_QC, key_KC.mT)
    size = query_QC.shape[0]
    score_QK[:, -size:].add_(future_QQ[:size, :size])
    return score_QK.softmax(dim=-1)


@functools.cache
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a tile's own positions: -inf where the key comes after the query."""
    return torch.full((size, size), -math.inf, dtype=dtype).triu_(1)


def _plus(sum_CS: Tensor | None, part_CK: Tensor) -> Tensor:
    """The sum so far and what falls upon its first positions."""
    if sum_CS is None:
        return part_CK
    sum_CS[:, : part_CK.shape[1]].add_(part_CK)
    return sum_CS


def _tiles(x_SC: Tensor) -> list[tuple[int, int]]:
    """First and last position, exclusive, of each tile."""
    size = x_SC.shape[0]
    return [(begin, min(begin + TILE, size)) for begin in range(0, size, TILE)]


def _heads(x_BHSC: Tensor) -> list[Tensor]:
    """The matrices of all P = B · H heads."""
    return [x_SC for x_HSC in x_BHSC.unbind() for x_SC in x_HSC.unbind()]


def _like(x_BHSC: Tensor) -> Tensor:
    """Uninitialised, in the order [B, S, H, C], in which the next product wants it."""
    batch, heads, size, channels = x_BHSC.shape
    return x_BHSC.new_empty(batch, size, heads, channels).transpose(1, 2)
