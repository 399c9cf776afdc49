"""The records of all attempts of a run, joined into one history.

The rule. An attempt resumes from a checkpoint; what earlier attempts recorded beyond that step is done again
and is *lost work*: it is kept and counted, and is no part of the curve. So the last attempt wins for each
step, and the curve is that of a run which was never interrupted. A writer that goes back within one attempt
(a rewind after a spike, say) is treated alike: each ascending stretch of steps is a ``Stretch``, and only
stretches are joined.
"""

from __future__ import annotations

import bisect
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring import layout
from monitoring.recorder import PROTOCOL, metric
from monitoring.tail import RecordTail

if TYPE_CHECKING:
    import pandas as pd

_RESERVED = ("seq", "t", "kind", "step", "tokens")
_INT64 = range(-(1 << 63), 1 << 63)
_EXPERTS_TAIL = 1 << 20  # bytes in which the latest load of every layer is looked for
_OLD_EVERY = 20  # refreshes between two looks at attempts that others have followed


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


@dataclass
class Stretch:
    """Consecutive steps of one attempt, ascending."""

    attempt: int
    steps: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))  # unix seconds
    metrics: dict[str, Metric] = field(default_factory=dict)
    resumed_from: int | None = None  # the step it was told to go on from
    kept: int = 0  # its first rows that no later stretch does again

    @property
    def start(self) -> int | None:
        """The step this stretch goes on from, as said or, where nobody said it, as its first step shows."""
        shown = [self.steps[0] - 1] if self.steps else []
        said = [self.resumed_from] if self.resumed_from is not None else []
        return min(shown + said, default=None)

    @property
    def lost(self) -> int:
        return len(self.steps) - self.kept

    def column(self, name: str) -> np.ndarray:
        """One metric with a value for each step: NaN where it is missing."""
        found = np.full(len(self.steps), np.nan)
        if (metric := self.metrics.get(name)) is not None:
            found[np.array(metric.rows)] = np.array(metric.values)
        return found

    def add(self, record: dict[str, Any]) -> bool:
        """Take a step record, which is used up by that; False if it is none."""
        step, tokens = record.get("step"), record.get("tokens")
        if not (type(step) is int and type(tokens) is int and step in _INT64 and tokens in _INT64):
            return False
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.tokens.append(tokens)
            self.times.append(record["t"])
        row = len(self.steps) - 1
        for name in _RESERVED:
            record.pop(name, None)
        for name, value in record.items():
            if type(value) is not float:
                value = metric(value)
                if value is None:
                    continue
            column = self.metrics.get(name)
            if column is None:
                column = self.metrics[name] = Metric()
            column.set(row, value)
        return True


