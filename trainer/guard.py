"""What to do with a step, from its loss and gradient norm. Pure, so that all ranks, which see the same, do alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from trainer.config import LossScaleConfig, WatchConfig
from trainer.spike import Spikes


class Verdict(Enum):
    """What a step is; the values are the names of the events that tell of it."""

    good = "good"
    not_finite = "skipped_step"  # loss or gradient is NaN or infinite: nothing is updated
    overflow = "overflow"  # the gradients of fp16 overflowed: nothing is updated, the loss scale falls
    spike = "spike"  # the loss is far above the usual


class FailedTraining(Exception):
    """Training cannot go on; the message says why and what may help. Raised on all ranks alike."""


class NonFiniteError(FailedTraining):
    """Loss or gradient norm was NaN or infinite too often in a row. The parameters were not updated with it."""


class SpikeError(FailedTraining):
    """The loss spiked again after as many rewinds as are allowed."""


class Guard:
    """Judges each step in turn; its state travels in the checkpoints, so that a restart forgets nothing."""

    def __init__(self, watch: WatchConfig, scale: LossScaleConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.watch = watch
        self.scale = scale
        self.spikes = Spikes(watch.spike_sigma, watch.spike_window, state.get("losses", ()))
        self.bad = int(state.get("bad", 0))  # steps in a row that were not finite
        self.lowest = int(state.get("lowest", 0))  # overflows in a row at the smallest loss scale
        self.rewinds = int(state.get("rewinds", 0))  # that spikes have led to

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "losses": self.spikes.losses,
            "bad": self.bad,
            "lowest": self.lowest,
            "rewinds": self.rewinds,
        }

    def judge(self, loss: float, grad_norm: float, loss_scale: float | None) -> Verdict:
        """
        Args:
            loss_scale: that the step's gradients were computed with; None where there is none.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.bad = self.lowest = 0
            # A loss that is no spike is what the next ones are held against.
            if self.spikes.is_spike(loss):
                return Verdict.spike
            self.spikes.add(loss)
            return Verdict.good
        if math.isfinite(loss) and loss_scale is not None:
            self.lowest = self.lowest + 1 if loss_scale <= self.scale.minimum else 0
            return Verdict.overflow
        self.bad += 1
        return Verdict.not_finite

    def accept(self, loss: float) -> None:
        """Take a spike for good after all: there is nothing to rewind to."""
        self.spikes.add(loss)

    @property
    def troubled(self) -> bool:
        """The last step was not finite, and its parameters are not known to be sound: no state to be saved."""
        return self.bad > 0

    def failure(self, step: int, loss: float, norm: float, *, rewinding: bool, since: str) -> FailedTraining | None:
        """Why training cannot go on after a step that was not good; None if it can.

        Args:
            rewinding: it is a spike, and there is a checkpoint to go back to.
            since: which checkpoint that is, for people.
        """
        watch = self.watch
        if max(self.bad, self.lowest) > watch.skip_non_finite:
            before = f", after {watch.skip_non_finite} such steps that were skipped" if watch.skip_non_finite else ""
            return NonFiniteError(
                f"step {step}: the loss is {loss}, the gradient norm {norm}{before}. The parameters were "
                f"not updated; {since}. A lower optim.lr or optim.clip, or a longer optim.warmup_tokens, may help"
            )
        if rewinding and self.rewinds >= watch.spike_rewinds:
            return SpikeError(
                f"step {step}: the loss is {loss:.4g}, {self.spikes.height(loss):.1f} standard deviations above the "
                f"{watch.spike_window} steps before, and training went back {self.rewinds} times already, of "
                f"train.watch.spike_rewinds={watch.spike_rewinds}; {since}. A lower optim.lr or optim.clip may help; "
                "to let spikes pass: train.watch.spike_sigma=0"
            )
        return None
