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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring import compacted, fields, layout, problems
from monitoring.columns import Columns, Metric
from monitoring.tail import RecordTail

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_EXPERTS_TAIL = 1 << 20  # bytes in which the latest load of every layer is looked for
_MISSING = Metric()
_OLD_EVERY = 20  # refreshes between two looks at attempts that others have followed


@dataclass
class Stretch(Columns):
    """Consecutive steps of one attempt, ascending."""

    attempt: int = 0
    tokens: array[int] = field(default_factory=lambda: array("q"))
    resumed_from: int | None = None  # the step it was told to go on from
    kept: int = 0  # its first rows that no later stretch does again

    def integers(self) -> dict[str, array[int]]:
        return {"step": self.steps, "tokens": self.tokens}

    @property
    def start(self) -> int | None:
        """The step this stretch goes on from, as said or, where nobody said it, as its first step shows."""
        shown = [self.steps[0] - 1] if self.steps else []
        said = [self.resumed_from] if self.resumed_from is not None else []
        return min(shown + said, default=None)

    @property
    def lost(self) -> int:
        return len(self.steps) - self.kept


class Attempt:
    """What one attempt recorded, and what its supervisor says of it.

    Args:
        records_only: read the records even where they were compacted.
    """

    def __init__(self, run: Path, number: int, *, records_only: bool = False) -> None:
        self.number = number
        self.folder = layout.attempt_folder(run, number)
        self.info: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        self.stretches: list[Stretch] = [Stretch(attempt=number)]
        self.experts: dict[int, tuple[int, list[int]]] = {}  # layer -> (step, tokens per expert), the latest
        self.events: list[dict[str, Any]] = []
        self.dropped = 0  # records that the writer could not write
        self.dropped_experts = 0  # likewise of the loads of experts, as far as they are read
        self.troubles: dict[int, problems.Trouble] = {}  # of the other ranks, by whoever reads their files
        self.unread = 0  # records that this reader could not make sense of
        self.tail = RecordTail(layout.rank_records(self.folder, 0))
        self._compacted = records_only  # whether that was looked for
        self.experts_tail = RecordTail(layout.experts_records(self.folder), begin=_EXPERTS_TAIL)

    def refresh(self) -> int:
        """Take what is new; returns the number of new records."""
        if self.info.get("action") is None:  # the last thing that the supervisor writes of an attempt
            self.info = fields.attempt(read_json(layout.attempt_info(self.folder)) or self.info)
            if (said := self.info.get("resumed_from")) is not None:
                self.stretches[0].resumed_from = said
        count = self._take_compacted() if self.info.get("action") is not None and not self._compacted else 0
        for found in self.tail.read():
            if found.again:
                self.stretches = [Stretch(attempt=self.number, resumed_from=self.info.get("resumed_from"))]
                self.events, self.header, self.dropped, self.unread = [], {}, 0, 0
            self._take(found.items)
            count += len(found.items)
        return count

    def refresh_experts(self) -> int:
        """Take the newest loads of experts; returns the number of new records."""
        count = 0
        for found in self.experts_tail.read():
            if found.again:
                self.experts, self.dropped_experts = {}, 0
            for record in found.items:
                self._take_experts(record)
            count += len(found.items)
        return count

    def _take_compacted(self) -> int:
        """Take what is in Parquet, where it is true; ``monitoring/compact.py`` has written it from an ``Attempt``."""
        self._compacted = True
        if self.tail.offset or (found := compacted.opened(self.folder, layout.STEPS_COMPACTED)) is None:
            return 0
        meta, said = found.meta, self.stretches[0].resumed_from
        try:
            self.stretches = stretches_from(found.file.read(), meta["stretches"], self.number)
        except (OSError, ValueError):  # damaged: the records have it all
            return 0
        if self.stretches[0].resumed_from is None:
            self.stretches[0].resumed_from = said
        self.header = fields.attempt(meta["header"])
        self.events = [event for event in meta["events"] if isinstance(event.get("event"), str)]
        self.dropped, self.unread, self.tail.bad = meta["dropped"], meta["unread"], meta["bad"]
        self.tail.resume(found.sizes()[self.tail.path.name])
        return sum(len(stretch.steps) for stretch in self.stretches)

    def _take(self, records: list[dict[str, Any]]) -> None:
        steps: list[dict[str, Any]] = []
        for record in records:
            kind = record["kind"]
            if kind == "step":
                steps.append(record)
            elif kind == "event":
                self._take_steps(steps)
                steps = []
                self._take_event(record)
            elif kind == "header":
                self.header = fields.attempt(record)
            elif kind == "dropped":
                self.dropped += unwritten(record)
        self._take_steps(steps)

    def _take_steps(self, records: list[dict[str, Any]]) -> None:
        if self._ascend(records):
            self.unread += self.stretches[-1].extend(records)
            return
        stretch, begin = self.stretches[-1], 0
        before = stretch.steps[-1] if stretch.steps else fields.INT64.start
        for place, record in enumerate(records):
            step, tokens = fields.whole(record.get("step")), fields.whole(record.get("tokens"))
            if step is not None and tokens is not None:
                if step < before:
                    self.unread += self.stretches[-1].extend(records[begin:place])
                    self.stretches.append(Stretch(attempt=self.number))
                    begin = place
                before = step
        self.unread += self.stretches[-1].extend(records[begin:])

    def _ascend(self, records: list[dict[str, Any]]) -> bool:
        """Whether all are good and none goes back, which is quickly seen of thousands."""
        try:
            steps = [record["step"] for record in records]
            if not steps or {*map(type, steps)} != {int}:
                return False
            places = array("q", steps)
        except (KeyError, OverflowError):
            return False
        known = self.stretches[-1].steps
        return bool((np.diff(places) >= 0).all()) and not (known and steps[0] < known[-1])

    def _take_event(self, record: dict[str, Any]) -> None:
        if not isinstance(record.get("event"), str):
            self.unread += 1
            return
        self.events.append(record)
        step, back = fields.whole(record.get("step")), fields.whole(record.get("to_step"))
        if record["event"] == "resumed" and step is not None and not self.stretches[-1].steps:
            self.stretches[-1].resumed_from = step
        if record["event"] == "rewound" and back is not None:
            self.stretches.append(Stretch(attempt=self.number, resumed_from=back))

    def _take_experts(self, record: dict[str, Any]) -> None:
        if record["kind"] == "dropped":
            self.dropped_experts += unwritten(record)
        if record["kind"] != "experts":
            return
        step, layer, first = (record.get(name) for name in ("step", "layer", "first"))
        load: Any = record.get("load")
        good = isinstance(load, list) and load and set(map(type, load)) == {int}
        if not (good and all(type(n) is int and 0 <= n < 1 << 62 for n in (step, layer, first, min(load), max(load)))):
            self.unread += 1
            return
        assert isinstance(step, int) and isinstance(layer, int) and isinstance(first, int)
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
        live = self.attempts if every else [a for a in self.attempts if a in new or a in self.attempts[-2:]]
        count = sum(attempt.refresh() for attempt in live)
        for attempt in reversed(live):
            count += attempt.refresh_experts()
            if attempt.experts:  # of those before it nobody will ask
                break
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
            column = stretch.metrics.get(name)
            if column is not None and (count := column.count_before(stretch.kept)):
                own, first, last = np.array(stretch.steps), column.rows[0], column.rows[count - 1]
                gaps = last - first + 1 != count
                steps.append(own[np.array(column.rows[:count])] if gaps else own[first : last + 1])
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
        return [f"attempt {each.number}: {what}" for each in self.attempts for what in problems.of(each)]

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
            if name in columns:  # a metric called attempt
                continue
            pieces = [s.metrics.get(name, _MISSING).dense(begin, end) for s, begin, end in parts]
            values = np.concatenate([value for value, _ in pieces]) if pieces else np.empty(0)
            missing = np.concatenate([mask for _, mask in pieces]) if pieces else np.empty(0, bool)
            columns[name] = pd.arrays.FloatingArray(values, missing)
        return pd.DataFrame(columns)


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
        "resumed_from": fields.whole(attempt.stretches[0].start),  # before the lowest integer there is none
        "first_step": min(steps, default=None),
        "last_step": max(steps, default=None),
        "lost_steps": sum(stretch.lost for stretch in attempt.stretches),
    }


def stretches_from(table: pa.Table, parts: Sequence[Sequence[int | None]], attempt: int) -> list[Stretch]:
    """The stretches of ``steps.parquet``, each as many rows of the table as ``parts`` says: (rows, resumed from)."""
    found, begin = [], 0
    for size, resumed_from in parts:
        stretch = Stretch(attempt=attempt, resumed_from=resumed_from)
        compacted.fill(stretch, table.slice(begin, size))
        found.append(stretch)
        begin += len(stretch.steps)
    return found


def undone(steps: np.ndarray, cut: int | None) -> np.ndarray:
    """Which rows of a file of one attempt are done again: beyond ``cut``, or followed by a step that is not higher."""
    if not len(steps):
        return np.empty(0, bool)
    after = np.minimum.accumulate(steps[::-1])[::-1]
    again = np.append(steps[:-1] >= after[1:], False)
    return again if cut is None else again | (steps > cut)


def unwritten(record: dict[str, Any]) -> int:
    """How many records a ``dropped`` record tells of."""
    count = record.get("count")
    return count if type(count) is int else 0


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none (yet) or it cannot be read as one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
