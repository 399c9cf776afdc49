"""One optimizer step over the global batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.batch import Batch, keys
from trainer.config import TrainerConfig, accumulation
from trainer.consumed import Countable
from trainer.guard import Guard, Verdict
from trainer.loss import StepSums, StepTotals, loss_of, valid_tokens
from trainer.meter import Meter
from trainer.optim import learning_rate
from trainer.parallel import Engine
from trainer.profile_request import Request
from trainer.samples import Samples


class Dataset(Countable, Protocol):
    """Samples by index; each a pure function of (the dataset's seed, index)."""

    fingerprint: str  # of the tokens that samples are made from
    every_token: bool  # every position of every sample is trained on

    def batch(self, indices: Sequence[int]) -> Samples:
        """The samples at these indices; any index from 0 on is allowed."""
        ...


@dataclass(frozen=True)
class Step:
    """What one step was. What is said of times, and ``asked``, is this rank's; the rest is the same on every rank."""

    number: int
    tokens: int  # consumed with it
    samples: range  # of the global batch
    totals: StepTotals
    verdict: Verdict
    updated: bool  # the parameters learnt from it
    lr: float
    loss_scale: float | None  # that its gradients were computed with
    asked: str | None  # why this rank was asked to stop
    seconds: float
    parts: dict[str, float]  # seconds by part, and of what went on since the step before; see Meter

    def metrics(self) -> dict[str, float]:
        """Loss and all that is known of it."""
        totals = self.totals
        found = {"loss": totals.loss, "lr": self.lr, "grad_norm": totals.grad_norm}
        if totals.tokens_per_expert:
            found |= {"balance_loss": totals.balance_loss, "z_loss": totals.z_loss}
            found |= {"router_entropy": totals.router_entropy, "dropped_share": totals.dropped_share}
        return found | {"loss_scale": self.loss_scale} if self.loss_scale is not None else found


class Stepper:
    """Takes steps. ``stop`` and ``profile`` say what this rank was asked, and are themselves asked once a step."""

    def __init__(
        self,
        config: TrainerConfig,
        engine: Engine,
        dataset: Dataset,
        *,
        meter: Meter,
        stop: Callable[[], str | None],
        profile: Callable[[], Request | None],
    ) -> None:
        self.config = config
        self.engine = engine
        self.dataset = dataset
        self.meter = meter
        self.stop = stop
        self.profile = profile
        self.batch_samples = config.train.batch_tokens // config.data.seq_len
        self.passes = accumulation(config.train, config.data, config.parallel, engine.world_size)

    def take(self, number: int, tokens: int, first: int, guard: Guard, *, rewindable: bool) -> Step:
        """Collective: the step ``number``, which begins at sample ``first`` and with which ``tokens`` are consumed.

        The parameters learn from it if loss and gradients are finite, and if it is no spike that training is to be
        rewound from.
        """
        began = time.perf_counter()
        config, engine, meter = self.config, self.engine, self.meter
        with meter.part("data", host=True):
            batches = self._read(number, first)
        valid = config.train.batch_tokens if self.dataset.every_token else valid_tokens(batches)
        sums = StepSums(config.model, engine.device)
        for done, batch in enumerate(batches, start=1):
            with meter.part("forward"):
                output = engine.forward(batch)
                loss, parts = loss_of(output, batch.targets_BS, config.model, valid)
            with meter.part("backward"):
                engine.backward(loss, last=done == self.passes)
            sums.add(parts, output, config.data.seq_len)
        asked, scale = self.stop(), engine.loss_scale()
        # Losses, loads and what ranks were asked come from one reduction: each rank ends the step knowing the same.
        with meter.part("communication"):
            sums.reduce(stop=asked is not None, profile=self.profile())
        with meter.part("norm"):
            norm = engine.norm()
        totals = sums.totals(norm, batch_tokens=config.train.batch_tokens, valid=valid)
        verdict = guard.judge(totals.loss, totals.grad_norm, scale)
        updated = verdict is Verdict.good or (verdict is Verdict.spike and not rewindable)
        lr = learning_rate(tokens, config.optim, config.train)
        with meter.part("optimizer"):
            if updated:
                engine.update(lr, norm=totals.grad_norm, max_norm=config.optim.clip)
                if config.model.moe is not None and config.model.moe.bias_update:
                    engine.rebalance(sums.tokens_LE())
            else:
                engine.drop(overflow=verdict is Verdict.overflow)
        return Step(
            number=number,
            tokens=tokens,
            samples=range(first, first + self.batch_samples),
            totals=totals,
            verdict=verdict,
            updated=updated,
            lr=lr,
            loss_scale=scale,
            asked=asked,
            seconds=time.perf_counter() - began,
            parts=meter.read(),
        )

    def _read(self, number: int, first: int) -> list[Batch]:
        """This rank's share of the global batch, pass by pass."""
        config, engine = self.config, self.engine
        shares = sample_ids(first, engine.rank, engine.world_size, self.passes, config.parallel.micro_batch)
        return [
            Batch.of(self.dataset.batch(indices), engine.device, keys(config.train.seed, number, indices))
            for indices in shares
        ]


def sample_ids(first: int, rank: int, world_size: int, passes: int, micro_batch: int) -> Iterator[range]:
    """The samples of one rank in a step that begins at sample ``first``, pass by pass.

    Pass m of all ranks together covers the m-th stretch of micro_batch · world_size samples, rank r the r-th
    part of it. A step thus sees samples first ... first + batch - 1, each once, for every layout.
    """
    for m in range(passes):
        begin = first + (m * world_size + rank) * micro_batch
        yield range(begin, begin + micro_batch)
