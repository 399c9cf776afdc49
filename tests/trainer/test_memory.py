"""The estimate of a rank's memory, against bytes that engines hold and against traces of steps."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Ranks
from traced import traced

from hpc.compose import compose
from trainer import parallel
from trainer.activations import DRAWN, HEAD_ROWS, HEAD_ROWS_ON_GPU
from trainer.batch import Batch
from trainer.config import (
    ActivationCheckpointing,
    Engine,
    ParallelConfig,
    Precision,
    Sharding,
    TrainerConfig,
)
from trainer.fit import nearest
from trainer.loss import loss_of
from trainer.memory import BUCKET, Memory, estimate
from trainer.parallel.base import Base
from trainer.problems import problems

# -- bytes on real ranks -----------------------------------------------------------------------------------------


def even(**fields: object) -> TrainerConfig:
    """Sizes that two ranks share evenly, and so large that what all ranks hold whole does not count."""
    config = tiny.config()
    model = replace(config.model, vocab_size=512, d_model=64, kv_heads=4, d_ff=128)
    assert model.moe is not None
    model.moe = replace(model.moe, d_ff=64)
    return replace(config, model=model, parallel=ParallelConfig(micro_batch=2, **fields))  # type: ignore[arg-type]


def held(config: TrainerConfig, passes: int) -> Memory:
    """On a rank: bytes of parameters, gradients and moments after the passes of a step."""
    engine = parallel.build(config, tiny.CPU, 2)
    batch = Batch.of(tiny.Tokens(seq_len=config.data.seq_len).batch(range(2)), tiny.CPU)
    for done in range(1, passes + 1):
        loss, _ = loss_of(engine.forward(batch), batch.targets_BS, config.model, 1)
        engine.backward(loss, last=done == passes)
    engine.norm()
    if isinstance(engine, Base):
        gradients = [held.gradient() for held in engine.held]
        parameters = [held.local for held in engine.held]
        state = [moment for held in engine.held for moment in engine.optimizer.state[held.local].values()]
    else:
        from trainer.parallel.deepspeed import DeepSpeed

        assert isinstance(engine, DeepSpeed)
        flats = engine.zero.flats()
        gradients = list(engine.zero.gradients())
        lower = [_lower(p) for p in engine.model.parameters() if config.parallel.zero_stage]
        parameters = flats + lower
        state = [moment for flat in flats for moment in engine.optimizer.state[flat].values()]
        if config.parallel.offload:
            host = [*flats, *gradients, *(t for t in state if t.ndim)]
            return _offloaded(engine.zero.optimizer, host, lower, config.parallel.zero_stage)
    return Memory(_bytes(parameters), _bytes(gradients), _bytes(t for t in state if t.ndim))


def _offloaded(zero: Any, host: list[torch.Tensor], lower: list[torch.Tensor], stage: int) -> Memory:
    """What lies in host memory, and what would lie on a GPU; here it is all the same memory."""
    if stage == 3:
        return Memory(offloaded=_bytes([*host, *lower, zero.grad_partitions_flat_buffer]))
    buffers = [*zero.param_buffer_of_bit16_for_cpu_offload_groups, zero.temp_grad_buffer_for_cpu_offload]
    sums = [sums for group in zero.averaged_gradients.values() for sums in group]
    added_up = list(zero.accumulated_grads_in_cpu.values())
    return Memory(_bytes(lower), _bytes(sums), offloaded=_bytes([*host, *buffers, *added_up]))


def _lower(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What ZeRO computes with, or this rank's part of it."""
    return getattr(parameter, "ds_tensor", parameter.data)


def _bytes(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)  # type: ignore[attr-defined]


LAYOUTS = {
    "single": (1, {"engine": Engine.single}),
    "full": (2, {}),
    "grad_op": (2, {"sharding": Sharding.grad_op}),
    "hybrid": (2, {"sharding": Sharding.hybrid, "shard_ranks": 1}),
    "experts": (2, {"expert_parallel": 2}),
    "zero1": (2, {"engine": Engine.deepspeed, "zero_stage": 1}),
    "zero2": (2, {"engine": Engine.deepspeed, "zero_stage": 2}),
    "zero3": (2, {"engine": Engine.deepspeed, "zero_stage": 3}),
    "zero1, experts": (2, {"engine": Engine.deepspeed, "zero_stage": 1, "expert_parallel": 2}),
    "zero2, experts": (2, {"engine": Engine.deepspeed, "zero_stage": 2, "expert_parallel": 2}),
    "zero3, all experts": (2, {"engine": Engine.deepspeed, "zero_stage": 3, "expert_parallel": 1}),
    "zero2, offload": (2, {"engine": Engine.deepspeed, "zero_stage": 2, "offload": True}),
    "zero3, offload": (2, {"engine": Engine.deepspeed, "zero_stage": 3, "offload": True}),
}
CELLS = [(layout, precision) for layout in LAYOUTS for precision in (Precision.fp32, Precision.bf16)]
CELLS += [(layout, Precision.fp16) for layout in LAYOUTS if layout.startswith("zero")]


