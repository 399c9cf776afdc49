"""What is to be expected of a run, from what became of it so far: goodput, the best checkpoint interval, the end. Pure.

Sources: the share of productive time (ETTR) and its expectation as Kokolis et al., arXiv 2410.21680, define and derive
them; the interval of Daly, Future Generation Computer Systems 22 (2006), equation 37 with its own bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from monitoring.goodput import Bucket

PLANNED = ("time_limit", "preemption", "finished", "cancelled", "refused")  # ends before which ranks save
IDLE = (Bucket.queue, Bucket.hold, Bucket.stopped)  # no node is the run's


def ettr(seconds: Mapping[Bucket, float]) -> float | None:
    """Productive time over wall-clock time, queueing included: 0 to 1; None before any time has passed."""
    wall = sum(seconds.values())
    return seconds[Bucket.training] / wall if wall > 0 else None


def on_nodes(seconds: Mapping[Bucket, float]) -> float:
    """Seconds for which nodes were the run's."""
    return sum(spent for bucket, spent in seconds.items() if bucket not in IDLE)


def failures(causes: Iterable[str | None]) -> int:
    """How many attempts ended without having saved what they did."""
    return sum(cause is not None and cause not in PLANNED for cause in causes)


def expected_ettr(*, mtbf: float, restart: float, interval: float, save: float = 0.0) -> float:
    """The share of productive time, without queueing, that failures leave: 0 to 1. All arguments in seconds.

    To first order 1 - (restart + interval / 2) / mtbf - save / interval.

    Args:
        mtbf: mean time between failures of the whole run; inf: none are expected.
        restart: from a failure to the next attempt's first step.
        interval: between two checkpoints.
        save: for which one checkpoint stops training.
    """
    lost = (restart + interval / 2) / mtbf + (save / interval if interval > 0 else 0.0)
    return max(0.0, 1.0 - lost)


def best_interval(*, save: float, mtbf: float) -> float | None:
    """Seconds between two checkpoints by which least is lost; None where nothing is to be gained by any.

    Args:
        save: seconds for which one checkpoint stops training.
        mtbf: seconds; inf: no failure is expected.
    """
    if not (save > 0 and math.isfinite(mtbf) and mtbf > 0):
        return None
    if save >= 2 * mtbf:
        return mtbf
    share = save / (2 * mtbf)
    return math.sqrt(2 * save * mtbf) * (1 + math.sqrt(share) / 3 + share / 9) - save


class Range(NamedTuple):
    """Unix seconds, or seconds."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Course:
    """How a run goes: what a forecast needs of its past."""

    tokens_per_s: Range  # slow, median, fast
    gap: Range  # seconds from an attempt's last step to the next one's first, all waiting included
    slice_s: float  # for which an attempt may train; inf: nothing limits it
    mtbf: float = math.inf
    interval: float = 0.0  # seconds between two checkpoints, half of which a failure costs


def seconds_left(tokens: float, course: Course) -> Range | None:
    """Seconds until ``tokens`` more are trained on, interruptions included; None without a speed.

    The least: at the fast speed, gaps as short as the shortest. The most: slow, a gap more than is likely by one
    standard deviation of their number, each as long as the longest.
    """
    slow, usual, fast = course.tokens_per_s
    if not slow > 0:
        return None
    training = Range(tokens / fast, tokens / usual, tokens / slow)

    def planned(seconds: float) -> float:
        return seconds // course.slice_s if math.isfinite(course.slice_s) and course.slice_s > 0 else 0.0

    failing = training.likely / course.mtbf
    most = training.high / course.mtbf
    most += math.sqrt(most)
    return Range(
        training.low + planned(training.low) * course.gap.low,
        training.likely
        + planned(training.likely) * course.gap.likely
        + failing * (course.gap.likely + course.interval / 2),
        training.high + planned(training.high) * course.gap.high + most * (course.gap.high + course.interval),
    )
