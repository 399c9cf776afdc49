"""What watching itself costs a step: the share of training's time that is not data, forward, backward or optimizer.

The time of ``train`` from the end of one step's record to the next is set against the parts that the meter counts.
What is left is everything that would go if nothing were recorded and nobody could ask for a stop: the sums of the
metrics and their reduction, the verdict, the records, the log line, the watchdog, the look for profile requests, the
meter itself. It is an upper bound, since the loop's own few lines are in it. The reduction counts as far as it is
not the wait for a slower rank, so that the figure means most on one rank.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monitoring.recorder import Recorder
from trainer.config import TrainerConfig
from trainer.parallel import Engine
from trainer.step import Dataset
from trainer.train import train

_WORK = ("data_s", "forward_s", "backward_s", "norm_s", "optimizer_s")
_BETWEEN = ("checkpoint_s", "evaluation_s", "rewind_s")


def logging_share(config: TrainerConfig, engine: Engine, dataset: Dataset, folder: Path, *, warmup: int = 3) -> float:
    """Median over the steps of one training in ``folder``, 0 to 1. Collective; the steps are those of ``config``.

    Records go to real files, as in a run, and the watchdog runs.

    Args:
        warmup: steps at the beginning that do not count.
    """
    recorder = _Timed(folder, rank=engine.rank, world_size=engine.world_size, run="logging_share", attempt=0)
    try:
        train(
            config,
            engine,
            dataset=dataset,
            checkpoints=folder / "checkpoints",
            stop=lambda: None,
            record=recorder,
            folder=folder,
        )
    finally:
        recorder.close()
    return statistics.median(recorder.shares[warmup:])


class _Timed(Recorder):
    """A recorder that looks at the clock when a step was recorded."""

    def __init__(self, folder: Path, **who: Any) -> None:
        super().__init__(folder, **who)
        self.shares: list[float] = []
        self._last: float | None = None

    def step(self, *, step: int, tokens: int, **metrics: float) -> None:
        super().step(step=step, tokens=tokens, **metrics)
        now = time.perf_counter()
        if self._last is not None and "loss" in metrics:
            self.shares.append(_share(metrics, now - self._last))
        self._last = now


def _share(metrics: Mapping[str, float], seconds: float) -> float:
    seconds -= sum(metrics.get(name, 0.0) for name in _BETWEEN)
    return max(0.0, 1.0 - sum(metrics.get(name, 0.0) for name in _WORK) / seconds)
