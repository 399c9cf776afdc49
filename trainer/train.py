"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch
import torch.distributed as dist

from trainer.batch import Batch, keys
from trainer.checkpoint import Checkpoints, Progress
from trainer.config import Positions, TrainConfig, TrainerConfig, accumulation
from trainer.loss import StepSums, StepTotals, loss_of
from trainer.optim import learning_rate
from trainer.parallel import Engine
from trainer.record import Record
from trainer.samples import IGNORED, Samples

log = logging.getLogger(__name__)


class Dataset(Protocol):
    """Samples by index; each a pure function of (the dataset's seed, index)."""

    fingerprint: str  # of the tokens and of how they are ordered
    every_token: bool  # every position of every sample is trained on

    def batch(self, indices: Sequence[int]) -> Samples:
        """The samples at these indices; any index from 0 on is allowed."""
        ...


class NonFiniteError(Exception):
    """Loss or gradient norm is NaN or infinite. The parameters were not updated with it."""


@dataclass(frozen=True)
class Outcome:
    """How a call of ``train`` ended."""

    kind: Literal["finished", "stopped"]
    reason: str  # why it stopped: what the ranks' ``stop()`` said; for a finished run, what it reached
    step: int
    tokens: int  # consumed since the first attempt
    loss_first: float | None  # of the run's first step, whichever attempt made it
    loss_last: float | None
    tokens_per_s: float  # over this call's steps; 0 without any


def train(
    config: TrainerConfig,
    engine: Engine,
    *,
    dataset: Dataset,
    checkpoints: Path,
    stop: Callable[[], str | None],
    record: Record,
) -> Outcome:
    """Train from the newest complete checkpoint until ``train.tokens`` are consumed or a rank is asked to stop.

    Collective: every rank of the process group calls it with the same configuration.

    Args:
        checkpoints: folder of the run's checkpoints.
        stop: why this rank was asked to stop, or None. Asked once a step; all ranks stop after the same step.

    Raises:
        NonFiniteError: on all ranks, at the step that gave it.
        CheckpointError: on all ranks, if a checkpoint cannot be written, or those that exist not be loaded.
    """
    saved = Checkpoints(
        checkpoints,
        identity=identity(config, dataset),
        keep_latest=config.train.checkpoint.keep_latest,
        keep_every=config.train.checkpoint.keep_every,
        device=engine.device,
        record=record,
    )
    progress = saved.resume(engine.state(), seed=config.train.seed)
    resumed_at, saved_at = progress.tokens, progress.step
    seconds = 0.0
    reason: str | None = None

    while progress.tokens < config.train.tokens and reason is None:
        step = _step(config, engine, dataset, progress, stop)
        _tell(record, step, config.train, engine.rank)
        if not step.finite:
            _refuse(record, step, saved_at)
        _advance(progress, config, step)
        seconds += step.seconds
        if step.totals.stops:
            reason = _agreed_reason(step.asked)
            if engine.rank == 0:
                record.event("stop", step=step.number, reason=reason)
        if _due(step.number, int(config.train.checkpoint.every_steps)):
            saved.save(engine.state(), progress)
            saved_at = step.number

    if saved_at != progress.step:
        saved.save(engine.state(), progress)
    speed = (progress.tokens - resumed_at) / seconds if seconds else 0.0
    outcome = _outcome(config.train, progress, reason, speed)
    if engine.rank == 0:
        record.event(outcome.kind, step=outcome.step, tokens=outcome.tokens, reason=outcome.reason)
    record.sync()
    return outcome