class Attempt:
    """What one attempt recorded, and what its supervisor says of it."""

    def __init__(self, run: Path, number: int) -> None:
        self.number = number
        self.folder = layout.attempt_folder(run, number)
        self.info: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        self.stretches: list[Stretch] = [Stretch(number)]
        self.experts: dict[int, tuple[int, list[int]]] = {}  # layer -> (step, tokens per expert), the latest
        self.events: list[dict[str, Any]] = []
        self.dropped = 0  # records that the writer could not write
        self.unread = 0  # records that this reader could not make sense of
        self.tail = RecordTail(layout.rank_records(self.folder, 0))
        self.experts_tail = RecordTail(layout.experts_records(self.folder), begin=_EXPERTS_TAIL)

    def refresh(self) -> int:
        """Take what is new; returns the number of new records."""
        if self.info.get("action") is None:  # the last thing that the supervisor writes of an attempt
            self.info = read_json(layout.attempt_info(self.folder)) or self.info
            said = self.info.get("resumed_from")
            if type(said) is int:
                self.stretches[0].resumed_from = said
        count = 0
        for found in self.tail.read():
            if found.again:
                said = self.info.get("resumed_from")
                self.stretches = [Stretch(self.number, resumed_from=said if type(said) is int else None)]
                self.events, self.header, self.dropped, self.unread = [], {}, 0, 0
            for record in found.items:
                self._take(record)
            count += len(found.items)
        for found in self.experts_tail.read():
            if found.again:
                self.experts = {}
            for record in found.items:
                self._take_experts(record)
            count += len(found.items)
        return count

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "step":
            stretch = self.stretches[-1]
            step = record.get("step")
            if type(step) is int and stretch.steps and step < stretch.steps[-1]:
                stretch = Stretch(self.number)
                self.stretches.append(stretch)
            self.unread += not stretch.add(record)
        elif kind == "event":
            self.events.append(record)
            step = record.get("step")
            if record.get("event") == "resumed" and type(step) is int and not self.stretches[-1].steps:
                self.stretches[-1].resumed_from = step
            back = record.get("to_step")
            if record.get("event") == "rewound" and type(back) is int and back in _INT64:
                self.stretches.append(Stretch(self.number, resumed_from=back))
        elif kind == "header":
            self.header = record
        elif kind == "dropped":
            count = record.get("count")
            self.dropped += count if type(count) is int else 0

    def _take_experts(self, record: dict[str, Any]) -> None:
        if record["kind"] != "experts":
            return
        step, layer, first = (record.get(name) for name in ("step", "layer", "first"))
        load: Any = record.get("load")
        good = isinstance(load, list) and load and all(type(count) is int and count >= 0 for count in load)
        if not (good and type(step) is int and type(layer) is int and type(first) is int):
            self.unread += 1
            return
        if first:
            before = self.experts.get(layer)
            if before is None or before[0] != step or len(before[1]) < first:
                return  # its beginning was not read, as where the tail was cut
            load = before[1][:first] + load
        self.experts[layer] = (step, load)


@dataclass(frozen=True)
class Series:
    """One metric over the curve: ``values[i]`` was measured at ``steps[i]``. Missing values are not in it."""

    steps: np.ndarray  # int64, ascending
    values: np.ndarray  # float64, NaN and infinities included


