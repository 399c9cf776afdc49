"""How large a model is: parameters and the arithmetic of a token. Pure and free of torch."""

from __future__ import annotations

from trainer.config import Activation, ModelConfig, MoEConfig, Norm, Positions


def is_moe_layer(model: ModelConfig, number: int) -> bool:
    """Whether layer ``number``, counted from 1, is a mixture of experts."""
    return model.moe is not None and number % model.moe.every == 0


def moe_layers(model: ModelConfig) -> list[int]:
    """Numbers, from 1, of the layers that are mixtures of experts."""
    return [n for n in range(1, model.layers + 1) if is_moe_layer(model, n)]


def parameter_count(model: ModelConfig) -> tuple[int, int]:
    """Parameters of a model, (total, active): active counts the experts that one token is sent to."""
    table = model.vocab_size * model.d_model
    total = table * (1 if model.tie_embeddings else 2) + _norm(model)
    if model.positions is Positions.learned:
        total += model.max_seq_len * model.d_model
    active = total
    for layer in range(1, model.layers + 1):
        both = layer_parameters(model, moe=is_moe_layer(model, layer))
        total, active = total + both[0], active + both[1]
    return total, active


def layer_parameters(model: ModelConfig, *, moe: bool) -> tuple[int, int]:
    """Parameters of one layer with a dense feed-forward or a mixture of experts, (total, active)."""
    common = _attention(model) + 2 * _norm(model)
    if not moe:
        dense = common + _feedforward(model, model.d_ff)
        return dense, dense
    assert model.moe is not None
    expert = expert_parameters(model, model.moe)
    always = common + model.d_model * model.moe.experts
    if model.moe.shared_experts:
        always += _feedforward(model, model.moe.shared_experts * model.moe.d_ff)
    return always + expert * model.moe.experts, always + expert * model.moe.top_k


def expert_parameters(model: ModelConfig, moe: MoEConfig) -> int:
    """Parameters of one routed expert."""
    return _feedforward(model, moe.d_ff)


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """Floating point operations that training spends on one token, forward and backward, without recomputation.

    6 for each active parameter that takes part in a matrix product, the head's included and the tables' of
    tokens and positions not, and 12 * layers * d_model * seq_len for attention: 2 products of 2 * d_model *
    seq_len forward, twice that backward, counted in full although half of it is masked (PaLM, arXiv:2204.02311,
    appendix B). MFU in this project is tokens/s times this over the device's peak.
    """
    _, active = parameter_count(model)
    tables = 0 if model.tie_embeddings else model.vocab_size * model.d_model
    if model.positions is Positions.learned:
        tables += model.max_seq_len * model.d_model
    return 6 * (active - tables) + 12 * model.layers * model.d_model * seq_len


def _norm(model: ModelConfig) -> int:
    return model.d_model * (2 if model.norm is Norm.layer and model.bias else 1)


def _attention(model: ModelConfig) -> int:
    shared = model.kv_heads * (model.d_model // model.heads)
    matrices = 2 * model.d_model * model.d_model + 2 * model.d_model * shared
    biases = 2 * model.d_model + 2 * shared if model.bias else 0
    norms = model.d_model + shared if model.qk_norm else 0
    return matrices + biases + norms


def _feedforward(model: ModelConfig, d_ff: int) -> int:
    inner = 2 if model.activation is Activation.swiglu else 1
    biases = inner * d_ff + model.d_model if model.bias else 0
    return (inner + 1) * model.d_model * d_ff + biases
