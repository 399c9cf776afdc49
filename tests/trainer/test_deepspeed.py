"""DeepSpeed: gradients of every stage and layout, precision, what is dropped, and that checkpoints go on anywhere."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradients
import pytest
import tiny
import torch
import torch.distributed as dist
from gradients import Variant, capacity, dense, documents, dropless, dropout, lola, padded, shared, sigmoid
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks
from test_fsdp import REST, SINGLE, biased, stretch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from trainer.batch import Batch
from trainer.config import ActivationCheckpointing, ParallelConfig, Precision, TrainerConfig
from trainer.config import Engine as Engines
from trainer.parallel import Engine, build
from trainer.parallel.deepspeed_fragment import Fragment, boxes
from trainer.problems import problems

ZERO = [ParallelConfig(engine=Engines.deepspeed, micro_batch=2, zero_stage=stage) for stage in range(4)]
SELECTIVE, RECOMPUTE = ActivationCheckpointing.selective, ActivationCheckpointing.full
EP2, EP4 = {"expert_parallel": 2}, {"expert_parallel": 4}


# -- gradients ----------------------------------------------------------------------------------------------------

CELLS: list[tuple[Variant, int, ParallelConfig]] = [
    *((dropless, 1, zero) for zero in ZERO),
    *((dropless, 2, zero) for zero in ZERO),
    *((dropless, 4, replace(zero, micro_batch=1)) for zero in ZERO),
    *((dropless, 2, replace(zero, **EP2)) for zero in ZERO[:3]),
    *((dropless, 4, replace(zero, **EP2)) for zero in ZERO[:3]),
    *((dropless, 4, replace(zero, **EP4)) for zero in ZERO[:3]),
    *((dropless, 2, replace(zero, offload=True, micro_batch=1)) for zero in ZERO[1:]),
    (capacity, 4, replace(ZERO[1], **EP2)),
    (capacity, 2, ZERO[3]),
    (dropout, 2, replace(ZERO[0], **EP2, activation_checkpointing=SELECTIVE)),
    (dropout, 4, replace(ZERO[2], **EP4, activation_checkpointing=RECOMPUTE)),
    (dropout, 2, replace(ZERO[3], activation_checkpointing=SELECTIVE)),
    (dropout, 4, replace(ZERO[3], activation_checkpointing=RECOMPUTE)),
    (sigmoid, 4, replace(ZERO[2], **EP2)),
    (sigmoid, 2, ZERO[3]),
    (shared, 2, ZERO[2]),
    (lola, 4, replace(ZERO[2], **EP2)),
    (lola, 2, replace(ZERO[3], activation_checkpointing=RECOMPUTE)),
    (padded, 2, replace(ZERO[1], **EP2)),
    (documents, 2, replace(ZERO[2], offload=True, **EP2)),
    *((dense, 2, zero) for zero in ZERO),
]


def name(variant: Variant, ranks: int, parallel: ParallelConfig) -> str:
    parts = [variant.__name__, f"stage {parallel.zero_stage}", f"{ranks} ranks"]
    parts += [f"ep {parallel.expert_parallel}"] if parallel.expert_parallel > 1 else []
    parts += ["offload"] if parallel.offload else []
    recompute = parallel.activation_checkpointing
    parts += [] if recompute is ActivationCheckpointing.none else [f"{recompute.name} recompute"]
    return ", ".join(parts)


@pytest.mark.parametrize(("variant", "world_size", "parallel"), [pytest.param(*cell, id=name(*cell)) for cell in CELLS])
def test_gradients_agree(ranks: Ranks, variant: Variant, world_size: int, parallel: ParallelConfig) -> None:
    config = tiny.config()
    config.parallel = parallel
    data = variant(config)
    expected = gradients.reference(config, data)
    for found in ranks.run(gradients.of_rank, config, data, whole_gradients, world_size=world_size):
        gradients.agree(found, expected)


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """Gathered from all ranks, by DeepSpeed's own function."""
    from deepspeed.utils import safe_get_full_grad

    from trainer.parallel.deepspeed import DeepSpeed

    assert isinstance(engine, DeepSpeed)
    found = {}
    for name, parameter in engine.model.named_parameters():
        gradient = safe_get_full_grad(parameter)
        assert gradient is not None
        gradient = gradient.double().contiguous() / engine._divisor()
        if not getattr(parameter, "allreduce", True):
            parts = [torch.empty_like(gradient) for _ in range(engine.world_size)]
            dist.all_gather(parts, gradient)
            gradient = torch.cat(parts[: engine.experts.shared])
        found[name] = gradient
    return found


