"""What the GPUs, processes and nodes of a run did over its whole time, by rank.

Reads the device records of all ranks, from Parquet where they were compacted. So nothing is read before it is first
asked for, and then only what is new. What is kept does not grow with the run: bins of time of each metric.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monitoring import compacted, fields, layout
from monitoring.columns import Columns, Samples
from monitoring.history import Attempt, History
from monitoring.ranks import DeviceFile, from_table, node_of, world_size
from monitoring.tail import RecordTail
from monitoring.time_bins import TimeBins

# The metrics of which there is a history (monitoring/devices.py says what they are): how they are called, their unit.
METRICS = {
    "gpu_util": ("GPU use", "%"),
    "power_w": ("power", "W"),
    "gpu_memory_gib": ("GPU memory", "GiB"),
    "temperature_c": ("temperature", "C"),
    "clock_mhz": ("clock", "MHz"),
    "throttled": ("throttled", "%"),
    "cpu_cores": ("CPU cores", ""),
    "memory_gib": ("memory", "GiB"),
    "host_cpu_util": ("node's CPU", "%"),
    "host_memory_gib": ("node's memory", "GiB"),
}
PEAKS = {"temperature_c", "gpu_memory_gib", "memory_gib", "host_memory_gib"}  # of these the highest is what hurts
BY_NODE = {"host_cpu_util", "host_memory_gib"}  # told by one rank of each node
WIDTH = 64.0  # seconds of a bin: a little more than a record is of, so that none is empty while a rank records
MOST = 1024  # bins
ODD = 86400.0  # seconds before an attempt, or after now, that no clock of a node is wrong by without being nonsense
_OLD_EVERY = 20  # reads between two looks at the files of attempts that have ended


@dataclass(frozen=True)
class DeviceTimes:
    """One metric by rank over bins of time, those between two attempts included."""

    metric: str
    times: np.ndarray  # (B,) unix seconds at which each bin begins
    width: float  # seconds of a bin
    began: float  # unix seconds: when the first attempt did
    ranks: tuple[int, ...]  # R of them, ascending; also one that never wrote
    nodes: tuple[str, ...]  # of each rank in the newest attempt; "" where nobody said it
    mean: np.ndarray  # (R, B), NaN where nothing was recorded
    highest: np.ndarray  # (R, B), likewise
    newest: np.ndarray  # (R,) the last value that each rank recorded
    average: np.ndarray  # (R,) of all records
    peak: np.ndarray  # (R,) the highest of all records

    @property
    def values(self) -> np.ndarray:
        """(R, B): the highest of a bin where that is what hurts, else the mean."""
        return self.highest if self.metric in PEAKS else self.mean

    def told(self) -> list[int]:
        """The rows to show: of what one rank of each node tells, those of these ranks, else all."""
        rows = np.arange(len(self.ranks)) if self.metric not in BY_NODE else np.flatnonzero(~np.isnan(self.average))
        return rows.tolist()


class _Replaced(Exception):
    """Something that is in the bins is in no file any more."""


class DeviceHistory:
    """The devices of a run; ``read`` takes in what was written since it was last called.

    Args:
        run: the run's folder.
        history: of the same run, where somebody reads it anyway and keeps it fresh; None: one of its own.
    """

    def __init__(self, run: Path, history: History | None = None) -> None:
        self._own = history is None
        self._history = History(run) if history is None else history
        self._reads = 0
        self._forget()

    def _forget(self) -> None:
        self._bins = TimeBins(WIDTH, MOST)
        self._attempts: dict[int, _Attempt] = {}
        self._rows: dict[int, int] = {}  # by rank
        self._newest: dict[tuple[int, str], tuple[int, float]] = {}  # by rank and metric: attempt, value

    def metrics(self) -> list[str]:
        """Those of which there is anything, by what was read the last time."""
        return [name for name in METRICS if name in self._bins.names]

    def read(self, metric: str) -> DeviceTimes:
        """One of ``METRICS``."""
        if self._own:
            self._history.refresh()
        for _ in range(2):
            try:
                self._refresh()
                break
            except _Replaced:  # all of it anew
                self._forget()
        attempts = self._history.attempts
        newest = attempts[-1] if attempts else None
        ranks = sorted({*range(world_size(newest) if newest else 0), *self._rows})
        rows = [self._rows.get(rank) for rank in ranks]
        mean, highest = self._bins.read(metric, rows)
        times, totals = self._bins.times(), [self._bins.total(metric, row) for row in rows]
        began = next((found for each in attempts if (found := _began(each)) is not None), None)
        return DeviceTimes(
            metric=metric,
            times=times,
            width=self._bins.width,
            began=began if began is not None else float(times[0]) if len(times) else 0.0,
            ranks=tuple(ranks),
            nodes=tuple(node_of(newest, rank) for rank in ranks),
            mean=mean,
            highest=highest,
            newest=np.array([self._newest.get((rank, metric), (0, np.nan))[1] for rank in ranks]),
            average=np.array([average for average, _ in totals]),
            peak=np.array([peak for _, peak in totals]),
        )

    def _refresh(self) -> None:
        old = self._reads % _OLD_EVERY == 0 or not self._attempts
        self._reads += 1
        known = {each.number for each in self._history.attempts}
        if self._attempts.keys() - known:
            raise _Replaced
        for records in self._history.attempts:
            attempt = self._attempts.setdefault(records.number, _Attempt())
            if old or not attempt.over:
                attempt.refresh(records, self)

    def take(self, records: Attempt, rank: int, found: Columns) -> None:
        """Take device records of a rank, in their order."""
        values = {name: found.column(name) for name in found.metrics}
        for name, each in values.items():
            good = np.flatnonzero(np.isfinite(each))
            if len(good) and self._newest.get((rank, name), (-1, 0.0))[0] <= records.number:
                self._newest[rank, name] = records.number, float(each[good[-1]])
        times, began = np.array(found.times), _began(records)
        low = 0.0 if began is None else began - ODD
        good = (times >= low) & (times <= min(time.time() + ODD, fields.LATEST))
        row = self._rows.setdefault(rank, len(self._rows))
        self._bins.add(row, times[good], {name: each[good] for name, each in values.items()})


class _Attempt:
    """How far the files of all ranks of one attempt were read."""

    def __init__(self) -> None:
        self.tails: dict[int, RecordTail] = {}
        self.over = False  # its supervisor has said the last word, and all was read after that

    def refresh(self, records: Attempt, history: DeviceHistory) -> None:
        over = records.info.get("action") is not None
        if over and not self.tails:
            self._compacted(records, history)
        for rank in layout.recorded_ranks(records.folder):
            if rank not in self.tails:
                self.tails[rank] = RecordTail(layout.rank_records(records.folder, rank), kinds=(DeviceFile.kind,))
        for rank, tail in self.tails.items():
            for found in tail.read():
                if found.again:
                    raise _Replaced
                if new := [record for record in found.items if record["kind"] == DeviceFile.kind]:
                    columns = Samples(only=METRICS)
                    columns.extend(new)
                    history.take(records, rank, columns)
        self.over = over

    def _compacted(self, records: Attempt, history: DeviceHistory) -> None:
        """Take what was compacted, a rank at a time; the records go on behind it."""
        if (found := compacted.opened(records.folder, DeviceFile.parquet)) is None:
            return
        ranks = {layout.rank_records(records.folder, rank).name: rank for rank in layout.recorded_ranks(records.folder)}
        sizes = {ranks[name]: size for name, size in found.sizes().items() if name in ranks}
        try:
            for table in compacted.groups(found, ("rank", "t", *METRICS)):
                rank, columns = from_table(table, Samples(only=METRICS))
                if rank in sizes:
                    history.take(records, rank, columns)
                    self._go_on(records, rank, sizes.pop(rank))
        except (OSError, ValueError):  # damaged: the records have the ranks that are left
            return
        for rank, size in sizes.items():  # of a rank without a row there is none in so much of its file
            self._go_on(records, rank, size)

    def _go_on(self, records: Attempt, rank: int, size: int) -> None:
        self.tails[rank] = RecordTail(layout.rank_records(records.folder, rank), kinds=(DeviceFile.kind,))
        self.tails[rank].resume(size)


def _began(attempt: Attempt) -> float | None:
    """Unix seconds; by the supervisor, or by rank 0."""
    return attempt.info.get("began") or attempt.header.get("start")