@pytest.mark.parametrize(("layout", "precision"), CELLS)
def test_parameters_gradients_and_moments_are_those_that_engines_hold(
    ranks: Ranks, layout: str, precision: Precision
) -> None:
    world_size, fields = LAYOUTS[layout]
    config = even(**fields)
    config.train.precision = precision
    config.train.batch_tokens = 2 * 16 * world_size
    if config.parallel.engine is Engine.deepspeed and "experts" not in layout:
        config.model.moe = None
    same_bytes(ranks.run(held, config, 1, world_size=world_size), estimate(config, world_size, 2, gpu=False))


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.fp16])
@pytest.mark.parametrize("layout", ["zero2, experts", "zero2, offload", "zero3, offload"])
def test_so_they_are_after_several_passes(ranks: Ranks, layout: str, precision: Precision) -> None:
    world_size, fields = LAYOUTS[layout]
    config = even(**fields)
    config.train.precision = precision
    config.train.batch_tokens = 2 * 16 * world_size * 2
    same_bytes(ranks.run(held, config, 2, world_size=world_size), estimate(config, world_size, 2, gpu=False))


def same_bytes(ranks: list[Memory], expected: Memory) -> None:
    for found in ranks:
        for kind in ("parameters", "gradients", "optimizer", "offloaded"):
            assert getattr(found, kind) == pytest.approx(getattr(expected, kind), rel=0.03), kind


def test_numbers_that_are_written_down_twice_agree() -> None:
    from trainer.model import context, head
    from trainer.parallel import deepspeed

    assert (HEAD_ROWS, HEAD_ROWS_ON_GPU) == (head.ROWS, head.ROWS_ON_GPU)
    assert (DRAWN, BUCKET) == (context.DRAWN, deepspeed.BUCKET)


# -- traces of a step --------------------------------------------------------------------------------------------

TRACES = {  # ranks, overrides
    "llammlein_120m": (32, ["experiment=llammlein_120m"]),
    "llammlein_1b": (64, ["experiment=llammlein_1b", "parallel.activation_checkpointing=none"]),
    "llammlein_1b, computed again": (64, ["experiment=llammlein_1b"]),
    "llammlein_1b, selectively": (64, ["experiment=llammlein_1b", "parallel.activation_checkpointing=selective"]),
    "olmoe_1b_7b": (96, ["experiment=olmoe_1b_7b"]),
    "olmoe_1b_7b, computed again": (96, ["experiment=olmoe_1b_7b", "parallel.activation_checkpointing=full"]),
    "lola": (96, ["experiment=lola_v1", "parallel=fsdp", "parallel.expert_parallel=1", "train.precision=bf16"]),
}


@pytest.mark.parametrize("name", TRACES)
def test_the_whole_is_that_of_a_trace(name: str) -> None:
    world_size, overrides = TRACES[name]
    made = compose([*overrides, "parallel.micro_batch=2"])
    config = TrainerConfig(made.model, made.data, made.optim, made.parallel, made.train)
    config.train.batch_tokens = world_size * 2 * config.data.seq_len
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(traced, config, world_size, 8).result(timeout=300)
    assert estimate(config, world_size, 8, gpu=False).total == pytest.approx(found, rel=0.1)


# -- what follows from what --------------------------------------------------------------------------------------

CONFIGS = [f"experiment={name}" for name in ("lola_v1", "llammlein_1b", "olmoe_1b_7b", "linly_13b")]


def trainer_config(*overrides: str) -> TrainerConfig:
    made = compose(list(overrides))
    return TrainerConfig(made.model, made.data, made.optim, made.parallel, made.train)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(CONFIGS),
    engine=st.sampled_from([Engine.fsdp, Engine.deepspeed]),
    sharding=st.sampled_from(list(Sharding)),
    stage=st.integers(0, 3),
    ranks=st.sampled_from([8, 16, 64]),
    micro=st.integers(1, 4),
    gpu=st.booleans(),
)
def test_less_work_at_a_time_more_ranks_and_more_computed_again_never_need_more(
    name: str, engine: Engine, sharding: Sharding, stage: int, ranks: int, micro: int, gpu: bool
) -> None:
    base = CACHED.setdefault(name, trainer_config(name))

    def total(ranks: int = ranks, micro: int = micro, **fields: object) -> float:
        layout = replace(
            base.parallel, engine=engine, sharding=sharding, zero_stage=stage, offload=False, expert_parallel=1
        )
        layout = replace(layout, micro_batch=micro, **fields)  # type: ignore[arg-type]
        batch = replace(base.train, batch_tokens=1 << 40)
        return estimate(replace(base, parallel=layout, train=batch), ranks, 8, gpu=gpu).total

    assert total(micro=micro) <= total(micro=micro + 1)
    assert total(ranks=2 * ranks) <= total(ranks=ranks)
    none, selective, full = (total(activation_checkpointing=kind) for kind in ActivationCheckpointing)
    assert full <= selective <= none
    assert total(reduce_every_pass=True) <= total()
    if engine is Engine.fsdp:
        assert total(sharding=Sharding.full) <= total(sharding=Sharding.grad_op)


CACHED: dict[str, TrainerConfig] = {}


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(CONFIGS), share=st.floats(0.05, 0.95))
def test_what_is_proposed_fits_and_is_a_legal_layout(name: str, share: float) -> None:
    config, world = CACHED.setdefault(name, trainer_config(name)), 96 if "lola" in name else 64
    config = replace(config, train=replace(config.train, batch_tokens=world * 24 * config.data.seq_len))
    limit = share * estimate(config, world, 8, gpu=True).total

    def fits(other: TrainerConfig) -> bool:
        return estimate(other, world, 8, gpu=True).total <= limit

    found = nearest(config, world, 8, fits)
    if found is not None:
        other = replace(config, parallel=trainer_config(name, *found).parallel)
        assert fits(other)
        assert not list(problems(other, world, 8))
