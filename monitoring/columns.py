"""Records of steps as columns: what a run of hundreds of thousands of them is kept in."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from monitoring.fields import whole
from monitoring.recorder import metric

RESERVED = frozenset({"seq", "t", "kind", "step", "tokens"})  # fields that are no metrics
_ALIKE = 4  # records with the same fields in a row for which it pays to take them together

# glibc takes blocks larger than the largest that was ever freed fresh from the system and gives them back to it, each
# page zeroed on its first touch. Whole columns are copied at each look, which took twice the time by that.
bytearray(1 << 24)


@dataclass
class Metric:
    """The values of one metric in the rows that have it: NaN is a value, a missing one has no row."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def set(self, row: int, value: float) -> None:
        rows = self.rows
        if rows and rows[-1] == row:
            self.values[-1] = value
        else:
            rows.append(row)
            self.values.append(value)

    def count_before(self, rows: int) -> int:
        """How many of the first ``rows`` rows have a value."""
        return bisect.bisect_left(self.rows, rows)

    def last_before(self, rows: int) -> float | None:
        """The newest value in the first ``rows`` rows."""
        place = self.count_before(rows)
        return self.values[place - 1] if place else None

    def dense(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(values, missing) for the rows from ``begin`` to ``end``."""
        values, missing = np.zeros(end - begin), np.ones(end - begin, bool)
        rows = np.array(self.rows, np.int64)
        low, high = np.searchsorted(rows, (begin, end))
        values[rows[low:high] - begin] = np.array(self.values)[low:high]
        missing[rows[low:high] - begin] = False
        return values, missing


@dataclass
class Columns:
    """Records of steps in the order in which they were made, consecutive ones of one step joined to one row."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))  # unix seconds
    metrics: dict[str, Metric] = field(default_factory=dict)
    only: Collection[str] | None = None  # the metrics that are kept; None: all

    def integers(self) -> dict[str, array[int]]:
        """The fields that each record must have, as integers."""
        return {"step": self.steps}

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.times)

    def column(self, name: str) -> np.ndarray:
        """One metric with a value for each row: NaN where it is missing."""
        found = np.full(self.size, np.nan)
        if (metric := self.metrics.get(name)) is not None:
            found[np.array(metric.rows, np.int64)] = np.array(metric.values)
        return found

    def extend(self, records: Sequence[dict[str, Any]]) -> int:
        """Take records; returns how many of them are none."""
        bad = 0
        for _, group in groupby(records, len):
            alike = list(group)
            if len(alike) < _ALIKE or not self._extend_alike(alike):
                bad += sum(not self.add(record) for record in alike)
        return bad

    def add(self, record: Mapping[str, Any]) -> bool:
        """Take a record; False if it is none."""
        integers = self.integers()
        for name in integers:
            value = record.get(name)
            if whole(value) is None:
                return False
        if not self._goes_on(record):
            for name, values in integers.items():
                values.append(record[name])
            self.times.append(record["t"])
        row = self.size - 1
        for name, value in record.items():
            if name in RESERVED or (self.only is not None and name not in self.only):
                continue
            if (number := metric(value)) is not None:
                self.metric(name).set(row, number)
        return True

    def _goes_on(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of the step of the last row."""
        return bool(self.steps) and record["step"] == self.steps[-1]

    def _apart(self, new: Mapping[str, array[int]]) -> bool:
        """Whether each of some new records is a row of its own."""
        steps = np.array(new["step"])
        return not ((steps[1:] == steps[:-1]).any() or (self.steps and self.steps[-1] == new["step"][0]))

    def metric(self, name: str) -> Metric:
        """The column of a metric, made if there is none yet."""
        found = self.metrics.get(name)
        if found is None:
            found = self.metrics[name] = Metric()
        return found

    def _extend_alike(self, records: Sequence[dict[str, Any]]) -> bool:
        """Take records that have the same fields, column by column; False, and nothing taken, if they do not."""
        integers = self.integers()
        wanted = [name for name in records[0] if name not in RESERVED and (self.only is None or name in self.only)]
        # Of all metrics the equal numbers of fields show that no record has others; of a few, one may be in another.
        for name in self.only or ():
            if name not in records[0] and any(name in record for record in records):
                return False
        names = [*integers, "t", *wanted]
        try:
            given = {name: [*map(itemgetter(name), records)] for name in names}
            if any({*map(type, given[name])} != {int} for name in integers):
                return False
            new = {name: array("q", given[name]) for name in integers}
        except (KeyError, OverflowError):
            return False
        if not self._apart(new):
            return False
        first, count = self.size, len(records)
        for name, values in integers.items():
            values.extend(new[name])
        self.times.extend(given["t"])
        rows = np.arange(first, first + count).tobytes()
        for name in wanted:
            values = given[name]
            if {*map(type, values)} == {float}:
                found = self.metric(name)
                found.rows.frombytes(rows)
                found.values.fromlist(values)
            else:
                for row, value in enumerate(values, first):
                    if (number := metric(value)) is not None:
                        self.metric(name).set(row, number)
        return True


@dataclass
class Samples(Columns):
    """Records of no step, such as those of a device: each is a row of its own."""

    def integers(self) -> dict[str, array[int]]:
        return {}

    def _goes_on(self, record: Mapping[str, Any]) -> bool:
        return False

    def _apart(self, new: Mapping[str, array[int]]) -> bool:
        return True
