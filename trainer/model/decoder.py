"""A pre-norm decoder: embedding, layers of attention and feed-forward or MoE, final norm, head."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig, Positions
from trainer.model.attention import Attention, document_mask, rotary_angles
from trainer.model.context import (
    ATTENTION_OUTPUT_DROPOUT,
    EMBEDDING_DROPOUT,
    FEEDFORWARD_DROPOUT,
    PLACES,
    Context,
    dropout,
)
from trainer.model.feedforward import FeedForward
from trainer.model.head import cross_entropy
from trainer.model.moe import MoE
from trainer.model.parts import norm
from trainer.model.router import Routing
from trainer.size import is_moe_layer


class Output(NamedTuple):
    """What the decoder says of one pass. Without targets there are logits, with them their cross-entropy."""

    logits_BSV: Tensor | None
    cross_entropy: Tensor | None  # sum over all targets, 0-dim, to be differentiated
    cross_entropy_B: Tensor | None  # float64, the sum over each sequence, detached
    routing: dict[int, Routing]  # by the number, from 1, of each MoE layer


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); ``number`` counts from 1."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.dropout = config.dropout
        self.attention_norm = norm(config)
        self.attention = Attention(config, number)
        self.feedforward_norm = norm(config)
        self.feedforward: FeedForward | None = None
        self.moe: MoE | None = None
        if is_moe_layer(config, number):
            self.moe = MoE(config, number)
        else:
            self.feedforward = FeedForward(config, config.d_ff)

    def forward(self, x_BSD: Tensor, context: Context) -> tuple[Tensor, Routing | None]:
        x_BSD = x_BSD + self._drop(
            self.attention(self.attention_norm(x_BSD), context), context, ATTENTION_OUTPUT_DROPOUT
        )
        hidden_BSD = self.feedforward_norm(x_BSD)
        routing = None
        if self.moe is not None:
            y_BSD, routing = self.moe(hidden_BSD, context)
        else:
            assert self.feedforward is not None
            y_BSD = self.feedforward(hidden_BSD)
        return x_BSD + self._drop(y_BSD, context, FEEDFORWARD_DROPOUT), routing

    def _drop(self, x_BSD: Tensor, context: Context, place: int) -> Tensor:
        if self.dropout == 0 or not self.training:
            return x_BSD  # without a look at the number, by which a compiler would tell layers apart
        return dropout(x_BSD, self.dropout, context.key_B, self.number * PLACES + place)


class Decoder(nn.Module):
    """The language model: token ids in, logits or the loss of the next token out.

    Parameters are left uninitialised where they are allocated; ``trainer.model.initial`` says their first values.

    Attributes:
        compute_dtype: what activations are computed in; None: in the type that the embedding's table has.
        compiled: may the head use the compiler; that each layer is compiled is told to the layers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.compiled = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.positions is Positions.learned
        self.positions = nn.Embedding(config.max_seq_len, config.d_model) if learned else None
        self.layers = nn.ModuleList(Layer(config, n) for n in range(1, config.layers + 1))
        self.norm = norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor | None = None,
        *,
        documents_BS: Tensor | None = None,
        key_B: Tensor | None = None,
    ) -> Output:
        """
        Args:
            tokens_BS: int64 ids, at most ``max_seq_len`` positions.
            targets_BS: int64 ids of the tokens that follow; ``IGNORED`` where nothing is to be learned.
            documents_BS: document of each position, where tokens shall not attend to other documents.
            key_B: int64; what dropout and the choice of tokens beyond capacity are drawn from, in training.
        """
        context = self._context(tokens_BS, documents_BS, key_B)
        x_BSD = self._embed(tokens_BS, key_B)
        routing: dict[int, Routing] = {}
        for number, layer in enumerate(self.layers, start=1):
            x_BSD, layer_routing = layer(x_BSD, context)
            if layer_routing is not None:
                routing[number] = layer_routing
        x_BSD = self.norm(x_BSD)
        weight_VD = self.embedding.weight if self.head is None else self.head.weight
        weight_VD = weight_VD.to(x_BSD.dtype)
        if targets_BS is None:
            return Output(F.linear(x_BSD, weight_VD), None, None, routing)
        total, each_B = cross_entropy(x_BSD, weight_VD, targets_BS, compiled=self.compiled)
        return Output(None, total, each_B, routing)

    def rebalance(self, tokens_LE: Tensor) -> None:
        """Tell the routers that balance by a bias what each expert was sent in a step, by MoE layer."""
        routers = [layer.moe.router for layer in self.layers if isinstance(layer, Layer) and layer.moe is not None]
        for router, tokens_E in zip(routers, tokens_LE, strict=True):
            router.rebalance(tokens_E)

    def _embed(self, tokens_BS: Tensor, key_B: Tensor | None) -> Tensor:
        x_BSD = self.embedding(tokens_BS)
        if self.positions is not None:
            x_BSD = x_BSD + self.positions(torch.arange(tokens_BS.shape[1], device=tokens_BS.device))
        if self.compute_dtype is not None:
            x_BSD = x_BSD.to(self.compute_dtype)
        return dropout(x_BSD, self.config.dropout, key_B if self.training else None, EMBEDDING_DROPOUT)

    def _context(self, tokens_BS: Tensor, documents_BS: Tensor | None, key_B: Tensor | None) -> Context:
        config = self.config
        cos_SC = sin_SC = mask = None
        if config.positions is Positions.rotary:
            head_size = config.d_model // config.heads
            angle_SC = rotary_angles(tokens_BS.shape[1], head_size, config.rope_theta, tokens_BS.device)
            cos_SC, sin_SC = angle_SC.cos(), angle_SC.sin()
        if documents_BS is not None:
            mask = document_mask(documents_BS, dense=config.attention_dropout > 0)
        return Context(cos_SC, sin_SC, mask, key_B)
