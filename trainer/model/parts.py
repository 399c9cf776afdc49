"""Matrices and norms, cast to the type of what they are applied to.

Parameters may be kept in float32 while activations are bfloat16: the cast is part of the forward, so gradients
arrive in the parameters' own type. Where an engine already hands over cast parameters it costs nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.config import Norm as Kind
from trainer.model import kernels


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return kernels.linear(input, self.weight.to(input.dtype), bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / deviation(x) * weight + bias (arXiv:1607.06450)."""

    def __init__(self, size: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)


def norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm that a model has before its blocks and at its end."""
    if config.norm is Kind.rms:
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, bias=config.bias)
