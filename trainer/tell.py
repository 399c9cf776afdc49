"""What the training loop records of its steps, and says in the log."""

from __future__ import annotations

import logging
from typing import Any

from trainer.checkpoint import Progress
from trainer.config import TrainConfig
from trainer.guard import Verdict
from trainer.meter import Speed
from trainer.record import Record
from trainer.step import Step

log = logging.getLogger(__name__)


def tell_step(record: Record, step: Step, train: TrainConfig, speed: Speed, *, rank: int, memory_gib: float) -> None:
    """Its metrics, what it cost this rank, and the loads of experts, each as often as ``train`` says."""
    costs = {"step_s": step.seconds, **step.parts, "peak_memory_gib": memory_gib}
    if each(step.number, train.ranks_every):
        record.rank(step=step.number, **costs)
    if rank > 0:
        return
    totals, fast = step.totals, speed.of(train.batch_tokens / step.seconds)
    record.step(step=step.number, tokens=step.tokens, **step.metrics(), **fast, **costs)
    if totals.tokens_per_expert and each(step.number, train.experts_every):
        loads, entropy, dropped = totals.tokens_per_expert, totals.entropy, totals.dropped
        record.experts(step=step.number, layers=loads, entropy=entropy, dropped=dropped)
    said = (step.number, totals.loss, totals.grad_norm, fast["tokens_per_s"])
    log.info("step %d  loss %.4f  gradient norm %.3f  %.0f tokens/s", *said)


def tell_verdict(record: Record, step: Step, sigma: float) -> None:
    """Rank 0, of a step that is not good; ``sigma``: of a spike, its height above the usual."""
    loss, norm = step.totals.loss, step.totals.grad_norm
    details: dict[str, Any] = {"loss": loss, "grad_norm": norm, "samples": [step.samples.start, step.samples.stop]}
    if step.loss_scale is not None:
        details["loss_scale"] = step.loss_scale
    if step.verdict is Verdict.spike:
        details["sigma"] = sigma
    record.event(step.verdict.value, step=step.number, **details)
    log.warning("step %d: %s, loss %g, gradient norm %g", step.number, step.verdict.value, loss, norm)


def tell_sources(record: Record, progress: Progress) -> None:
    """Rank 0, at each save: what training has read of each source."""
    told = {f"{unit}/{name}": count for name, found in progress.sources.items() for unit, count in found.items()}
    record.event("sources", step=progress.step, next_sample=progress.next_sample, **told)


def each(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0
