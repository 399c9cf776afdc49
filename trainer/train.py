"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from trainer import postmortem
from trainer.checkpoint import Checkpoints, Progress
from trainer.config import TrainerConfig
from trainer.consumed import consumed
from trainer.evaluate import ValidationSet, evaluate
from trainer.guard import Guard, Verdict
from trainer.identity import identity
from trainer.interval import due
from trainer.meter import Meter, Speed
from trainer.parallel import Engine
from trainer.profile import Profiles
from trainer.profile_request import FOLDER
from trainer.record import Record
from trainer.step import Dataset, Step, Stepper, sample_ids
from trainer.tell import each, tell_sources, tell_step, tell_verdict
from trainer.watchdog import Watchdog

__all__ = ["Dataset", "Outcome", "identity", "sample_ids", "train"]

log = logging.getLogger(__name__)


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
    sources: dict[str, dict[str, float]]  # rank 0: tokens and epochs of each, as of the last save


def train(
    config: TrainerConfig,
    engine: Engine,
    *,
    dataset: Dataset,
    checkpoints: Path,
    stop: Callable[[], str | None],
    record: Record,
    validation: ValidationSet | None = None,
    folder: Path | None = None,
    peak_flops: float | None = None,
) -> Outcome:
    """Train from the newest complete checkpoint until ``train.tokens`` are consumed or a rank is asked to stop.

    Collective: every rank of the process group calls it with the same configuration, from its main thread.

    Args:
        checkpoints: folder of the run's checkpoints.
        stop: why this rank was asked to stop, or None. Asked once a step; all ranks stop after the same step.
        validation: what ``train.evaluate`` measures; None: nothing is.
        folder: where to write what hangs or ran out of memory, and profiles, for which requests are looked for in
            its ``profile``. None: none of it happens.
        peak_flops: of all devices together, FLOP/s, for the MFU.

    Raises:
        FailedTraining: on all ranks, at the step that gave it; see ``trainer.guard``.
        CheckpointError: on all ranks, if a checkpoint cannot be written, or those that exist not be loaded.
    """
    meter = Meter(engine.device)
    with Watchdog(config.train.watch, folder, engine.rank, record) as watchdog:
        profiles = Profiles(
            folder / FOLDER if folder is not None else None,
            rank=engine.rank,
            world_size=engine.world_size,
            device=engine.device,
            record=record,
        )
        saved = Checkpoints(
            checkpoints,
            identity=identity(config, dataset),
            keep_latest=config.train.checkpoint.keep_latest,
            keep_every=config.train.checkpoint.keep_every,
            background=config.train.checkpoint.background,
            device=engine.device,
            record=record,
        )
        loop = _Loop(
            config=config,
            engine=engine,
            # A checkpoint that this rank cannot write is a reason to stop: to go on would be to lose what follows.
            stepper=Stepper(
                config, engine, dataset, meter=meter, stop=lambda: stop() or saved.poll(), profile=profiles.poll
            ),
            saved=saved,
            validation=validation,
            record=record,
            speed=Speed(config.model, config.data.seq_len, peak_flops),
            meter=meter,
            profiles=profiles,
            watchdog=watchdog,
        )
        try:
            return loop.run()
        except torch.OutOfMemoryError:
            if path := postmortem.write_memory(folder, engine.rank):
                record.event("out_of_memory", rank=engine.rank, file=path.name)
            raise
        finally:
            saved.close()


