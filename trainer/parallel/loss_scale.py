"""The loss scale of fp16: lifts gradients above what float16 rounds to zero, as high as they do not overflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config import LossScaleConfig


class LossScale:
    """Halves after ``hysteresis`` overflows, doubles after ``window`` good steps, never falls below ``minimum``.

    Once its hysteresis is used up, every further overflow halves it, until ``window`` good steps in a row have
    doubled it and given the hysteresis back (dynamic loss scaling, arXiv:1710.03740, section 3.2).

    Args:
        ranks: among whose tokens losses are divided. Scales are published for means over one rank's tokens.
    """

    def __init__(self, config: LossScaleConfig, ranks: int) -> None:
        self.config = config
        self.ranks = ranks
        self.value = max(config.initial, config.minimum)
        self.good_steps = 0  # since the last overflow or change
        self.patience = config.hysteresis  # overflows left, the one that halves included

    @property
    def factor(self) -> float:
        """What a loss is multiplied with before its backward."""
        return self.value * self.ranks

    def step(self, *, overflow: bool) -> None:
        """Learn from one step."""
        if overflow:
            self.good_steps = 0
            if self.patience > 1:
                self.patience -= 1
            else:
                self.value = max(self.value / 2, self.config.minimum)
            return
        self.good_steps += 1
        if self.good_steps == self.config.window:
            self.value *= 2
            self.good_steps = 0
            self.patience = self.config.hysteresis

    def values(self) -> dict[str, float | int]:
        """As JSON values, for a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps, "patience": self.patience}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """The reverse of ``values``; what the configuration has changed meanwhile holds from now on."""
        self.value = max(float(values["value"]), self.config.minimum)
        self.good_steps = min(int(values["good_steps"]), self.config.window - 1)
        self.patience = min(int(values["patience"]), self.config.hysteresis)
