"""When a loss is a spike. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

# Standard deviation below which a window counts as flat, as a share of its mean: where all losses are alike,
# rounding alone would be a spike of any number of sigmas.
_FLAT = 1e-3


class Spikes:
    """The losses of the last good steps, and how far a new one lies above them.

    Args:
        sigma: a loss so many standard deviations above the mean of the window is a spike; 0: none ever is.
        window: steps. Until it is full nothing is a spike: early losses fall too fast to say what is usual.
        losses: to begin with, oldest first, as ``losses`` gave them.
    """

    def __init__(self, sigma: float, window: int, losses: Iterable[float] = ()) -> None:
        self.sigma = sigma
        self._losses = deque(losses, maxlen=window)

    @property
    def losses(self) -> list[float]:
        """The window, oldest first."""
        return list(self._losses)

    def add(self, loss: float) -> None:
        """Take the loss of a good step into the window."""
        self._losses.append(loss)

    def height(self, loss: float) -> float:
        """Standard deviations by which ``loss`` lies above the mean of the window; 0 until the window is full."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return 0.0
        mean = math.fsum(self._losses) / len(self._losses)
        variance = math.fsum((each - mean) ** 2 for each in self._losses) / len(self._losses)
        scale = max(math.sqrt(variance), _FLAT * abs(mean))
        return (loss - mean) / scale if scale else 0.0

    def is_spike(self, loss: float) -> bool:
        return 0 < self.sigma < self.height(loss)
