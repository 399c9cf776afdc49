"""The curves of a run as they are drawn: over steps, tokens or hours, smoothed, zoomed, with their ghosts.

``hours`` are those of the wall clock since the run's first step, pauses between attempts included. A clock that goes
back goes on from where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monitoring.bins import Bins, Envelope
from monitoring.history import History, Stretch

AXES = ("step", "tokens", "hours")


@dataclass(frozen=True)
class Ghost:
    """A stretch of lost work: what was recorded of one metric before the steps were done again."""

    attempt: int
    curve: Envelope


class Smoothing:
    """Exponential moving average, corrected for its beginning; what is not finite passes through and is not counted.

    Args:
        weight: of the past, from 0 (none) to below 1.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise ValueError(f"smoothing is {weight}; must be at least 0 and below 1")
        self._weight = weight
        self._mean, self._count = 0.0, 0  # the uncorrected mean of so many values

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The next values, smoothed."""
        weight = self._weight
        if weight == 0 or not len(values):
            return values
        found = np.array(values, np.float64)
        finite = np.isfinite(found)
        given = found[finite]
        # Within a block the powers of the weight stay far from the smallest and the largest number.
        block = max(1, min(4096, int(300 / -math.log(weight))))
        powers = weight ** np.arange(1, block + 1)
        for begin in range(0, len(given), block):
            part = given[begin : begin + block]
            power = powers[: len(part)]
            part[:] = power * (self._mean + (1 - weight) * np.cumsum(part / power))
            self._mean = float(part[-1])
        counts = np.arange(self._count + 1, self._count + len(given) + 1)
        self._count += len(given)
        found[finite] = given / -np.expm1(counts * math.log(weight))
        return found


class _Clock:
    """Hours of every recorded step, in the order in which they were made."""

    def __init__(self) -> None:
        self._key: object = None
        self._hours: dict[int, np.ndarray] = {}

    def hours(self, history: History) -> dict[int, np.ndarray]:
        """By the identity of a stretch."""
        found = [stretch for stretch in history.stretches() if stretch.steps]
        key = [(id(stretch), len(stretch.steps)) for stretch in found]
        if key != self._key:
            self._key, self._hours = key, {}
            if found:
                times = np.concatenate([np.array(stretch.times) for stretch in found])
                passed = np.cumsum(np.maximum(0.0, np.diff(times, prepend=times[0]))) / 3600
                ends = np.cumsum([len(stretch.steps) for stretch in found])
                for stretch, part in zip(found, np.split(passed, ends[:-1]), strict=True):
                    self._hours[id(stretch)] = part
        return self._hours


@dataclass(frozen=True)
class _Piece:
    """The rows of one stretch of which a metric has values, from ``begin`` to ``end`` in its column."""

    stretch: Stretch
    begin: int
    end: int


class _Curve:
    """One metric over one axis, ready to be zoomed; takes in what the history gained."""

    def __init__(self, name: str, axis: str, smoothing: float) -> None:
        self.name, self.axis, self.smoothing = name, axis, smoothing
        self._forget()

    def _forget(self) -> None:
        self.bins = Bins()
        self._smooth = Smoothing(self.smoothing)
        self.taken: list[_Piece] = []
        self._last: float | None = None

    def refresh(self, history: History, clock: _Clock) -> None:
        pieces = list(_pieces(history, self.name))
        if not self._continues(pieces):
            self._forget()
        done = len(self.taken)
        for place, piece in enumerate(pieces):
            begin = self.taken[place].end if place < done else piece.begin
            if begin < piece.end:
                new = _Piece(piece.stretch, begin, piece.end)
                x, y = _points(new, self.name, self.axis, clock, history)
                self.bins.append(x, self._smooth(y))
                self._last = float(y[-1])
        self.taken = pieces

    def _continues(self, pieces: list[_Piece]) -> bool:
        """Whether what was taken is the beginning of what there is now."""
        taken = self.taken
        if not taken:
            return True
        if len(taken) > len(pieces):
            return False
        *before, last = taken
        same = all(a.stretch is b.stretch and a.end == b.end for a, b in zip(before, pieces, strict=False))
        grown = pieces[len(before)]
        if not (same and grown.stretch is last.stretch and grown.end >= last.end):
            return False
        value = last.stretch.metrics[self.name].values[last.end - 1]
        return value == self._last or (math.isnan(value) and self._last is not None and math.isnan(self._last))


class Curves:
    """The curves of a history. It is for whoever owns the history to refresh it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._clock = _Clock()
        self._curves: dict[tuple[str, str, float], _Curve] = {}

    def names(self) -> list[str]:
        """The metrics, in the order in which they first appeared."""
        return self.history.names()

    def view(
        self,
        name: str,
        axis: str = "step",
        low: float = -math.inf,
        high: float = math.inf,
        most: int = 1000,
        smoothing: float = 0.0,
    ) -> Envelope:
        """A metric where ``low <= x <= high``, in at most ``most`` bins; empty for a metric that nobody recorded.

        Args:
            axis: ``step``, ``tokens``, or ``hours`` since the first step.
            smoothing: weight of the past in a moving average, from 0 (none) to below 1.

        Raises:
            ValueError: for an axis, a smoothing or a number of bins that makes no sense.
        """
        _known(axis)
        key = (name, axis, smoothing)
        curve = self._curves.get(key) or _Curve(*key)
        curve.refresh(self.history, self._clock)
        found = curve.bins.view(low, high, most)
        if key not in self._curves and curve.taken:  # names come from outside: of what is nowhere nothing is kept
            # Of the smoothings of one curve only the newest is kept: a slider would fill the memory with them.
            old = [each for each in self._curves if each[:2] == key[:2] and each[2] and smoothing]
            for each in old:
                del self._curves[each]
            self._curves[key] = curve
        return found

    def ghosts(
        self, name: str, axis: str = "step", low: float = -math.inf, high: float = math.inf, most: int = 1000
    ) -> list[Ghost]:
        """What was recorded of a metric and done again later, each stretch as a curve of its own; not smoothed.

        Raises:
            ValueError: as ``view``.
        """
        _known(axis)
        found = []
        for piece in _pieces(self.history, name, lost=True):
            bins = Bins()
            bins.append(*_points(piece, name, axis, self._clock, self.history))
            if len(envelope := bins.view(low, high, most)):
                found.append(Ghost(piece.stretch.attempt, envelope))
        return found


def _known(axis: str) -> None:
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}; must be one of: {', '.join(AXES)}")


def _pieces(history: History, name: str, *, lost: bool = False) -> Iterator[_Piece]:
    """What of a metric is on the curve, or was lost."""
    for stretch in history.stretches():
        if (column := stretch.metrics.get(name)) is None:
            continue
        kept = column.count_before(stretch.kept)
        begin, end = (kept, len(column.values)) if lost else (0, kept)
        if begin < end:
            yield _Piece(stretch, begin, end)


def _points(piece: _Piece, name: str, axis: str, clock: _Clock, history: History) -> tuple[np.ndarray, np.ndarray]:
    stretch, column = piece.stretch, piece.stretch.metrics[name]
    rows = np.array(column.rows[piece.begin : piece.end])
    if axis == "hours":
        x = clock.hours(history)[id(stretch)][rows]
    else:
        first = int(rows[0])
        x = np.array((stretch.steps if axis == "step" else stretch.tokens)[first : int(rows[-1]) + 1])[rows - first]
    return x.astype(np.float64), np.array(column.values[piece.begin : piece.end])
