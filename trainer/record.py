"""What the trainer tells about itself while it runs; whoever starts it decides where that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Record(Protocol):
    """Takes host values only, returns at once but for ``sync``, and never raises. Steps count from 1."""

    def step(self, *, step: int, tokens: int, **metrics: float) -> None:
        """Rank 0, each step: ``loss``, ``lr``, ``grad_norm``, ``balance_loss``, ``z_loss``, ``tokens_per_s``,
        ``step_s``. ``tokens`` counts from the first attempt on, this step's included."""

    def rank(self, *, step: int, step_s: float, **metrics: float) -> None:
        """The other ranks, each ``train.ranks_every`` steps: seconds of the step."""

    def experts(self, *, step: int, layers: Mapping[int, Sequence[int]]) -> None:
        """Rank 0, each ``train.experts_every`` steps: tokens sent to each expert of each MoE layer, all ranks."""

    def event(self, kind: str, **fields: Any) -> None:
        """Rank 0, unless it concerns another rank alone.

        ``resumed`` and ``rng_reseeded``; ``checkpoint_begin``, ``checkpoint`` (``seconds``), ``checkpoint_failed``
        and ``corrupt_checkpoint`` (``reason``); ``non_finite``; ``stop`` when the ranks agreed on it, then
        ``stopped`` or ``finished``, the last. All have ``step``.
        """

    def sync(self) -> Any:
        """Returns when all records so far would survive the loss of the machine."""
