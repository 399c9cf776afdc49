"""A pre-norm decoder: embedding, layers of attention and feed-forward or MoE, final norm, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.model.attention import Attention, rotary_angles
from trainer.model.feedforward import FeedForward
from trainer.model.moe import MoE, Routing


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); ``number`` counts from 1."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feedforward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feedforward: FeedForward | None = None
        self.moe: MoE | None = None
        if is_moe_layer(config, number):
            assert config.moe is not None
            self.moe = MoE(config.d_model, config.moe)
        else:
            self.feedforward = FeedForward(config.d_model, config.d_ff)

    def forward(self, x_BSD: Tensor, cos_SC: Tensor, sin_SC: Tensor) -> tuple[Tensor, Routing | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos_SC, sin_SC)
        hidden_BSD = self.feedforward_norm(x_BSD)
        if self.moe is not None:
            y_BSD, routing = self.moe(hidden_BSD)
            return x_BSD + y_BSD, routing
        assert self.feedforward is not None
        return x_BSD + self.feedforward(hidden_BSD), None


class Decoder(nn.Module):
    """The language model: token ids in, logits of the next token out.

    Parameters are left uninitialised where they are allocated; ``trainer.model.initial`` says their first values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(1, config.layers + 1))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, dict[int, Routing]]:
        """
        Args:
            tokens_BS: int64 ids, at most ``max_seq_len`` positions.

        Returns:
            Logits of shape [B, S, V], and what the router did in each MoE layer, by the layer's number from 1.
        """
        config = self.config
        angle_SC = rotary_angles(
            tokens_BS.shape[1], config.d_model // config.heads, config.rope_theta, tokens_BS.device
        )
        cos_SC, sin_SC = angle_SC.cos(), angle_SC.sin()
        x_BSD = self.embedding(tokens_BS)
        routing: dict[int, Routing] = {}
        for number, layer in enumerate(self.layers, start=1):
            x_BSD, layer_routing = layer(x_BSD, cos_SC, sin_SC)
            if layer_routing is not None:
                routing[number] = layer_routing
        x_BSD = self.norm(x_BSD)
        weight_VD = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(x_BSD, weight_VD), routing


def is_moe_layer(config: ModelConfig, number: int) -> bool:
    """Whether layer ``number``, counted from 1, is a mixture of experts."""
    return config.moe is not None and number % config.moe.every == 0


def moe_layers(config: ModelConfig) -> list[int]:
    """Numbers, from 1, of the layers that are mixtures of experts."""
    return [n for n in range(1, config.layers + 1) if is_moe_layer(config, n)]


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(config).parameters())
