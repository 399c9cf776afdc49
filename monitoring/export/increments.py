"""What a run's curve gained since it was last exported, and what of the exported part was lost meanwhile."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from monitoring.history import History, Stretch

BLOCK = 8192  # rows of a chunk, so that no format holds a whole run as Python objects


@dataclass(frozen=True)
class Chunk:
    """Consecutive steps of one attempt: arrays with one value a step; metrics as (rows that have it, values)."""

    attempt: int
    steps: np.ndarray
    tokens: np.ndarray
    times: np.ndarray  # unix seconds
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def rows(self) -> Iterator[tuple[int, int, float, dict[str, float]]]:
        """(step, tokens, unix time, the metrics it has)."""
        found: list[dict[str, float]] = [{} for _ in self.steps]
        for name, (rows, values) in self.metrics.items():
            for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                found[row][name] = value
        yield from zip(self.steps.tolist(), self.tokens.tolist(), self.times.tolist(), found, strict=True)


@dataclass(frozen=True)
class Increment:
    """First forget what was exported of steps after ``back_to`` (None: nothing), then append the chunks."""

    back_to: int | None = None
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.back_to is not None or bool(self.chunks)


def chunks(stretch: Stretch, begin: int, end: int) -> Iterator[Chunk]:
    """The rows from ``begin`` to ``end`` of a stretch."""
    columns = {name: (np.array(each.rows), np.array(each.values)) for name, each in stretch.metrics.items()}
    for low in range(begin, end, BLOCK):
        high = min(low + BLOCK, end)
        metrics = {}
        for name, (rows, values) in columns.items():
            left, right = np.searchsorted(rows, (low, high))
            if right > left:
                metrics[name] = rows[left:right] - low, values[left:right]
        yield Chunk(
            stretch.attempt,
            np.array(stretch.steps[low:high]),
            np.array(stretch.tokens[low:high]),
            np.array(stretch.times[low:high]),
            metrics,
        )


class Cursor:
    """How far a run's curve was exported."""

    def __init__(self) -> None:
        self._taken: list[tuple[Stretch, int]] = []  # rows of each stretch; holding it keeps its identity its own

    @property
    def rows(self) -> int:
        """Steps exported that still count."""
        return sum(rows for _, rows in self._taken)

    def take(self, history: History, *, over: bool) -> Increment:
        """What is new since the last call, in ascending steps.

        Args:
            over: nothing more will be recorded. Otherwise the newest step waits, for more may be said of it.
        """
        now = list(history.stretches())
        ends = {id(each): each.kept for each in now}
        if now and not over:
            ends[id(now[-1])] = min(now[-1].kept, max(0, len(now[-1].steps) - 1))
        back = self._lost(now, ends)
        if back is not None:
            self._taken = [(each, min(rows, bisect.bisect_right(each.steps, back))) for each, rows in self._taken]
        taken = {id(each): rows for each, rows in self._taken}
        found: list[Chunk] = []
        for each in now:
            found += chunks(each, taken.get(id(each), 0), ends[id(each)])
        self._taken = [(each, max(ends[id(each)], taken.get(id(each), 0))) for each in now]
        return Increment(back, found)

    def _lost(self, now: list[Stretch], ends: Mapping[int, int]) -> int | None:
        """The step after which what was exported does not count; None: all of it counts."""
        lost = []
        last = max((each.steps[rows - 1] for each, rows in self._taken if rows), default=None)
        kept = {id(each): each.kept for each in now}
        for each, rows in self._taken:
            if rows > (left := kept.get(id(each), 0)):
                lost.append(each.steps[left] - 1)
        taken = {id(each): rows for each, rows in self._taken}
        for each in now:  # steps that an older attempt's file only now shows
            begin = taken.get(id(each), 0)
            if last is not None and begin < ends[id(each)] and each.steps[begin] <= last:
                lost.append(each.steps[begin] - 1)
        return min(lost, default=None)