def identity(config: TrainerConfig, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint and a run must have in common. Values that may change during a run are left out."""
    model = asdict(config.model, dict_factory=_plain)
    free = ["init_std", "init_truncate", "init_attention_output_std", "init_down_std", "dropout", "attention_dropout"]
    if config.model.positions is Positions.rotary:
        free.append("max_seq_len")
    for name in free:
        del model[name]
    if config.model.moe is not None:
        for name in _FREE_OF_MOE:
            del model["moe"][name]
    return {
        "model": model,
        "data": {"seq_len": config.data.seq_len, "fingerprint": dataset.fingerprint},
        "seed": config.train.seed,
    }


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in items}


# What may change in a run's MoE layers.
_FREE_OF_MOE = (
    *("balance_loss", "z_loss", "implementation", "capacity_factor", "eval_capacity_factor", "min_capacity"),
    *("selection", "scope"),
)


def sample_ids(first: int, rank: int, world_size: int, passes: int, micro_batch: int) -> Iterator[range]:
    """The samples of one rank in a step that begins at sample ``first``, pass by pass.

    Pass m of all ranks together covers the m-th stretch of micro_batch · world_size samples, rank r the r-th
    part of it. A step thus sees samples first ... first + batch - 1, each once, for every layout.
    """
    for m in range(passes):
        begin = first + (m * world_size + rank) * micro_batch
        yield range(begin, begin + micro_batch)


@dataclass(frozen=True)
class _Step:
    """What one step was, on this rank; all but the last two fields are the same on every rank."""

    number: int
    tokens: int  # consumed with it
    totals: StepTotals
    lr: float
    asked: str | None  # why this rank was asked to stop
    seconds: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.totals.loss) and math.isfinite(self.totals.grad_norm)


def _step(
    config: TrainerConfig, engine: Engine, dataset: Dataset, progress: Progress, stop: Callable[[], str | None]
) -> _Step:
    """Collective: one step over the global batch. Parameters change only if loss and gradient norm are finite."""
    began = time.perf_counter()
    passes = _read(config, engine, dataset, progress)
    valid = _valid_tokens(config, dataset, passes)
    sums = _gradients(config, engine, passes, valid)
    asked = stop()
    # Losses, loads and the wish to stop come from one reduction: on each rank the step ends knowing the same.
    sums.reduce(stop=asked is not None)
    totals = sums.totals(engine.norm(), batch_tokens=config.train.batch_tokens, valid=valid)
    tokens = progress.tokens + config.train.batch_tokens
    lr = learning_rate(tokens, config.optim, config.train)
    step = _Step(progress.step + 1, tokens, totals, lr, asked, 0.0)
    if step.finite:
        engine.update(lr, norm=totals.grad_norm, max_norm=config.optim.clip)
        if config.model.moe is not None and config.model.moe.bias_update:
            engine.rebalance(sums.tokens_LE())
    else:
        engine.drop(overflow=True)
    return replace(step, seconds=time.perf_counter() - began)


def _read(config: TrainerConfig, engine: Engine, dataset: Dataset, progress: Progress) -> list[Batch]:
    """This rank's share of the global batch, pass by pass."""
    passes = accumulation(config.train, config.data, config.parallel, engine.world_size)
    size = config.parallel.micro_batch
    samples = sample_ids(progress.next_sample, engine.rank, engine.world_size, passes, size)
    return [
        Batch.of(dataset.batch(indices), engine.device, keys(config.train.seed, progress.step + 1, indices))
        for indices in samples
    ]


def _valid_tokens(config: TrainerConfig, dataset: Dataset, passes: list[Batch]) -> int:
    """Collective where samples are padded: positions of the global batch that are trained on."""
    if dataset.every_token:
        return config.train.batch_tokens
    count = torch.stack([(batch.targets_BS != IGNORED).sum() for batch in passes]).sum()
    dist.all_reduce(count)
    return int(count)


def _gradients(config: TrainerConfig, engine: Engine, passes: list[Batch], valid: int) -> StepSums:
    """Forward and backward over this rank's share of the global batch."""
    sums = StepSums(config.model, engine.device)
    for number, batch in enumerate(passes, start=1):
        output = engine.forward(batch)
        loss, parts = loss_of(output, batch.targets_BS, config.model, valid)
        engine.backward(loss, last=number == len(passes))
        sums.add(parts, output, config.data.seq_len)
    return sums


def _tell(record: Record, step: _Step, train: TrainConfig, rank: int) -> None:
    if rank > 0:
        if _due(step.number, train.ranks_every):
            record.rank(step=step.number, step_s=step.seconds)
        return
    totals = step.totals
    metrics = {"loss": totals.loss, "lr": step.lr, "grad_norm": totals.grad_norm}
    if totals.tokens_per_expert:
        metrics |= {"balance_loss": totals.balance_loss, "z_loss": totals.z_loss}
    speed = train.batch_tokens / step.seconds
    record.step(step=step.number, tokens=step.tokens, **metrics, tokens_per_s=speed, step_s=step.seconds)
    if totals.tokens_per_expert and _due(step.number, train.experts_every):
        record.experts(step=step.number, layers=totals.tokens_per_expert)
    log.info("step %d  loss %.4f  gradient norm %.3f  %.0f tokens/s", step.number, totals.loss, totals.grad_norm, speed)


def _refuse(record: Record, step: _Step, saved_at: int) -> NoReturn:
    record.event("non_finite", step=step.number, loss=step.totals.loss, grad_norm=step.totals.grad_norm)
    record.sync()
    since = f"the last checkpoint is of step {saved_at}" if saved_at else "there is no checkpoint yet"
    loss, norm = step.totals.loss, step.totals.grad_norm
    raise NonFiniteError(
        f"step {step.number}: the loss is {loss}, the gradient norm {norm}. The parameters were "
        f"not updated; {since}. A lower optim.lr or optim.clip, or a longer optim.warmup_tokens, may help"
    )


def _advance(progress: Progress, config: TrainerConfig, step: _Step) -> None:
    progress.step = step.number
    progress.tokens = step.tokens
    progress.next_sample += config.train.batch_tokens // config.data.seq_len
    progress.loss_last = step.totals.loss
    if progress.loss_first is None:
        progress.loss_first = step.totals.loss


def _agreed_reason(asked: str | None) -> str:
    """Collective: why training stops, in the words of the ranks that were asked."""
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, asked)
    return ", ".join(sorted({reason for reason in reasons if reason}))


def _outcome(train: TrainConfig, progress: Progress, reason: str | None, tokens_per_s: float) -> Outcome:
    finished = progress.tokens >= train.tokens
    return Outcome(
        kind="finished" if finished else "stopped",
        reason=f"train.tokens={train.tokens}" if finished else str(reason),
        step=progress.step,
        tokens=progress.tokens,
        loss_first=progress.loss_first,
        loss_last=progress.loss_last,
        tokens_per_s=tokens_per_s,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
