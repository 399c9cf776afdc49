"""The dense feed-forward of a layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import Activation, ModelConfig
from trainer.model.parts import Linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202), or down(gelu(up(x))) as in GPT-2."""

    def __init__(self, config: ModelConfig, d_ff: int) -> None:
        super().__init__()
        gated = config.activation is Activation.swiglu
        self.gate = Linear(config.d_model, d_ff, bias=config.bias) if gated else None
        self.up = Linear(config.d_model, d_ff, bias=config.bias)
        self.down = Linear(d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(F.gelu(self.up(x_BSD), approximate="tanh"))
        return self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))