@pytest.mark.parametrize("parallel", ZERO, ids=[f"stage {zero.zero_stage}" for zero in ZERO])
def test_parameters_larger_than_what_is_reduced_together(ranks: Ranks, parallel: ParallelConfig) -> None:
    config = tiny.config()
    config.parallel = parallel
    data = dropless(config)
    expected = gradients.reference(config, data)
    for found in ranks.run(with_small_buckets, config, data, world_size=2):
        gradients.agree(found, expected)


def with_small_buckets(config: TrainerConfig, data: tiny.Tokens) -> gradients.Found:
    from trainer.parallel import deepspeed

    before, deepspeed.BUCKET = deepspeed.BUCKET, 200
    try:
        return gradients.of_rank(config, data, whole_gradients)
    finally:
        deepspeed.BUCKET = before


# -- precision, and what is thrown away ---------------------------------------------------------------------------

MIXED = [*ZERO, replace(ZERO[1], **EP2), replace(ZERO[2], **EP2), *(replace(zero, offload=True) for zero in ZERO[1:])]
# Those that DeepSpeed has an optimizer of their own for.
BY_PRECISION = {Precision.fp32: ZERO, Precision.bf16: [ZERO[1], ZERO[3]], Precision.fp16: MIXED}


def step(engine: Engine, config: TrainerConfig, data: tiny.Tokens, number: int) -> tuple[float, float]:
    """Train one step; its loss and gradient norm."""
    sums = gradients.accumulate(engine, config, data, number)
    dist.all_reduce(sums)
    norm = engine.norm().item()
    engine.update(5e-3, norm=norm, max_norm=1.0)
    return sums[0].item() / config.train.batch_tokens, norm


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    """Collective: a state's tensors, gathered from all ranks."""
    found = {}
    for name, value in state.items():
        if isinstance(value, Fragment):
            both = torch.zeros(2, math.prod(value.shape))
            both[:, value.start : value.start + value.local.numel()] = 1.0
            both[0, value.start : value.start + value.local.numel()] = value.local
            dist.all_reduce(both)
            value = (both[0] / both[1]).view(value.shape)
        found[name] = value.clone()
    return found


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_half_precision_gradients_are_close_and_the_state_is_float32(ranks: Ranks, precision: Precision) -> None:
    config = tiny.config(precision=precision)
    data = gradients.lola(config)
    exact = gradients.reference(config, data)
    for config.parallel in MIXED:
        for norm, dtypes, scale in ranks.run(half_precision, config, data, world_size=2):
            assert norm == pytest.approx(exact.norm, rel=0.1)
            assert dtypes == {torch.float32}
            assert scale == (config.train.loss_scale.initial if precision is Precision.fp16 else None)


def half_precision(config: TrainerConfig, data: tiny.Tokens) -> tuple[float, set[torch.dtype], float | None]:
    engine = build(config, tiny.CPU)
    _, norm = step(engine, config, data, gradients.STEP)
    return norm, {tensor.dtype for tensor in engine.state().values()}, engine.loss_scale()


@pytest.mark.parametrize("precision", Precision)
def test_gradients_that_are_dropped_leave_no_trace(ranks: Ranks, precision: Precision) -> None:
    config = tiny.config(precision=precision)
    # An overflow is made by a scale that float16 cannot take.
    config.train.loss_scale.initial, config.train.loss_scale.hysteresis = 2.0**40, 1
    for config.parallel in BY_PRECISION[precision]:
        for norms, scales, untouched, alike in ranks.run(dropping, config, world_size=2):
            assert untouched
            assert alike
            if precision is Precision.fp16:
                assert not math.isfinite(norms[0])
                assert scales == [2.0**40, 2.0**40, 2.0**39]
            else:
                assert math.isfinite(norms[0])
                assert scales == [None, None, None]


