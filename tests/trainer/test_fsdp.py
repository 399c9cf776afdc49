"""FSDP on real gloo ranks against one process in float64. Gradients are compared: Adam hides a wrong scale."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from ranks import Ranks
from torch.distributed.tensor import DTensor

from trainer.batch import Batch
from trainer.config import ExpertsImplementation, Precision, Sharding, TrainerConfig, accumulation
from trainer.loss import StepSums, loss_of
from trainer.model import Decoder
from trainer.model.initial import initial, start_of
from trainer.parallel import build
from trainer.train import sample_ids


def sharded_gradients(config: TrainerConfig) -> dict[str, Any]:
    """On a rank: the gradients of the first global batch, gathered, and the step's totals."""
    from trainer.parallel.fsdp import FSDP

    engine = build(config, tiny.CPU)
    assert isinstance(engine, FSDP)
    data, sums = tiny.Tokens(), StepSums(config.model, tiny.CPU)
    passes = accumulation(config.train, config.data, config.parallel, engine.world_size)
    for m, ids in enumerate(sample_ids(0, engine.rank, engine.world_size, passes, config.parallel.micro_batch)):
        batch = Batch.of(data.batch(ids), tiny.CPU)
        output = engine.forward(batch)
        loss, parts = loss_of(output, batch.targets_BS, config.model, config.train.batch_tokens)
        engine.backward(loss, last=m == passes - 1)
        sums.add(parts, output, config.data.seq_len)
    norm = engine.norm()
    gradients = {}
    for name, parameter in engine.model.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        gradients[name] = parameter.grad.full_tensor()
    sums.reduce(stop=engine.rank == 1)
    totals = sums.totals(norm, batch_tokens=config.train.batch_tokens, valid=config.train.batch_tokens)
    return {"gradients": gradients, "norm": totals.grad_norm, "totals": totals, "samples": data.seen}


def reference(config: TrainerConfig) -> tuple[dict[str, torch.Tensor], float]:
    """The same in one process, in float64, over the whole batch at once; and the mean cross-entropy."""
    model = Decoder(config.model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            shape = tuple(p.shape)
            begin, seed = start_of(name, config.model), config.train.seed
            p.copy_(initial(name, shape, begin=begin, seed=seed, start=(0,) * p.ndim, size=shape))
    model.double()
    batch = Batch.of(tiny.Tokens().batch(range(8)), tiny.CPU)
    output = model(batch.tokens_BS, batch.targets_BS)
    loss, sums = loss_of(output, batch.targets_BS, config.model, config.train.batch_tokens)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, (sums[0] / config.train.batch_tokens).item()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("world_size", "micro_batch", "implementation", "experts", "tied"),
    [
        (1, 8, ExpertsImplementation.grouped, 4, False),
        (1, 2, ExpertsImplementation.grouped, 4, False),
        (2, 4, ExpertsImplementation.loop, 4, True),
        (2, 1, ExpertsImplementation.grouped, 3, False),
    ],
)
def test_gradients_agree_with_one_process_for_every_layout(
    ranks: Ranks, world_size: int, micro_batch: int, implementation: ExpertsImplementation, experts: int, tied: bool
) -> None:
    config = tiny.config()
    config.model.tie_embeddings = tied
    config.parallel.micro_batch = micro_batch
    assert config.model.moe is not None
    config.model.moe.experts = experts
    # Coefficients so large that a mistake in the auxiliary losses cannot hide.
    config.model.moe.balance_loss, config.model.moe.z_loss = 1.0, 0.5
    config.model.moe.implementation = implementation
    expected, loss = reference(config)
    found = ranks.run(sharded_gradients, config, world_size=world_size)
    for result in found:
        for name, gradient in expected.items():
            torch.testing.assert_close(
                result["gradients"][name].double(), gradient, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        square = sum(g.square().sum().item() for g in expected.values())
        assert result["norm"] == pytest.approx(square**0.5, rel=1e-5)
        assert result["totals"].loss == pytest.approx(loss, rel=1e-6)
        assert result["totals"].stops == world_size - 1
        assert sum(result["totals"].tokens_per_expert[2]) == 8 * 16 * config.model.moe.top_k
    assert sorted(sample for result in found for sample in result["samples"]) == list(range(8))
    totals = [result["totals"].tokens_per_expert for result in found]
    assert all(total == totals[0] for total in totals)


def first_values(config: TrainerConfig) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in build(config, tiny.CPU).state().items()
    }


def test_every_layout_starts_from_the_same_bits(ranks: Ranks) -> None:
    one, *_ = ranks.run(first_values, tiny.config(), world_size=1)
    two, *_ = ranks.run(first_values, tiny.config(), world_size=2)
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("experts", [1, 3, 4])
def test_ranks_hold_equal_parts_of_the_experts_however_many_there_are(ranks: Ranks, experts: int) -> None:
    config = tiny.config()
    assert config.model.moe is not None
    config.model.moe.experts, config.model.moe.top_k = experts, 1
    zero, one = ranks.run(elements_held, config, world_size=2)
    assert zero == one == 3 * experts * 16 * 8 // 2


def elements_held(config: TrainerConfig) -> int:
    state = build(config, tiny.CPU).state()
    return sum(
        value.to_local().numel()
        for name, value in state.items()
        if name.startswith("model.") and ".experts." in name and isinstance(value, DTensor)
    )


def test_bf16_gradients_are_close_to_fp32_and_parameters_stay_fp32(ranks: Ranks) -> None:
    config = tiny.config()
    exact, *_ = ranks.run(sharded_gradients, config, world_size=2)
    config.train.precision = Precision.bf16
    rough, *_ = ranks.run(sharded_gradients, config, world_size=2)
    assert rough["totals"].loss == pytest.approx(exact["totals"].loss, rel=1e-2)
    assert rough["norm"] == pytest.approx(exact["norm"], rel=0.1)
    assert {g.dtype for g in rough["gradients"].values()} == {torch.float32}


def test_keeping_parameters_after_forward_changes_nothing(ranks: Ranks) -> None:
    config = tiny.config()
    expected, *_ = ranks.run(sharded_gradients, config, world_size=2)
    config.parallel.sharding = Sharding.grad_op
    found, *_ = ranks.run(sharded_gradients, config, world_size=2)
    assert all(found["gradients"][n].equal(g) for n, g in expected["gradients"].items())
