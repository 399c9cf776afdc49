"""Rows of values over time in a bounded number of bins, whose width doubles as they come to span more time.

Bins begin at multiples of their width. So what they hold depends neither on the order in which values came nor on how
many of them came at once, and two bins of one width become one of the next exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class _Cells:
    """One metric: sum, number and highest of the values in each cell."""

    def __init__(self, rows: int, columns: int) -> None:
        self.sums = np.zeros((rows, columns))
        self.counts = np.zeros((rows, columns), np.int32)
        self.highest = np.full((rows, columns), -np.inf)

    def put(self, rows: Any, columns: np.ndarray, found: tuple[np.ndarray, ...]) -> None:
        np.add.at(self.sums, (rows, columns), found[0])
        np.add.at(self.counts, (rows, columns), found[1])
        np.maximum.at(self.highest, (rows, columns), found[2])


class TimeBins:
    """
    Args:
        width: seconds of a bin at first.
        most: bins.
    """

    def __init__(self, width: float, most: int) -> None:
        self.most = most
        self._width = width
        self._level = 0  # how often the width was doubled
        self._span: tuple[int, int] | None = None  # first and last bin that has something, in bins of the first width
        self._cells: dict[str, _Cells] = {}

    @property
    def width(self) -> float:
        """Seconds of a bin."""
        return self._width * 2**self._level

    @property
    def names(self) -> list[str]:
        """The metrics of which there are values."""
        return list(self._cells)

    def times(self) -> np.ndarray:
        """(B,) unix seconds at which each bin begins."""
        return (self._low + np.arange(self._used)) * self.width

    def add(self, row: int, times: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Take values of one row.

        Args:
            times: (N,) unix seconds, finite, in any order.
            values: by metric, (N,); what is not finite is missing.
        """
        if not len(times):
            return
        place = np.floor(times / self._width).astype(np.int64)
        self._reach(int(place.min()), int(place.max()))
        columns = (place >> self._level) - self._low
        for name, given in values.items():
            good = np.isfinite(given)
            if good.any():
                found = given[good]
                self._room(name, row).put(row, columns[good], (found, np.ones(len(found), np.int32), found))

    def read(self, name: str, rows: list[int | None]) -> tuple[np.ndarray, np.ndarray]:
        """((R, B) means, (R, B) highest) of some rows; NaN where there is no value, as in the whole of a row None."""
        mean, highest = np.full((2, len(rows), self._used), np.nan)
        cells = self._cells.get(name)
        known = 0 if cells is None else len(cells.sums)
        for place, row in enumerate(rows):
            if cells is not None and row is not None and row < known:
                count = cells.counts[row, : self._used]
                np.divide(cells.sums[row, : self._used], count, out=mean[place], where=count > 0)
                np.copyto(highest[place], cells.highest[row, : self._used], where=count > 0)
        return mean, highest

    def total(self, name: str, row: int | None) -> tuple[float, float]:
        """(mean, highest) of all values of a row; NaN where there is none."""
        cells = self._cells.get(name)
        if cells is None or row is None or row >= len(cells.sums) or not (count := cells.counts[row].sum()):
            return float("nan"), float("nan")
        return float(cells.sums[row].sum() / count), float(cells.highest[row].max())

    @property
    def _low(self) -> int:
        """The first bin, in bins of this width since 1970."""
        return 0 if self._span is None else self._span[0] >> self._level

    @property
    def _used(self) -> int:
        return 0 if self._span is None else (self._span[1] >> self._level) - self._low + 1

    def _reach(self, first: int, last: int) -> None:
        """Let the bins span these too."""
        level, low, used = self._level, self._low, self._used
        span = self._span = (min(first, self._span[0]), max(last, self._span[1])) if self._span else (first, last)
        while (span[1] >> self._level) - (span[0] >> self._level) >= self.most:
            self._level += 1
        if not used or (level, low) == (self._level, self._low):
            return
        columns = ((low + np.arange(used)) >> (self._level - level)) - self._low
        for name, old in self._cells.items():
            new = self._cells[name] = _Cells(len(old.sums), self.most)
            kept = (old.sums[:, :used], old.counts[:, :used], old.highest[:, :used])
            new.put(slice(None), columns, kept)

    def _room(self, name: str, row: int) -> _Cells:
        """The cells of a metric, with that row."""
        old = self._cells.get(name)
        if old is not None and row < len(old.sums):
            return old
        new = self._cells[name] = _Cells(max(row + 1, 2 * len(old.sums) if old else 8), self.most)
        if old is not None:
            known = len(old.sums)
            new.sums[:known], new.counts[:known], new.highest[:known] = old.sums, old.counts, old.highest
        return new
