"""What a run's time went into, and when it may be done: goodput and forecast, from its history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from monitoring import forecast
from monitoring.forecast import Course, Range
from monitoring.goodput import Bucket, Span, totals
from monitoring.history import Attempt, History
from monitoring.spent import seconds_of_steps

BLOCK = 50  # steps whose speed is taken together: single ones vary for no reason
RECENT = 100  # blocks that tell how fast a run is now
WORK = (Bucket.training, Bucket.evaluation, Bucket.checkpoint, Bucket.repeated)


@dataclass(frozen=True)
class Outlook:
    """Seconds, shares from 0 to 1; None for what cannot be said yet."""

    spans: tuple[Span, ...] = ()
    seconds: Mapping[Bucket, float] = field(default_factory=lambda: dict.fromkeys(Bucket, 0.0))
    failures: int = 0  # attempts that ended without having saved what they did
    mtbf: float | None = None  # seconds on nodes for each of them
    restart: float | None = None  # from a failure to the next first step, median, waiting for nodes not counted
    save: float | None = None  # for which a checkpoint stops training, median
    interval: float | None = None  # between two checkpoints, median
    expected: float | None = None  # ettr that failures and checkpoints let expect, without queueing
    best_interval: float | None = None  # between two checkpoints, by which least would be lost
    left: Range | None = None  # seconds until the token target

    @property
    def ettr(self) -> float | None:
        """Productive time over wall-clock time, queueing included."""
        return forecast.ettr(self.seconds)

    @property
    def on_nodes(self) -> float:
        """Seconds for which nodes were the run's."""
        return forecast.on_nodes(self.seconds)

    @property
    def ettr_on_nodes(self) -> float | None:
        """Productive time over the time on nodes."""
        return self.seconds[Bucket.training] / self.on_nodes if self.on_nodes > 0 else None


def outlook(history: History, spans: Sequence[Span], *, tokens_left: int | None, slice_s: float = math.inf) -> Outlook:
    """Judge a run by what became of it so far.

    Args:
        tokens_left: until its target; None: it has none, or has reached it.
        slice_s: seconds for which an attempt may run.
    """
    seconds = totals(spans)
    causes = [attempt.info.get("cause") for attempt in history.attempts]
    failures = forecast.failures(causes)
    mtbf = forecast.on_nodes(seconds) / failures if failures else None
    restarts = [span.seconds for span in spans if span.bucket is Bucket.startup and span.attempt]
    restart = float(np.median(restarts)) if restarts else None
    save, interval = _checkpoints(history.attempts)
    expected = best = None
    if save is not None and interval is not None:
        known = mtbf if mtbf is not None else math.inf
        begun = restart if restart is not None else _first_start(spans)
        expected = forecast.expected_ettr(mtbf=known, restart=begun, interval=interval, save=save)
        best = forecast.best_interval(save=save, mtbf=known)
    left = None
    if tokens_left is not None and (speed := _speed(history)) is not None:
        overhead = _work_share(seconds)
        course = Course(
            tokens_per_s=Range(*(each * overhead for each in speed)),
            gap=_gaps(spans),
            slice_s=slice_s,
            mtbf=mtbf or math.inf,
            interval=interval or 0.0,
        )
        left = forecast.seconds_left(max(0, tokens_left), course)
    return Outlook(tuple(spans), seconds, failures, mtbf, restart, save, interval, expected, best, left)


def _first_start(spans: Sequence[Span]) -> float:
    return next((span.seconds for span in spans if span.bucket is Bucket.startup), 0.0)


def _work_share(seconds: Mapping[Bucket, float]) -> float:
    """Training over training, evaluating and saving."""
    both = seconds[Bucket.training] + seconds[Bucket.evaluation] + seconds[Bucket.checkpoint]
    return seconds[Bucket.training] / both if both > 0 else 1.0


def _gaps(spans: Sequence[Span]) -> Range:
    """From an attempt's last step to the next one's first: the shortest, the median, the longest."""
    work = [span for span in spans if span.bucket in WORK and span.attempt is not None]
    found = [two.begin - one.end for one, two in pairwise(work) if two.attempt != one.attempt]
    if not found:
        first = _first_start(spans)
        return Range(first, first, first + sum(span.seconds for span in spans if span.bucket is Bucket.queue))
    return Range(min(found), float(np.median(found)), max(found))


def _speed(history: History) -> Range | None:
    """Tokens per second of training's own time: the slow tenth, the median and the fast tenth of recent blocks."""
    blocks: list[np.ndarray] = []
    for stretch in list(history.stretches())[::-1]:
        tokens, step_s = np.array(stretch.tokens, float), seconds_of_steps(stretch)
        taken = step_s if np.isfinite(step_s).all() else np.diff(np.array(stretch.times), prepend=np.nan)
        gained = np.diff(tokens, prepend=np.nan)
        count = (len(tokens) - 1) // BLOCK if len(tokens) > BLOCK else 1
        for rows in np.array_split(np.arange(1, len(tokens)), count)[-RECENT:]:
            if (spent := taken[rows].sum()) > 0 and len(rows):
                blocks.append(gained[rows].sum() / spent)
        if len(blocks) >= RECENT:
            break
    if not blocks:
        return None
    return Range(*(float(found) for found in np.percentile(blocks, (10, 50, 90))))


def _checkpoints(attempts: Sequence[Attempt]) -> tuple[float | None, float | None]:
    """(seconds for which one stops training, seconds between two), medians."""
    blocked, between = [], []
    for attempt in attempts:
        for stretch in attempt.stretches:
            if (metric := stretch.metrics.get("checkpoint_s")) is not None:
                blocked += list(metric.values)
                rows = np.array(metric.rows)
                between += list(np.diff(np.array(stretch.times)[rows]))
    return (float(np.median(blocked)) if blocked else None, float(np.median(between)) if between else None)
