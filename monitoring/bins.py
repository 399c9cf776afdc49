"""Curves of any length as few points as a screen has columns, without losing a spike.

A pyramid: bin ``j`` of level ``k`` holds the lowest and the highest of the ``2**k`` consecutive points from
``j * 2**k`` on. Bins go by the points' place in the series and not by what is looked at, so a full bin never changes
while points are appended, and a curve does not flicker. Levels below ``_FIRST`` are not kept: a screenful of them is
made from the points themselves in microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_FIRST = 4  # the lowest level that is kept
_ROOM = 1024  # points for which room is made at first


@dataclass(frozen=True)
class Envelope:
    """A stretch of a curve in bins, all arrays of one length; a bin of a single point is that point."""

    x: np.ndarray  # of the first point of each bin, ascending
    low: np.ndarray  # the lowest finite value; NaN where none is finite
    high: np.ndarray
    nan: np.ndarray  # bool: some value is not finite, NaN or an infinity

    def __len__(self) -> int:
        return len(self.x)


class _Growing:
    """An array with room at its end."""

    def __init__(self, kind: Any) -> None:
        self._room = np.empty(_ROOM, kind)
        self._size = 0

    @property
    def values(self) -> np.ndarray:
        return self._room[: self._size]

    def append(self, values: np.ndarray) -> None:
        size = self._size + len(values)
        if size > len(self._room):
            room = np.empty(max(size, 2 * len(self._room)), self._room.dtype)
            room[: self._size] = self.values
            self._room = room
        self._room[self._size : size] = values
        self._size = size


@dataclass(frozen=True)
class _Level:
    """The full bins of one level, or some bins of one."""

    low: Any
    high: Any
    nan: Any


class Bins:
    """A series that grows, and its pyramid.

    ``x`` need not ascend: where it goes back, as a clock may, it counts as standing still until it has caught up.
    """

    def __init__(self) -> None:
        self._x, self._y = _Growing(np.float64), _Growing(np.float64)
        self._levels: list[_Level] = []  # from level _FIRST on; each of growing arrays

    def __len__(self) -> int:
        return len(self._y.values)

    def append(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add points.

        Raises:
            ValueError: if there is not one ``x`` for each ``y``.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"{x.shape} places for {y.shape} values")
        if not len(x):
            return
        last = self._x.values[-1] if len(self) else -math.inf
        begun = np.where(np.isnan(x), -math.inf, x)
        begun[0] = max(begun[0], last)
        self._x.append(np.maximum.accumulate(begun))
        self._y.append(y)
        self._close()

    def _close(self) -> None:
        """Make the bins that have become full."""
        level = 0
        while len(self) >> (_FIRST + level):
            if level == len(self._levels):
                self._levels.append(_Level(_Growing(np.float64), _Growing(np.float64), _Growing(bool)))
            kept = self._levels[level]
            made = len(kept.low.values)
            full = len(self) >> (_FIRST + level)
            if made == full:
                return
            new = _halve(self._full(level - 1, 2 * made, 2 * full)) if level else self._points(made, full, _FIRST)
            kept.low.append(new.low)
            kept.high.append(new.high)
            kept.nan.append(new.nan)
            level += 1

    def _full(self, level: int, begin: int, end: int) -> _Level:
        kept = self._levels[level]
        return _Level(kept.low.values[begin:end], kept.high.values[begin:end], kept.nan.values[begin:end])

    def _points(self, begin: int, end: int, level: int) -> _Level:
        """The full bins of a low level from the points."""
        return _bins(self._y.values[begin << level : end << level].reshape(-1, 1 << level))

    def view(self, low: float = -math.inf, high: float = math.inf, most: int = 1000) -> Envelope:
        """The curve where ``low <= x <= high``, in at most ``most`` bins, and in as many as that allows.

        The points next to the range belong to it, so that a line goes on to the edge; and so does the rest of the
        bins at its ends, which move only when the level changes.

        Raises:
            ValueError: if ``most`` is below 1.
        """
        if most < 1:
            raise ValueError(f"at most {most} bins; must be 1 or more")
        x, size = self._x.values, len(self)
        if not size or not low <= high:
            return Envelope(np.empty(0), np.empty(0), np.empty(0), np.empty(0, bool))
        begin = max(0, int(np.searchsorted(x, low, "left")) - 1)
        end = min(size, int(np.searchsorted(x, high, "right")) + 1)
        level = 0
        while _count(begin, end, level) > most:
            level += 1
        first, last = begin >> level, ((end - 1) >> level) + 1
        full = min(last, size >> level)
        parts = [self._closed(first, full, level)]
        if last > full:
            parts.append(self._open(level))
        return Envelope(
            x[first << level : ((last - 1) << level) + 1 : 1 << level].copy(),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "high", "nan")),
        )

    def _closed(self, begin: int, end: int, level: int) -> _Level:
        if level < _FIRST:
            return self._points(begin, end, level)
        if level - _FIRST >= len(self._levels):  # not even one is full
            return _Level(np.empty(0), np.empty(0), np.empty(0, bool))
        return self._full(level - _FIRST, begin, end)

    def _open(self, level: int) -> _Level:
        """The last bin of a level, which is not full: what full bins of lower levels it has, and the last points."""
        size, at = len(self), (len(self) >> level) << level
        parts = []
        for lower in range(min(level, _FIRST + len(self._levels)) - 1, _FIRST - 1, -1):
            end = size >> lower
            parts.append(self._full(lower - _FIRST, at >> lower, end))
            at = end << lower
        if at < size:
            parts.append(_bins(self._y.values[at:].reshape(1, -1)))
        joined = _Level(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "high", "nan")))
        return _Level(*(getattr(_join(joined, len(joined.low)), name) for name in ("low", "high", "nan")))


def _count(begin: int, end: int, level: int) -> int:
    return ((end - 1) >> level) + 1 - (begin >> level)


def _bins(rows: np.ndarray) -> _Level:
    """One bin for each row of points."""
    if np.isfinite(rows).all():
        return _Level(rows.min(axis=1), rows.max(axis=1), np.zeros(len(rows), bool))
    finite = np.isfinite(rows)
    low = np.where(finite, rows, math.inf).min(axis=1)
    high = np.where(finite, rows, -math.inf).max(axis=1)
    none = ~finite.any(axis=1)
    low[none] = high[none] = math.nan
    return _Level(low, high, ~finite.all(axis=1))


def _halve(bins: _Level) -> _Level:
    return _join(bins, 2)


def _join(bins: _Level, width: int) -> _Level:
    """Bins of the next level, each from ``width`` of these."""
    # fmin and fmax pass over the NaN of a bin in which nothing is finite.
    return _Level(
        np.fmin.reduce(bins.low.reshape(-1, width), axis=1),
        np.fmax.reduce(bins.high.reshape(-1, width), axis=1),
        bins.nan.reshape(-1, width).any(axis=1),
    )