@dataclass
class _Loop:
    """What the steps of one call of ``train`` share. Every method is collective."""

    config: TrainerConfig
    engine: Engine
    stepper: Stepper
    saved: Checkpoints
    validation: ValidationSet | None
    record: Record
    speed: Speed
    meter: Meter
    profiles: Profiles
    watchdog: Watchdog

    def run(self) -> Outcome:
        train, rank = self.config.train, self.engine.rank
        self.watchdog.slow("loading a checkpoint")
        self.progress = progress = self.saved.resume(self.engine, seed=train.seed)
        if train.init_from is not None and progress.step == 0:
            self.saved.warm_start(train.init_from, self.engine.state())
        self.guard = Guard(train.watch, train.loss_scale, progress.watch)
        self.saved_at, self.evaluated_at, self.owes_checkpoint = progress.step, -1, False
        tokens, seconds, reason = 0, 0.0, None

        while progress.tokens < train.tokens and reason is None:
            step = self._step()
            memory_gib = self.meter.peak_memory_gib()
            tell_step(self.record, step, train, self.speed, rank=rank, memory_gib=memory_gib)
            tokens, seconds = tokens + train.batch_tokens, seconds + step.seconds
            if step.verdict is not Verdict.good:
                self._react(step)
                if self._rewinds(step):
                    progress = self._rewind(step)
                    continue
            self._advance(step)
            if step.totals.stops:
                reason = _agreed_reason(step.asked)
                if rank == 0:
                    self.record.event("stop", step=step.number, reason=reason)
            if each(step.number, train.evaluate.every_steps):
                self._evaluate()
            self.owes_checkpoint |= due(
                train.checkpoint, step=step.number, saved_at=self.saved_at, cost=self.saved.cost
            )
            if self.owes_checkpoint and not self.guard.troubled:
                self._save()

        finished = progress.tokens >= train.tokens
        if self.saved_at != progress.step and (finished or not self.guard.troubled):
            self._save()
        if finished and train.evaluate.every_steps:
            self._evaluate()
        self.watchdog.slow("writing a checkpoint")
        self.saved.wait()
        outcome = self._outcome(finished, reason, tokens / seconds if seconds else 0.0)
        if rank == 0:
            self.record.event(outcome.kind, step=outcome.step, tokens=outcome.tokens, reason=outcome.reason)
        self.record.sync()
        return outcome

    def _step(self) -> Step:
        if self.profiles.busy:
            self.watchdog.slow("a step beside a profile")
        else:
            self.watchdog.step()
        progress = self.progress
        tokens = progress.tokens + self.config.train.batch_tokens
        step = self.stepper.take(
            progress.step + 1, tokens, progress.next_sample, self.guard, rewindable=self.saved_at > 0
        )
        self.watchdog.done(step.seconds)
        self.profiles.after(step.number, step.totals.profile)
        return step

    def _advance(self, step: Step) -> None:
        """The step's batch counts as consumed, whether or not the parameters learnt from it."""
        progress = self.progress
        progress.step, progress.tokens, progress.next_sample = step.number, step.tokens, step.samples.stop
        if math.isfinite(step.totals.loss):
            progress.loss_last = step.totals.loss
            if progress.loss_first is None:
                progress.loss_first = step.totals.loss

    def _react(self, step: Step) -> None:
        """Tell of a step that is not good, and end training where nothing is left to be tried.

        Raises:
            FailedTraining: then.
        """
        loss, norm = step.totals.loss, step.totals.grad_norm
        if self.engine.rank == 0:
            tell_verdict(self.record, step, self.guard.spikes.height(loss))
        since = f"the last checkpoint is of step {self.saved_at}" if self.saved_at else "there is no checkpoint yet"
        if failure := self.guard.failure(step.number, loss, norm, rewinding=self._rewinds(step), since=since):
            self.record.sync()
            raise failure
        if step.verdict is Verdict.spike and step.updated:
            self.guard.accept(loss)

    def _rewinds(self, step: Step) -> bool:
        return step.verdict is Verdict.spike and not step.updated

    def _rewind(self, step: Step) -> Progress:
        """Go back to a checkpoint, and on from the samples behind the spike."""
        self.watchdog.slow("going back to a checkpoint")
        rewinds = self.guard.rewinds + 1
        with self.meter.part("rewind", host=True):
            progress = self.progress = self.saved.rewind(
                self.engine, seed=self.config.train.seed, behind=step.samples.stop, rewinds=rewinds
            )
        skipped = progress.skipped[-1]
        self.guard = Guard(self.config.train.watch, self.config.train.loss_scale, progress.watch)
        self.saved_at, self.evaluated_at, self.owes_checkpoint = progress.step, -1, False
        if self.engine.rank == 0:
            self.record.event(
                "rewound", step=progress.step, from_step=step.number, to_step=progress.step, skipped=skipped
            )
            log.warning("back to step %d; samples %d to %d are skipped", progress.step, skipped[0], skipped[1] - 1)
        return progress

    def _save(self) -> None:
        self.watchdog.slow("writing a checkpoint")
        self.progress.watch = self.guard.state()
        if self.engine.rank == 0:
            self._count()
        with self.meter.part("checkpoint", host=True):
            self.saved.save(self.engine.state(), self.engine.values(), self.progress)
        self.saved_at, self.owes_checkpoint = self.progress.step, False

    def _count(self) -> None:
        """Rank 0: bring what was read of each source up to date, and tell it."""
        progress, dataset = self.progress, self.stepper.dataset
        progress.sources = consumed(
            dataset, progress.next_sample, progress.skipped, since=progress.counted, known=progress.sources
        )
        progress.counted = progress.next_sample
        tell_sources(self.record, progress)

    def _evaluate(self) -> None:
        """Validation loss of the parameters as they are, once for each step."""
        step = self.progress.step
        if self.validation is None or self.evaluated_at == step:
            return
        self.evaluated_at = step
        if self.engine.rank == 0:
            self.record.event("evaluation_begin", step=step)  # whoever watches knows why no step comes
        with self.meter.part("evaluation", host=True):
            found = evaluate(
                self.engine,
                self.validation,
                micro_batch=self.config.parallel.micro_batch,
                alive=lambda: self.watchdog.part("a pass of the evaluation"),
            )
        if self.engine.rank == 0:
            self.record.step(step=step, tokens=self.progress.tokens, **found.metrics())
            self.record.event("validation", step=step, loss=found.loss, tokens=found.tokens)
            log.info("step %d  validation loss %.4f", step, found.loss)

    def _outcome(self, finished: bool, reason: str | None, tokens_per_s: float) -> Outcome:
        progress = self.progress
        return Outcome(
            kind="finished" if finished else "stopped",
            reason=f"train.tokens={self.config.train.tokens}" if finished else str(reason),
            step=progress.step,
            tokens=progress.tokens,
            loss_first=progress.loss_first,
            loss_last=progress.loss_last,
            tokens_per_s=tokens_per_s,
            sources=progress.sources,
        )


def _agreed_reason(asked: str | None) -> str:
    """Collective: why training stops, in the words of the ranks that were asked."""
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, asked)
    return ", ".join(sorted({reason for reason in reasons if reason}))