class History:
    """One run's attempts as one history; ``refresh`` takes in what was written since.

    Reads the records of rank 0, and of the loads of experts only the latest. ``load`` reads everything.
    """

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self.attempts: list[Attempt] = []
        self._refreshes = 0

    def refresh(self) -> int:
        """Take what is new; returns the number of new records."""
        known = {attempt.number for attempt in self.attempts}
        numbers = layout.attempt_numbers(self.run)
        if new := [Attempt(self.run, number) for number in numbers if number not in known]:
            self.attempts = sorted(self.attempts + new, key=lambda attempt: attempt.number)
        elif not numbers and not self.run.is_dir():
            self.attempts = []  # the run was deleted
        every = self._refreshes % _OLD_EVERY == 0
        self._refreshes += 1
        live = self.attempts if every else self.attempts[-2:] + [a for a in new if a not in self.attempts[-2:]]
        count = sum(attempt.refresh() for attempt in live)
        self._join()
        return count

    def _join(self) -> None:
        cut: int | None = None
        for stretch in reversed(list(self.stretches())):
            stretch.kept = len(stretch.steps) if cut is None else bisect.bisect_right(stretch.steps, cut)
            if (start := stretch.start) is not None:
                cut = start if cut is None else min(cut, start)

    def stretches(self) -> Iterator[Stretch]:
        for attempt in self.attempts:
            yield from attempt.stretches

    def cut(self, number: int) -> int | None:
        """The step beyond which later attempts do again what an attempt recorded; None where none does."""
        later = (stretch.start for each in self.attempts if each.number > number for stretch in each.stretches)
        return min((start for start in later if start is not None), default=None)

    @property
    def last(self) -> tuple[int, int, float] | None:
        """(step, tokens, unix time) at the end of the curve; None before the first step."""
        for stretch in reversed(list(self.stretches())):
            if stretch.kept:
                row = stretch.kept - 1
                return stretch.steps[row], stretch.tokens[row], stretch.times[row]
        return None

    @property
    def updated(self) -> float | None:
        """When the newest step was recorded, lost or not; unix seconds."""
        times = [stretch.times[-1] for stretch in self.stretches() if stretch.times]
        return times[-1] if times else None

    @property
    def lost_steps(self) -> int:
        """Steps done more than once, or to be done again."""
        return sum(stretch.lost for stretch in self.stretches())

    def tokens_per_s(self, recent: int = 50) -> float | None:
        """Median speed of the ``recent`` last steps of the newest attempt; None before its second step.

        Not an average over the run: neither a pause at a checkpoint nor a clock that jumped moves it.
        """
        if not self.attempts:
            return None
        stretch = self.attempts[-1].stretches[-1]
        times = np.array(stretch.times[-recent - 1 :])
        tokens = np.array(stretch.tokens[-recent - 1 :], dtype=float)
        seconds, gained = np.diff(times), np.diff(tokens)
        speeds = gained[seconds > 0] / seconds[seconds > 0]
        return float(np.median(speeds)) if len(speeds) else None

    def names(self) -> list[str]:
        """The metrics of the curve, in the order in which they first appeared."""
        return list(dict.fromkeys(name for stretch in self.stretches() for name in stretch.metrics))

    def latest(self) -> dict[str, float]:
        """The newest value of every metric on the curve."""
        found: dict[str, float] = {}
        for name in self.names():
            for stretch in reversed(list(self.stretches())):
                column = stretch.metrics.get(name)
                if column is not None and (value := column.last_before(stretch.kept)) is not None:
                    found[name] = value
                    break
        return found

    def series(self, name: str) -> Series:
        """One metric over the curve."""
        steps = [np.empty(0, np.int64)]
        values = [np.empty(0)]
        for stretch in self.stretches():
            if (column := stretch.metrics.get(name)) is not None:
                rows = np.array(column.rows)
                count = int(np.searchsorted(rows, stretch.kept))
                steps.append(np.array(stretch.steps)[rows[:count]])
                values.append(np.array(column.values)[:count])
        return Series(np.concatenate(steps), np.concatenate(values))

    def experts(self) -> dict[int, tuple[int, list[int]]]:
        """Layer -> (step, tokens per expert), the newest that was written."""
        for attempt in reversed(self.attempts):
            if attempt.experts:
                return attempt.experts
        return {}

    def problems(self) -> list[str]:
        """What could not be read or was not written, for people."""
        found = []
        for attempt in self.attempts:
            where = f"attempt {attempt.number}"
            for tail in (attempt.tail, attempt.experts_tail):
                if tail.newer:
                    found.append(f"{where}: {tail.path.name} has protocol {tail.newer}, this reads up to {PROTOCOL}")
                if tail.error:
                    found.append(f"{where}: {tail.path.name}: {tail.error}")
            if bad := attempt.tail.bad + attempt.experts_tail.bad + attempt.unread:
                found.append(f"{where}: {bad} damaged line{'s' * (bad > 1)} skipped")
            if attempt.dropped:
                found.append(f"{where}: {attempt.dropped} record{'s' * (attempt.dropped > 1)} could not be written")
        return found

    def frame(self) -> pd.DataFrame:
        """The curve: step, tokens, attempt, t (unix seconds) and a column for each metric.

        A missing metric is ``pd.NA``; NaN stays a value of its own (``isna()`` is False for it).
        """
        return self._frame(lost=False)

    def lost_frame(self) -> pd.DataFrame:
        """The steps that were lost, in the columns of ``frame``, in the order in which they were made."""
        return self._frame(lost=True)

    def _frame(self, lost: bool) -> pd.DataFrame:
        import pandas as pd

        parts = [(s, s.kept if lost else 0, len(s.steps) if lost else s.kept) for s in self.stretches()]
        parts = [part for part in parts if part[2] > part[1]]
        columns: dict[str, Any] = {}
        for name, kind in (
            ("steps", np.int64),
            ("tokens", np.int64),
            ("attempt", np.int64),
            ("times", np.float64),
        ):
            pieces = [
                np.full(end - begin, s.attempt) if name == "attempt" else np.array(getattr(s, name)[begin:end])
                for s, begin, end in parts
            ]
            title = {"steps": "step", "times": "t"}.get(name, name)
            columns[title] = np.concatenate(pieces).astype(kind) if pieces else np.empty(0, kind)
        for name in self.names():
            pieces = [_dense(s.metrics.get(name), begin, end) for s, begin, end in parts]
            values = np.concatenate([value for value, _ in pieces]) if pieces else np.empty(0)
            missing = np.concatenate([mask for _, mask in pieces]) if pieces else np.empty(0, bool)
            columns[name] = pd.arrays.FloatingArray(values, missing)
        return pd.DataFrame(columns)


