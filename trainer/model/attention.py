"""Causal self-attention: rotary or no positions, grouped key-value heads, documents kept apart."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model import kernels
from trainer.model.context import ATTENTION_DROPOUT, PLACES, Context, dropout
from trainer.model.parts import Linear, RMSNorm


def rotary_angles(positions: int, head_size: int, theta: float, device: torch.device) -> Tensor:
    """Angles by which pairs of a head's channels turn at each position.

    Pair i of position s turns by s · theta^(-2i/C) radians (RoFormer, arXiv:2104.09864, section 3.2.2).

    Returns:
        float32 of shape [positions, head_size / 2].
    """
    pair = torch.arange(0, head_size, 2, device=device, dtype=torch.float32)
    frequency = theta ** (-pair / head_size)
    return torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequency)


def rotate(x_BHSC: Tensor, cos_SC: Tensor, sin_SC: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of channels by its position's angle; computed in at least float32."""
    first, second = x_BHSC.chunk(2, dim=-1)
    turned = torch.cat((first * cos_SC - second * sin_SC, second * cos_SC + first * sin_SC), dim=-1)
    return turned.to(x_BHSC.dtype)


def document_mask(documents_BS: Tensor, *, dense: bool) -> Any:
    """What ``Attention`` needs so that no token sees another document; made once a pass.

    Args:
        documents_BS: number of each position's document; equal within a document of a sequence only.
        dense: as a bool tensor [B, 1, S, S] on GPUs too, where it otherwise is a BlockMask of FlexAttention.
    """
    batch, size = documents_BS.shape
    if documents_BS.device.type == "cuda" and not dense:
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (documents_BS[b, query] == documents_BS[b, key])

        return create_block_mask(visible, batch, None, size, size, device=str(documents_BS.device))
    causal_SS = torch.ones(size, size, dtype=torch.bool, device=documents_BS.device).tril()
    same_BSS = documents_BS.unsqueeze(1) == documents_BS.unsqueeze(2)
    return (causal_SS & same_BSS).unsqueeze(1)


class Attention(nn.Module):
    """Queries of H heads, keys and values of G heads, each shared by H / G queries (arXiv:2305.13245).

    With QK-norm, queries and keys are normalised over all their heads together, before the positions, as OLMoE
    does (arXiv:2409.02060, section 4.2.5).
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.head_size = config.d_model // config.heads
        shared = config.kv_heads * self.head_size
        self.query = Linear(config.d_model, config.d_model, bias=config.bias)
        self.key = Linear(config.d_model, shared, bias=config.bias)
        self.value = Linear(config.d_model, shared, bias=config.bias)
        self.output = Linear(config.d_model, config.d_model, bias=config.bias)
        self.query_norm = RMSNorm(config.d_model, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(shared, config.norm_eps) if config.qk_norm else None
        self.dropout = config.attention_dropout
        self.number = number

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        query_BSD, key_BSD = self.query(x_BSD), self.key(x_BSD)
        if self.query_norm is not None and self.key_norm is not None:
            query_BSD, key_BSD = self.query_norm(query_BSD), self.key_norm(key_BSD)
        query_BHSC, key_BGSC = self._heads(query_BSD), self._heads(key_BSD)
        value_BGSC = self._heads(self.value(x_BSD))
        if context.cos_SC is not None and context.sin_SC is not None:
            query_BHSC = rotate(query_BHSC, context.cos_SC, context.sin_SC)
            key_BGSC = rotate(key_BGSC, context.cos_SC, context.sin_SC)
        if self.dropout and self.training and context.key_B is not None:
            place = self.number * PLACES + ATTENTION_DROPOUT
            mixed_BHSC = attend_outright(
                query_BHSC, key_BGSC, value_BGSC, context.mask, self.dropout, context.key_B, place
            )
        else:
            mixed_BHSC = attend(query_BHSC, key_BGSC, value_BGSC, context.mask)
        return self.output(mixed_BHSC.transpose(1, 2).flatten(2))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


def attend(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor, mask: Any) -> Tensor:
    """softmax(query · key / sqrt(C)) · value, causal, within what ``document_mask`` leaves visible."""
    if mask is None:
        return kernels.causal_attention(query_BHSC, key_BGSC, value_BGSC)
    grouped = query_BHSC.shape[1] != key_BGSC.shape[1]
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(query_BHSC, key_BGSC, value_BGSC, attn_mask=mask, enable_gqa=grouped)
    mixed = _flex()(query_BHSC, key_BGSC, value_BGSC, block_mask=mask, enable_gqa=grouped)
    assert isinstance(mixed, Tensor)
    return mixed


def attend_outright(
    query_BHSC: Tensor,
    key_BGSC: Tensor,
    value_BGSC: Tensor,
    mask: Tensor | None,
    probability: float,
    key_B: Tensor,
    place: int,
) -> Tensor:
    """As ``attend``, with dropout of the weights, of which fused kernels draw in an order of their own.

    Holds the weights of all heads, B · H · S · S elements; activation checkpointing frees them again.
    """
    copies = query_BHSC.shape[1] // key_BGSC.shape[1]
    key_BHSC, value_BHSC = (x.repeat_interleave(copies, dim=1) for x in (key_BGSC, value_BGSC))
    score_BHSS = query_BHSC @ key_BHSC.transpose(2, 3) / math.sqrt(query_BHSC.shape[-1])
    size = query_BHSC.shape[2]
    causal_SS = torch.ones(size, size, dtype=torch.bool, device=score_BHSS.device).tril()
    hidden = ~(causal_SS if mask is None else mask)
    exact = torch.float32 if score_BHSS.dtype in (torch.bfloat16, torch.float16) else score_BHSS.dtype
    weight_BHSS = score_BHSS.to(exact).masked_fill(hidden, -math.inf).softmax(dim=-1).to(value_BHSC.dtype)
    return dropout(weight_BHSS, probability, key_B, place) @ value_BHSC


_compiled: Any = None


def _flex() -> Any:
    """FlexAttention, compiled once: outside of the compiler it holds all scores."""
    global _compiled
    if _compiled is None:
        from torch.nn.attention.flex_attention import flex_attention

        _compiled = torch.compile(flex_attention)
    return _compiled
