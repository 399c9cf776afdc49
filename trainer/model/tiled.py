"""Causal attention on CPUs in tiles of queries, each against the keys up to its end only.

Kernels that walk over small blocks of keys leave no large products. Here one product makes the scores of a tile of one
head, which stay in the second-level cache until they are used. Backward makes them again instead of keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.model.products import multiply

TILE = 256  # queries
SHORTEST = 256  # positions from which tiles pay
MOST_THREADS = 8  # one head is computed at a time, in which more threads find too little to do


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


@torch.library.custom_op("trainer::attend", mutates_args=())
def attend(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    """softmax(query · key / sqrt(C)) · value, causal; each of the G keys and values serves H / G queries."""
    mixed_BHSC = _like(query_BHSC)
    query_PSC, key_PSC, value_PSC = _heads(query_BHSC / math.sqrt(query_BHSC.shape[-1]), key_BGSC, value_BGSC)
    serves = query_BHSC.shape[1] // key_BGSC.shape[1]
    future_QQ = _future(query_BHSC)
    for pair, (query_SC, mixed_SC) in enumerate(zip(query_PSC, _each(mixed_BHSC), strict=True)):
        key_SC, value_SC = key_PSC[pair // serves], value_PSC[pair // serves]
        for begin, end in _tiles(query_SC):
            weight_QK = _weights(query_SC[begin:end], key_SC[:end], future_QQ)
            mixed_SC[begin:end] = multiply(weight_QK, value_SC[:end])
    return mixed_BHSC


@attend.register_fake
def _(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    return _like(query_BHSC)


@torch.library.custom_op("trainer::attend_backward", mutates_args=())
def _backward(
    gradient_BHSC: Tensor, query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / math.sqrt(query_BHSC.shape[-1])
    slopes = _like(query_BHSC), _like(key_BGSC), _like(value_BGSC)
    slope_PSC, key_slope_PSC, value_slope_PSC = map(_each, slopes)
    gradient_PSC, query_PSC, key_PSC, value_PSC = _heads(gradient_BHSC, query_BHSC * scale, key_BGSC, value_BGSC)
    serves = query_BHSC.shape[1] // key_BGSC.shape[1]
    future_QQ = _future(query_BHSC)
    for shared, (key_SC, value_SC) in enumerate(zip(key_PSC, value_PSC, strict=True)):
        key_slope_CS, value_slope_CS = (x.new_zeros(x.shape[1], x.shape[0]) for x in (key_SC, value_SC))
        for pair in range(shared * serves, (shared + 1) * serves):
            for begin, end in _tiles(key_SC):
                query_QC, gradient_QC = query_PSC[pair][begin:end], gradient_PSC[pair][begin:end]
                weight_QK = _weights(query_QC, key_SC[:end], future_QQ)
                value_slope_CS[:, :end] += multiply(gradient_QC.mT, weight_QK)
                slope_QK = multiply(gradient_QC, value_SC[:end].mT)
                slope_QK = torch.ops.aten._softmax_backward_data(slope_QK, weight_QK, -1, weight_QK.dtype)
                slope_PSC[pair][begin:end] = multiply(slope_QK, key_SC[:end])
                key_slope_CS[:, :end] += multiply(query_QC.mT, slope_QK)
        key_slope_PSC[shared].copy_(key_slope_CS.mT)
        value_slope_PSC[shared].copy_(value_slope_CS.mT)
    slopes[0].mul_(scale)
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
    score_QK[:, -size:] += future_QQ[:size, :size]
    return score_QK.softmax(dim=-1)


def _future(query_BHSC: Tensor) -> Tensor:
    """What is added to the scores of a tile's own positions: -inf where the key comes after the query."""
    return query_BHSC.new_full((TILE, TILE), -math.inf).triu_(1)


def _tiles(x_SC: Tensor) -> Iterator[tuple[int, int]]:
    for begin in range(0, x_SC.shape[0], TILE):
        yield begin, min(begin + TILE, x_SC.shape[0])


def _heads(*x_BHSC: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """The matrices of all P = B · H heads, each in one piece, without which products of its parts are slow."""
    return tuple(_each(x.contiguous()) for x in x_BHSC)


def _each(x_BHSC: Tensor) -> tuple[Tensor, ...]:
    return tuple(x_SC for x_HSC in x_BHSC.unbind() for x_SC in x_HSC.unbind())


def _like(x_BHSC: Tensor) -> Tensor:
    """Uninitialised, in the order [B, S, H, C], in which the next product wants it."""
    batch, heads, size, channels = x_BHSC.shape
    return x_BHSC.new_empty(batch, size, heads, channels).transpose(1, 2)