def _dense(column: Metric | None, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, missing) for the rows from ``begin`` to ``end``."""
    values, missing = np.zeros(end - begin), np.ones(end - begin, bool)
    if column is not None:
        rows = np.array(column.rows)
        low, high = np.searchsorted(rows, (begin, end))
        values[rows[low:high] - begin] = np.array(column.values)[low:high]
        missing[rows[low:high] - begin] = False
    return values, missing


@dataclass(frozen=True)
class Frames:
    """Everything a run recorded, as pandas DataFrames, each made when it is first asked for."""

    source: History

    @cached_property
    def history(self) -> pd.DataFrame:
        """The curve; see ``History.frame``."""
        return self.source.frame()

    @cached_property
    def lost(self) -> pd.DataFrame:
        """The steps that were done again."""
        return self.source.lost_frame()

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """One row for each attempt: number, job_id, cause, began, ended, first_step, last_step, lost_steps
        ..."""
        import pandas as pd

        return pd.DataFrame([attempt_row(attempt) for attempt in self.source.attempts])

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """The summary lines of all ranks: attempt, rank, step, t, step_s and other metrics."""
        import pandas as pd

        rows = []
        for attempt in self.source.attempts:
            for rank in layout.recorded_ranks(attempt.folder):
                for record in _records(layout.rank_records(attempt.folder, rank), "rank"):
                    metrics = {name: metric(value) for name, value in record.items() if name not in _RESERVED}
                    row = {
                        "attempt": attempt.number,
                        "rank": rank,
                        "step": record.get("step"),
                        "t": record["t"],
                    }
                    rows.append(row | metrics)
        return pd.DataFrame(rows)

    @cached_property
    def experts(self) -> pd.DataFrame:
        """Tokens per expert: attempt, step, layer, expert, tokens; one row for each expert."""
        import pandas as pd

        parts = []
        for attempt in self.source.attempts:
            for record in _records(layout.experts_records(attempt.folder), "experts"):
                load = record.get("load") or []
                same = {"attempt": attempt.number, "step": record.get("step"), "layer": record.get("layer")}
                experts = range(int(record.get("first") or 0), int(record.get("first") or 0) + len(load))
                parts += [same | {"expert": e, "tokens": n} for e, n in zip(experts, load, strict=True)]
        return pd.DataFrame(parts)


def load(run: Path | str) -> Frames:
    """All records of the run in folder ``run``.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(run).is_dir():
        raise FileNotFoundError(f"{run} is no run folder")
    history = History(Path(run))
    history.refresh()
    return Frames(history)


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    """What is known of an attempt, in one flat row; None where nobody said it."""
    info = attempt.info
    steps = [step for stretch in attempt.stretches for step in (stretch.steps[:1] + stretch.steps[-1:])]
    return {
        "number": attempt.number,
        "job_id": info.get("job_id"),
        "nodes": info.get("nodes") or [],
        "world_size": info.get("world_size") or attempt.header.get("world_size"),
        "began": info.get("began") or attempt.header.get("start"),
        "ended": info.get("ended"),
        "cause": info.get("cause"),
        "evidence": info.get("evidence") or "",
        "resumed_from": attempt.stretches[0].start,
        "first_step": min(steps, default=None),
        "last_step": max(steps, default=None),
        "lost_steps": sum(stretch.lost for stretch in attempt.stretches),
    }


def undone(steps: np.ndarray, cut: int | None) -> np.ndarray:
    """Which rows of a file of one attempt are done again: beyond ``cut``, or followed by a step that is not higher."""
    if not len(steps):
        return np.empty(0, bool)
    after = np.minimum.accumulate(steps[::-1])[::-1]
    again = np.append(steps[:-1] >= after[1:], False)
    return again if cut is None else again | (steps > cut)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none (yet) or it cannot be read as one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _records(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    for found in RecordTail(path).read():
        yield from (record for record in found.items if record["kind"] == kind)