def dropping(config: TrainerConfig) -> tuple[list[float], list[float | None], bool, bool]:
    """Norms and loss scales; whether dropping changed the state; whether a step then is as if nothing had been."""
    data = tiny.Tokens()
    expected = whole(stepped(build(config, tiny.CPU), config, data).state())
    engine = build(config, tiny.CPU)
    before = whole(engine.state())
    norms, scales = [], [engine.loss_scale()]
    for overflow in (False, True):
        gradients.accumulate(engine, config, data, 1)
        norms.append(engine.norm().item())
        engine.drop(overflow=overflow)
        scales.append(engine.loss_scale())
    after = whole(engine.state())
    untouched = all(after[name].equal(before[name]) for name in before)
    found = whole(stepped(engine, config, data).state())
    return norms, scales, untouched, all(found[name].equal(expected[name]) for name in expected)


def stepped(engine: Engine, config: TrainerConfig, data: tiny.Tokens) -> Engine:
    """After two steps, at a loss scale that suits."""
    engine.load_values({"loss_scale": {"value": 1024.0, "good_steps": 0, "patience": 1}})
    for number in (2, 3):
        step(engine, config, data, number)
    return engine


# -- evaluation, the start, the surroundings ----------------------------------------------------------------------


def test_every_stage_starts_from_the_same_bits_and_evaluates_alike(ranks: Ranks) -> None:
    config = biased()
    config.parallel = SINGLE
    ((expected, loss, logits),) = ranks.run(beginning, config, world_size=1)
    for config.parallel in (*ZERO, replace(ZERO[0], **EP2), replace(ZERO[2], **EP2), replace(ZERO[3], offload=True)):
        for found, its_loss, its_logits in ranks.run(beginning, config, world_size=2):
            assert list(found) == list(expected)
            assert all(found[name].equal(expected[name]) for name in expected)
            assert its_loss == pytest.approx(loss, rel=1e-6)
            torch.testing.assert_close(its_logits, logits)


def beginning(config: TrainerConfig) -> tuple[dict[str, Tensor], float, Tensor]:
    engine = build(config, tiny.CPU)
    batch = Batch.of(tiny.Tokens().batch(range(2)), tiny.CPU)
    loss = engine.evaluate(batch).cross_entropy
    assert loss is not None
    return {n: t.detach() for n, t in whole(engine.state()).items()}, loss.item(), engine.logits(batch.tokens_BS)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_evaluation_between_steps_changes_nothing(ranks: Ranks, precision: Precision) -> None:
    config = biased()
    config.train.precision = precision
    for config.parallel in (ZERO[0], replace(ZERO[2], **EP2), ZERO[3]):
        for with_evaluation, without, biases in ranks.run(evaluating, config, world_size=2):
            assert with_evaluation == without
            assert biases == {torch.float32}


def evaluating(config: TrainerConfig) -> tuple[list[Any], list[Any], set[torch.dtype]]:
    data = tiny.Tokens()
    batch = Batch.of(data.batch(range(2)), tiny.CPU)
    losses: list[list[Any]] = []
    for often in (True, False):
        engine = build(config, tiny.CPU)
        losses.append([])
        for number in (1, 2, 3, 4):
            losses[-1].append(step(engine, config, data, number))
            if often:
                engine.evaluate(batch)
                engine.logits(batch.tokens_BS)
    return losses[0], losses[1], {t.dtype for name, t in engine.state().items() if name.endswith("bias_E")}


def test_the_environment_stays_as_it_was(ranks: Ranks) -> None:
    config = tiny.config()
    config.parallel = ZERO[3]
    assert ranks.run(environments, config, world_size=2) == [True, True]


def environments(config: TrainerConfig) -> bool:
    before = dict(os.environ)
    step(build(config, tiny.CPU), config, tiny.Tokens(), 1)
    torch_sets = {"TORCHINDUCTOR_CACHE_DIR"}
    return {name: value for name, value in os.environ.items() if name not in torch_sets - before.keys()} == before


