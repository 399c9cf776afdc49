"""The gradients of one step, from an engine on real ranks and from one process in float64.

Gradients are compared because Adam hides a wrong scale. The coefficients of auxiliary losses are so large that a
mistake in these cannot hide either.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer.batch import Batch, keys
from trainer.config import Activation, Norm, Positions, Score, Selection, TrainerConfig, accumulation
from trainer.loss import loss_of
from trainer.model import Decoder, Output
from trainer.model.initial import initial, start_of
from trainer.parallel import Engine, build
from trainer.parallel.base import Base
from trainer.samples import IGNORED
from trainer.train import sample_ids

STEP = 3  # whose random draws are made
SAMPLES = 8  # of tiny.config's global batch


class Found(NamedTuple):
    gradients: dict[str, Tensor]  # float64, whole, by the parameter's name in the decoder
    norm: float
    sums: list[float]  # over the batch: cross-entropy, balance and z-loss; of each MoE layer tokens by expert, dropped


def dropless(config: TrainerConfig) -> tiny.Tokens:
    """The tiny mixture of experts: a dense layer, then 4 experts, 2 of them per token."""
    assert config.model.moe is not None
    config.model.moe.balance_loss, config.model.moe.z_loss = 1.0, 0.5
    return tiny.Tokens()


def capacity(config: TrainerConfig) -> tiny.Tokens:
    """Tokens beyond an expert's capacity are dropped, drawn at random."""
    moe = config.model.moe
    assert moe is not None
    moe.capacity_factor, moe.min_capacity, moe.selection = 0.75, 1, Selection.random
    return dropless(config)


def dropout(config: TrainerConfig) -> tiny.Tokens:
    config.model.dropout, config.model.attention_dropout = 0.2, 0.1
    return dropless(config)


def sigmoid(config: TrainerConfig) -> tiny.Tokens:
    """Scores each for themselves, choice by a bias that is not zero."""
    moe = config.model.moe
    assert moe is not None
    moe.score, moe.bias_update, moe.weight_scale = Score.sigmoid, 0.1, 1.5
    return dropless(config)


def shared(config: TrainerConfig) -> tiny.Tokens:
    """Experts for every token beside the chosen ones; query and key norms."""
    assert config.model.moe is not None
    config.model.moe.shared_experts, config.model.qk_norm = 2, True
    return dropless(config)


def lola(config: TrainerConfig) -> tiny.Tokens:
    """LOLA's shape: GPT-2 with one expert per token and dropped tokens."""
    model, moe = config.model, config.model.moe
    assert moe is not None
    model.positions, model.norm, model.activation = Positions.learned, Norm.layer, Activation.gelu
    model.bias = model.tie_embeddings = True
    model.kv_heads, moe.top_k, moe.normalize_weights, moe.capacity_factor = model.heads, 1, False, 1.0
    return dropless(config)


def padded(config: TrainerConfig) -> tiny.Tokens:
    """Positions that are not trained on, differently many in each sequence."""
    dropless(config)
    return tiny.Tokens(every_token=False)


def documents(config: TrainerConfig) -> tiny.Tokens:
    """Several documents in a sequence that do not see each other; biased experts, dropless."""
    config.model.bias = config.data.document_mask = True
    dropless(config)
    return tiny.Tokens(documents=True)


def dense(config: TrainerConfig) -> tiny.Tokens:
    config.model.moe = None
    return tiny.Tokens()


Variant = Callable[[TrainerConfig], tiny.Tokens]  # changes a configuration, and says what to train on


def reference(config: TrainerConfig, data: tiny.Tokens) -> Found:
    """In one process, in float64, the whole batch in one pass."""
    model = Decoder(config.model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        shape = tuple(tensor.shape)
        begin = start_of(name, config.model)
        first = initial(name, shape, begin=begin, seed=config.train.seed, start=(0,) * len(shape), size=shape)
        tensor.detach().copy_(first)
    model.double()
    if (uneven := _uneven(config)) is not None:
        model.rebalance(uneven)
    batch = _batch(config, data, range(SAMPLES))
    valid = _valid(config, data, range(SAMPLES))
    output = model(batch.tokens_BS, batch.targets_BS, documents_BS=batch.documents_BS, key_B=batch.key_B)
    loss, parts = loss_of(output, batch.targets_BS, config.model, valid)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    return Found(gradients, norm.item(), _sums(parts, output).tolist())


def whole(engine: Engine) -> dict[str, Tensor]:
    """Gradients of an engine on PyTorch's optimizer, gathered from all ranks."""
    assert isinstance(engine, Base)
    found = {}
    for held in engine.held:
        gradient = held.gradient()
        assert gradient is not None
        shared = held.whole(gradient)
        found[held.name] = (shared.full_tensor() if isinstance(shared, DTensor) else shared).double()
    return found


def of_rank(
    config: TrainerConfig, data: tiny.Tokens, gather: Callable[[Engine], dict[str, Tensor]] = whole, node: int = 2
) -> Found:
    """On a rank, collective: what an engine finds, the global batch laid over ranks and passes.

    Args:
        gather: reads all gradients of an engine; collective, called after ``backward`` of the last pass.
        node: ranks of one node.
    """
    engine = build(config, tiny.CPU, node)
    if (uneven := _uneven(config)) is not None:
        engine.rebalance(uneven)
    sums = accumulate(engine, config, data)
    dist.all_reduce(sums)
    return Found(gather(engine), engine.norm().item(), sums.tolist())


def accumulate(engine: Engine, config: TrainerConfig, data: tiny.Tokens, step: int = 0, weight: float = 1.0) -> Tensor:
    """On a rank, collective: forward and backward of its share of a step's global batch.

    Args:
        weight: by which the loss is multiplied.

    Returns:
        This rank's part of ``Found.sums``.
    """
    first = step * SAMPLES
    valid = _valid(config, data, range(first, first + SAMPLES))
    passes = accumulation(config.train, config.data, config.parallel, engine.world_size)
    sums = torch.zeros(())
    for m, ids in enumerate(sample_ids(first, engine.rank, engine.world_size, passes, config.parallel.micro_batch)):
        batch = _batch(config, data, ids)
        output = engine.forward(batch)
        loss, parts = loss_of(output, batch.targets_BS, config.model, valid)
        engine.backward(loss * weight, last=m == passes - 1)
        sums = sums + _sums(parts, output)
    return sums


def agree(found: Found, expected: Found, *, rtol: float = 1e-4, atol: float = 2e-6) -> None:
    """Assert that an engine found what one process finds."""
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    assert found.sums == pytest.approx(expected.sums, rel=1e-5)


def _sums(parts: Tensor, output: Output) -> Tensor:
    return torch.cat([parts, *(torch.cat([r.tokens_E, r.dropped.view(1)]) for r in output.routing.values())])


def _batch(config: TrainerConfig, data: tiny.Tokens, ids: range) -> Batch:
    return Batch.of(data.batch(ids), tiny.CPU, keys(config.train.seed, STEP, ids))


def _valid(config: TrainerConfig, data: tiny.Tokens, ids: range) -> int:
    aside = copy(data)  # does not note in ``data`` what was read
    aside.seen = []
    return int((_batch(config, aside, ids).targets_BS != IGNORED).sum())


def _uneven(config: TrainerConfig) -> Tensor | None:
    """Loads after which the routers' biases are not zero; None without such routers."""
    moe: Any = config.model.moe
    return None if moe is None or not moe.bias_update else torch.arange(moe.experts).square().unsqueeze(0)
