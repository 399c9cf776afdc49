"""How many steps lie between two checkpoints. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import CheckpointConfig

FIRST = 10  # steps until a save while nothing is known of what one costs: early, since it is what tells


@dataclass(frozen=True)
class Cost:
    """What a save cost, as rank 0 measured it, and what a step takes. Seconds."""

    blocked_s: float  # training waited
    complete_s: float  # from the beginning of the save until it was complete
    cpu_s: float  # computing time of what went on beside training
    step_s: float  # a step, with all that happens between two, but without saving

    @property
    def lost_s(self) -> float:
        """Training time lost, at most: where all cores are busy, each second computed beside it is one less for it."""
        return min(self.complete_s, self.blocked_s + self.cpu_s)


def optimal_s(lost_s: float, mttf_s: float) -> float:
    """Seconds of training between two checkpoints that lose the least time to saving and to failures together.

    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
    Computer Systems 22 (2006), equation 37; its first term is J. W. Young's of 1974.

    Args:
        lost_s: training time that a checkpoint costs.
        mttf_s: mean time between failures of the whole job.
    """
    share = lost_s / (2 * mttf_s)
    if share >= 1:
        return mttf_s
    return math.sqrt(2 * lost_s * mttf_s) * (1 + math.sqrt(share) / 3 + share / 9) - lost_s


def steps_between(cost: Cost | None, mttf_hours: float) -> int:
    """Steps between two checkpoints for ``every_steps=auto``; at least as many as one needs to be complete."""
    if cost is None or cost.step_s <= 0:
        return FIRST
    seconds = max(optimal_s(cost.lost_s, mttf_hours * 3600), cost.complete_s)
    return max(1, math.ceil(seconds / cost.step_s))


def due(config: CheckpointConfig, *, step: int, saved_at: int, cost: Cost | None) -> bool:
    """Whether a checkpoint is due after ``step``.

    Args:
        saved_at: step of the newest checkpoint, or at which this attempt began.
        cost: of the newest complete checkpoint of this attempt, the same on every rank.
    """
    if config.every_steps == "auto":
        return step - saved_at >= steps_between(cost, config.mttf_hours)
    every = int(config.every_steps)
    return every > 0 and step % every == 0
