"""What a pass through the decoder holds of activations, in bytes, from the shapes of its operations. Pure, no torch.

Counted by what autograd keeps for backward. Kernels differ: on GPUs norms are fused and keep their input, on CPUs they
are composed of operations in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from trainer.config import (
    Activation,
    ActivationCheckpointing,
    ModelConfig,
    MoEConfig,
    Norm,
    ParallelConfig,
    Precision,
    TrainerConfig,
)
from trainer.size import is_moe_layer, moe_layers

FLOAT = 4  # bytes of what is computed exactly
HEAD_ROWS, HEAD_ROWS_ON_GPU = 512, 4096  # tokens whose logits are held at a time: trainer.model.head
DRAWN = 1 << 26  # random numbers that are made at a time: trainer.model.context.DRAWN


@dataclass(frozen=True)
class Activations:
    """Of one rank's pass. All results are bytes; an MoE layer's experts are taken to have even loads."""

    config: TrainerConfig
    gpu: bool

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def parallel(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def moe(self) -> MoEConfig:
        assert self.model.moe is not None
        return self.model.moe

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return FLOAT if self.config.train.precision is Precision.fp32 else 2

    @property
    def tokens(self) -> int:
        return self.parallel.micro_batch * self.config.data.seq_len

    @property
    def stream(self) -> int:
        """What goes from layer to layer."""
        return self.width * self.tokens * self.model.d_model

    @property
    def shared(self) -> int:
        """Size of all keys, or values, of a token."""
        return self.model.kv_heads * (self.model.d_model // self.model.heads)

    @property
    def weights(self) -> int:
        """Attention's weights, in number."""
        return self.tokens * self.model.heads * self.config.data.seq_len

    # -- of a pass -------------------------------------------------------------------------------------------

    @cached_property
    def kept(self) -> float:
        """For backward: of each layer, the embedding's dropout, the last norm and the head's input."""
        experts = len(moe_layers(self.model))
        found = self._norm(self.model.d_model) + self.stream
        found += self.tokens * self.model.d_model if self.model.dropout else 0
        for count, moe in ((self.model.layers - experts, False), (experts, True)):
            if count:
                found += count * self.kept_of(moe=moe)
        return found

    def kept_of(self, *, moe: bool) -> float:
        """For backward of one layer."""
        match self.parallel.activation_checkpointing:
            case ActivationCheckpointing.none:
                return self._layer(moe=moe)
            case ActivationCheckpointing.selective:
                return self.stream + self._products(moe=moe)
            case ActivationCheckpointing.full:
                return self.stream

    @cached_property
    def kinds(self) -> set[bool]:
        """Whether there are layers that are (True), and are not (False), mixtures of experts."""
        return {is_moe_layer(self.model, number) for number in range(1, self.model.layers + 1)}

    @cached_property
    def working(self) -> float:
        """What backward of the layer that needs most adds to what is kept: what it makes again, and slopes."""
        return max(self._again(moe=moe) + self._slopes(moe=moe) for moe in self.kinds)

    @property
    def drawn(self) -> float:
        """What it takes to draw which of attention's weights to keep: 64-bit counters, a few of them at a time."""
        if not self.model.attention_dropout:
            return 0.0
        return 2 * FLOAT * self.weights + 40 * min(self.weights, DRAWN)

    @property
    def head(self) -> float:
        """For the loss, or at the begin of its backward: the table's gradient is there from the forward on."""
        table = self.model.vocab_size * self.model.d_model
        logits = min(self.tokens, HEAD_ROWS_ON_GPU if self.gpu else HEAD_ROWS) * self.model.vocab_size
        # Slopes as they are multiplied, of this part and of the one before; until then logits and slopes in float32.
        lower = self.width if self.width < FLOAT else 0
        fused = self.gpu and self.parallel.compile
        slopes = (2 * self.width if fused else 2 * FLOAT + lower + self.width) * logits
        multiplied = self.width * table + 2 * self.width * logits
        loss = self.stream + FLOAT * table + max(slopes, multiplied)
        scaled = 2 * self.stream + 2 * FLOAT * table + (self.width * table if self.width < FLOAT else 0)
        return max(loss, scaled)

    # -- of a layer ------------------------------------------------------------------------------------------

    def _layer(self, *, moe: bool) -> float:
        """What its operations keep for backward."""
        body = self._experts() if moe else self._between(self.model.d_ff, self.tokens)
        norms = 2 * (self._norm(self.model.d_model) + self.stream)
        dropped = 2 * self.tokens * self.model.d_model if self.model.dropout else 0
        return norms + self._attention() + body + dropped

    def _norm(self, size: int) -> float:
        """Beside its result, which the products after it keep."""
        if self.gpu or self.model.norm is Norm.layer:
            return self.tokens * (self.width * size + 2 * FLOAT)
        return 2 * FLOAT * self.tokens * size

    def _attention(self) -> float:
        """Queries, keys, values, result, sums; where its weights are dropped out, these too."""
        found = self.tokens * (2 * self.width * (self.model.d_model + self.shared) + FLOAT * self.model.heads)
        if self.model.qk_norm:
            found += self._norm(self.model.d_model) + self._norm(self.shared)
        if self.model.attention_dropout:
            # Softmax in float32, whether an element is kept, and what is multiplied with the values.
            found += (FLOAT + 1 + self.width) * self.weights
        return found

    def _between(self, d_ff: int, rows: float) -> float:
        """Between the matrices of a feed-forward."""
        return self.width * rows * d_ff * (4 if self.model.activation is Activation.swiglu else 2)

    def _experts(self) -> float:
        moe, routed = self.moe, self.tokens * self.moe.top_k
        exact = FLOAT if self.width < FLOAT else 0
        router = self.tokens * (exact * self.model.d_model + 5 * FLOAT * moe.experts) + 24 * routed
        experts = self.width * self._rows * self.model.d_model + self._between(moe.d_ff, self._rows)
        together = self.width * routed * self.model.d_model
        return router + experts + together + self._between(moe.shared_experts * moe.d_ff, self.tokens)

    @property
    def _rows(self) -> float:
        """That pass the experts of this rank."""
        moe, size = self.moe, self.config.data.seq_len
        if moe.capacity_factor is None:
            return self.tokens * moe.top_k
        slots = max(math.ceil(moe.capacity_factor * size * moe.top_k / moe.experts), moe.min_capacity)
        return self.parallel.micro_batch * moe.experts * min(size, slots)

    def _products(self, *, moe: bool) -> float:
        """Results of matrix products and of attention, which selective recomputation keeps."""
        size, inner = self.model.d_model, 2 if self.model.activation is Activation.swiglu else 1
        found = self.tokens * (self.width * (3 * size + 2 * self.shared) + FLOAT * self.model.heads)
        if self.model.attention_dropout:
            found += 2 * self.width * self.weights
        if not moe:
            return found + self.width * self.tokens * (inner * self.model.d_ff + size)
        exchanged = 2 * size if self.parallel.expert_parallel > 1 else 0
        found += self.width * self._rows * (inner * self.moe.d_ff + size + exchanged)
        if self.moe.shared_experts:
            found += self.width * self.tokens * (inner * self.moe.shared_experts * self.moe.d_ff + size)
        return found + FLOAT * self.tokens * self.moe.experts

    def _again(self, *, moe: bool) -> float:
        """What backward of a layer makes again."""
        match self.parallel.activation_checkpointing:
            case ActivationCheckpointing.none:
                return 0.0
            case ActivationCheckpointing.selective:
                return self._layer(moe=moe) - self._products(moe=moe)
            case ActivationCheckpointing.full:
                return self._layer(moe=moe)

    def _slopes(self, *, moe: bool) -> float:
        """Gradients of activations that are there together, in the part of a layer that has most."""
        size = self.tokens * self.model.d_model
        norm = 2 * FLOAT * size if not self.gpu and self.model.norm is Norm.rms else self.stream
        attention = 4 * self.stream
        if self.model.attention_dropout:
            again = self.parallel.activation_checkpointing is not ActivationCheckpointing.none
            attention += max(3 * FLOAT * self.weights, self.drawn if again else 0.0)
        inner = 3 if self.model.activation is Activation.swiglu else 2
        body = inner * self.width * self.tokens * self.model.d_ff
        if moe:
            # The weighted sum's, in float32; or what is between the experts' matrices; rows on their way.
            together = (2 * FLOAT + self.width) * size * self.moe.top_k
            body = max(together, self.width * self._rows * (inner * self.moe.d_ff + 2 * self.model.d_model))
            body += 2 * self.width * self._rows * self.model.d_model if self.parallel.expert_parallel > 1 else 0
        return 2 * self.stream + max(norm, attention, body)
