"""Causal self-attention with rotary positions and grouped key-value heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig


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


class Attention(nn.Module):
    """Queries of H heads, keys and values of G heads, each shared by H / G queries (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.d_model // config.heads
        shared = config.kv_heads * self.head_size
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.key = nn.Linear(config.d_model, shared, bias=False)
        self.value = nn.Linear(config.d_model, shared, bias=False)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)
        self.grouped = config.kv_heads != config.heads

    def forward(self, x_BSD: Tensor, cos_SC: Tensor, sin_SC: Tensor) -> Tensor:
        query_BHSC = rotate(self._heads(self.query(x_BSD)), cos_SC, sin_SC)
        key_BGSC = rotate(self._heads(self.key(x_BSD)), cos_SC, sin_SC)
        value_BGSC = self._heads(self.value(x_BSD))
        mixed_BHSC = F.scaled_dot_product_attention(
            query_BHSC, key_BGSC, value_BGSC, is_causal=True, enable_gqa=self.grouped
        )
        return self.output(mixed_BHSC.transpose(1, 2).flatten(2))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
