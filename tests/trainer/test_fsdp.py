"""FSDP: how parameters lie on ranks, precision, and that a checkpoint of any layout goes on under any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradients
import pytest
import tiny
import torch
from ranks import Ranks
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write
from torch.distributed.tensor import DTensor

from trainer import config as schema
from trainer.batch import Batch
from trainer.config import ParallelConfig, Precision, Sharding, TrainerConfig
from trainer.parallel import Engine, build

SINGLE = ParallelConfig(engine=schema.Engine.single, micro_batch=2)
FULL = ParallelConfig(micro_batch=2)
KEPT = replace(FULL, sharding=Sharding.grad_op)
COPIES = replace(FULL, sharding=Sharding.hybrid)  # of nodes of 2 ranks
LAYOUTS: list[tuple[int, ParallelConfig]] = [
    (1, SINGLE),
    (1, FULL),
    (2, KEPT),
    (2, replace(FULL, expert_parallel=2)),
    (4, FULL),
    (4, replace(FULL, expert_parallel=2)),
    (4, replace(KEPT, expert_parallel=4)),
    (4, COPIES),
    (4, replace(COPIES, expert_parallel=2)),
]


def biased() -> TrainerConfig:
    """The tiny mixture of experts with everything that a checkpoint can hold: biases, a router's bias too."""
    config = tiny.config()
    config.model.bias = True
    assert config.model.moe is not None
    config.model.moe.bias_update = 1e-3
    return config


def first_values(config: TrainerConfig) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in build(config, tiny.CPU, 2).state().items()
    }


def test_every_layout_starts_from_the_same_bits_under_the_same_names(ranks: Ranks) -> None:
    config = biased()
    config.parallel = SINGLE
    expected, *_ = ranks.run(first_values, config, world_size=1)
    assert expected["model.layers.1.moe.router.bias_E"].count_nonzero() == 0
    for world_size, parallel in LAYOUTS:
        config.parallel = parallel
        for found in ranks.run(first_values, config, world_size=world_size):
            assert list(found) == list(expected)
            assert all(found[name].equal(expected[name]) for name in expected)


def elements_held(config: TrainerConfig) -> int:
    state = build(config, tiny.CPU, 2).state()
    return sum(
        value.to_local().numel()
        for name, value in state.items()
        if name.startswith("model.") and ".experts." in name and isinstance(value, DTensor)
    )


@pytest.mark.parametrize(("experts", "world_size", "shared"), [(1, 2, 1), (3, 2, 1), (4, 2, 2), (4, 4, 2), (2, 4, 2)])
def test_ranks_hold_equal_parts_of_the_experts_however_many_there_are(
    ranks: Ranks, experts: int, world_size: int, shared: int
) -> None:
    config = tiny.config()
    assert config.model.moe is not None
    config.model.moe.experts, config.model.moe.top_k = experts, 1
    config.parallel.expert_parallel = shared
    assert ranks.run(elements_held, config, world_size=world_size) == [3 * experts * 16 * 8 // world_size] * world_size


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
@pytest.mark.parametrize(("world_size", "parallel"), [(1, SINGLE), (2, KEPT), (4, replace(COPIES, expert_parallel=2))])
def test_half_precision_gradients_are_close_and_parameters_stay_float32(
    ranks: Ranks, world_size: int, parallel: ParallelConfig, precision: Precision
) -> None:
    config = tiny.config(precision=precision)
    config.parallel = parallel
    config.train.loss_scale.initial = 2.0**12  # so low that nothing overflows at once
    data = gradients.lola(config)
    exact = gradients.reference(config, data)
    for found in ranks.run(half_precision, config, data, world_size=world_size):
        assert found["norm"] == pytest.approx(exact.norm, rel=0.1)
        assert found["dtypes"] == {torch.float32}
        assert found["scale"] == (config.train.loss_scale.initial if precision is Precision.fp16 else None)


def half_precision(config: TrainerConfig, data: tiny.Tokens) -> dict[str, Any]:
    engine = build(config, tiny.CPU, 2)
    gradients.accumulate(engine, config, data)
    norm = engine.norm().item()
    engine.update(1e-3, norm=norm, max_norm=1.0)
    return {"norm": norm, "dtypes": {t.dtype for t in engine.state().values()}, "scale": engine.loss_scale()}


def test_what_evaluation_gathered_is_not_used_after_loading(ranks: Ranks) -> None:
    config = tiny.config()
    config.parallel = KEPT
    for before, after, expected in ranks.run(evaluations, config, world_size=2):
        assert before != after == expected


def evaluations(config: TrainerConfig) -> tuple[float, float, float]:
    """Loss of a batch; again with parameters of another seed loaded; of an engine that began with these."""

    def loss(engine: Engine) -> float:
        found = engine.evaluate(Batch.of(tiny.Tokens().batch(range(2)), tiny.CPU)).cross_entropy
        assert found is not None
        return found.item()

    engine = build(config, tiny.CPU)
    before = loss(engine)
    config.train.seed += 1
    other = build(config, tiny.CPU)
    expected = loss(other)
    theirs = other.state()
    for name, tensor in engine.state().items():
        tensor.copy_(theirs[name])
    engine.load_values({})
    return before, loss(engine), expected


# -- a checkpoint of any layout goes on under any other -----------------------------------------------------------


class Stretch(NamedTuple):
    losses: list[float]
    samples: list[int]  # of this rank


def stretch(config: TrainerConfig, steps: range, load: Path | None = None, save: Path | None = None) -> Stretch:
    """On a rank: train some steps, from and to a checkpoint."""
    engine = build(config, tiny.CPU, 2)
    data = tiny.Tokens()
    if load is not None:
        read(engine.state(), checkpoint_id=load)
        engine.load_values({})
    losses = [_step(engine, config, data, step) for step in steps]
    if save is not None:
        write(engine.state(), checkpoint_id=save)
    return Stretch(losses, data.seen)


def _step(engine: Engine, config: TrainerConfig, data: tiny.Tokens, step: int) -> float:
    sums = gradients.accumulate(engine, config, data, step)
    torch.distributed.all_reduce(sums)
    engine.update(5e-3, norm=engine.norm().item(), max_norm=1.0)
    engine.rebalance(sums[3:-1].unsqueeze(0))
    return sums[0].item() / config.train.batch_tokens


FIRST, REST = range(4), range(4, 24)


def test_a_checkpoint_of_any_layout_goes_on_under_any_other(ranks: Ranks, tmp_path: Path) -> None:
    config = biased()
    config.parallel = SINGLE
    (uninterrupted,) = ranks.run(stretch, config, range(24), world_size=1)
    for number, (world_size, parallel) in enumerate(LAYOUTS):
        config.parallel = parallel
        begun = ranks.run(stretch, config, FIRST, None, tmp_path / str(number), world_size=world_size)
        assert begun[0].losses == pytest.approx(uninterrupted.losses[:4], rel=1e-4)
        # Every layout is left once and entered once; 4 further on, so that ranks and sharing change.
        world_size, config.parallel = LAYOUTS[(number + 4) % len(LAYOUTS)]
        ended = ranks.run(stretch, config, REST, tmp_path / str(number), world_size=world_size)
        assert ended[0].losses == pytest.approx(uninterrupted.losses[4:], rel=1e-4)
        seen = sorted(sample for part in (*begun, *ended) for sample in part.samples)
        assert seen == list(range(24 * 8))