def test_a_mixture_of_experts_is_sharded_by_stage_3_but_not_spread() -> None:
    config = tiny.config()
    config.parallel = ZERO[3]
    assert not list(problems(config, 4))
    config.parallel = replace(ZERO[3], **EP2)
    (problem,) = problems(config, 4)
    assert problem.field == "parallel.expert_parallel"
    assert problem.fix == "parallel.expert_parallel=1"


# -- checkpoints --------------------------------------------------------------------------------------------------

LAYOUTS: list[tuple[int, ParallelConfig]] = [
    (1, SINGLE),
    (2, ZERO[2]),
    (4, ZERO[3]),
    (1, ZERO[0]),
    (2, replace(ZERO[1], **EP2)),
    (2, ParallelConfig(micro_batch=2, expert_parallel=2)),  # FSDP
    (4, replace(ZERO[2], **EP2)),
    (2, ZERO[3]),
    (1, ZERO[1]),
    (2, replace(ZERO[2], offload=True)),
]


def test_a_checkpoint_of_any_stage_goes_on_under_any_other_and_under_other_engines(
    ranks: Ranks, tmp_path: Path
) -> None:
    config = biased()
    config.parallel = SINGLE
    (uninterrupted,) = ranks.run(stretch, config, range(24), world_size=1)
    for number, (world_size, parallel) in enumerate(LAYOUTS):
        config.parallel = parallel
        begun = ranks.run(stretch, config, range(4), None, tmp_path / str(number), world_size=world_size)
        assert begun[0].losses == pytest.approx(uninterrupted.losses[:4], rel=1e-4)
        # Every layout is left once and entered once.
        world_size, config.parallel = LAYOUTS[(number + 1) % len(LAYOUTS)]
        ended = ranks.run(stretch, config, REST, tmp_path / str(number), world_size=world_size)
        assert ended[0].losses == pytest.approx(uninterrupted.losses[4:], rel=1e-4)


@pytest.mark.parametrize("precision", Precision)
def test_on_the_same_layout_a_resumed_run_is_the_same_to_the_bit(
    ranks: Ranks, tmp_path: Path, precision: Precision
) -> None:
    config = tiny.config(precision=precision)
    for number, parallel in enumerate(BY_PRECISION[precision]):
        config.parallel = parallel
        for whole_run, resumed in ranks.run(resuming, config, tmp_path / str(number), world_size=2):
            assert resumed == whole_run


def resuming(config: TrainerConfig, folder: Path) -> tuple[list[Any], list[Any]]:
    """Losses and norms of steps 3 to 5, without and with a checkpoint in between."""
    data = tiny.Tokens()
    engine = build(config, tiny.CPU)
    for number in (1, 2):
        step(engine, config, data, number)
    state_dict_saver.save(engine.state(), checkpoint_id=folder)
    values = engine.values()
    expected = [step(engine, config, data, number) for number in (3, 4, 5)]
    engine = build(config, tiny.CPU)
    state_dict_loader.load(engine.state(), checkpoint_id=folder)
    engine.load_values(values)
    return expected, [step(engine, config, data, number) for number in (3, 4, 5)]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int]]:
    """A shape, and where its elements are cut into stretches."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    size = math.prod(shape)
    return shape, [0, *sorted(draw(st.lists(st.integers(0, size), max_size=4))), size]


@given(cuts())
def test_the_boxes_of_all_stretches_are_the_whole(cut: tuple[tuple[int, ...], list[int]]) -> None:
    shape, ends = cut
    number = torch.arange(math.prod(shape)).view(shape)
    covered = []
    for start, stop in pairwise(ends):
        found = list(boxes(shape, start, stop))
        assert len(found) <= max(1, 2 * len(shape) - 1)
        for box in found:
            assert len(box.offset) == len(box.size) == len(shape)
            covered += _inside(number, box.offset, box.size)
    assert covered == list(range(number.numel()))


def _inside(number: Tensor, offset: Iterable[int], size: Iterable[int]) -> list[int]:
    return number[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))].flatten().tolist()
