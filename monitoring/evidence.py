"""What detectors judge: a snapshot, with curves, the ranks' newest words and the disk, all of one moment."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import evaluations, fields, layout
from monitoring.history import Attempt, History, Series
from monitoring.recorder import metric
from monitoring.snapshot import ExpertLoad, Snapshot
from monitoring.tail import RecordTail, newest

TAIL = 1 << 16  # bytes of a rank's records that are read of a file that is already long
RECENT = 32  # summaries of a rank, and loads of a layer, that are kept
DEVICES = 64  # records of a rank's device that are kept: an hour
ENOUGH = 12  # of them that are looked for in a file that is already long
LATE = 30.0  # seconds by which the clocks of Slurm and of a node may differ
TRAINING = "jobs.train.Train"  # the kind of job whose configuration says how long it trains
_WATCH = {"hang_seconds": 300.0, "hang_factor": 10.0}  # where the configuration does not say


@dataclass(frozen=True)
class Pulse:
    """The newest summaries of one rank, oldest first."""

    rank: int
    node: str
    times: np.ndarray  # unix seconds
    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]  # NaN where a summary lacks one
    devices: Sequence[Mapping[str, Any]] = ()  # newest device records: ``t`` and their fields

    def sampled(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(unix seconds, values) of one field of the device records that have it."""
        found = [(r["t"], r[name]) for r in self.devices if isinstance(r.get(name), int | float)]
        return np.array([t for t, _ in found], float), np.array([value for _, value in found], float)


@dataclass(frozen=True)
class Disk:
    """The file system of the run's folder; bytes."""

    path: str
    free: int
    total: int
    checkpoint: int = 0  # of the newest complete checkpoint


def _series() -> Series:
    return Series(np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class Evidence:
    """Everything that a detector may look at. Never changed."""

    snapshot: Snapshot
    steps: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # of the curve
    times: np.ndarray = field(default_factory=lambda: np.empty(0))  # unix seconds, one for each of ``steps``
    series: Mapping[str, Series] = field(default_factory=dict)  # metrics of the curve, evaluations of checkpoints
    events: Sequence[Mapping[str, Any]] = ()  # of the newest attempt
    began: float | None = None  # when the newest attempt did
    pulses: Sequence[Pulse] = ()  # of the newest attempt
    unreadable: Collection[int] = ()  # its ranks whose records cannot be read here: what they say nobody knows
    loads: Mapping[int, Sequence[ExpertLoad]] = field(default_factory=dict)  # layer -> the newest, oldest first
    disk: Disk | None = None
    checkpoints: Sequence[int] = ()  # steps of those that are complete, ascending
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return self.snapshot.now

    @property
    def live(self) -> bool:
        """Ranks are at work, as far as anybody says."""
        said = self.snapshot.job.state if self.snapshot.job is not None else self.snapshot.state
        attempts, job = self.snapshot.attempts, self.snapshot.job
        if said.lower() != "running" or not attempts or attempts[-1].ended is not None:
            return False
        began, started = attempts[-1].began, None if job is None else job.started
        return began is None or started is None or began > started - LATE  # else it is of the job's start before

    @property
    def trains(self) -> bool:
        """The job is a training of this project's, whose records and silences have a meaning that is known."""
        job = self.config.get("job")
        return not isinstance(job, Mapping) or job.get("_target_", TRAINING) == TRAINING

    @property
    def first_step(self) -> int:
        """The first step of the curve that the newest attempt took; 0 where there is none."""
        own = np.flatnonzero(self.times >= (self.began or 0.0))
        return int(self.steps[own[0]]) if len(own) else 0

    def curve(self, name: str) -> Series:
        return self.series.get(name) or _series()

    def when(self, step: float) -> float:
        """Unix time of a step of the curve; now where it is not known."""
        row = int(np.searchsorted(self.steps, step))
        return float(self.times[row]) if row < len(self.times) else self.now

    def watch(self, name: str) -> float:
        """A figure of ``train.watch``, by which a hanging rank ends itself."""
        found = fields.number(fields.part(fields.part(self.config, "train"), "watch").get(name))
        return _WATCH[name] if found is None else found


class Gathering:
    """Makes the evidence of one run, reading only what its files gained since the last time."""

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self._evaluations = evaluations.Evaluations(self.run)
        self._attempt: Path | None = None
        self._tails: dict[int, RecordTail] = {}
        self._rows: dict[int, deque[dict[str, Any]]] = {}
        self._devices: dict[int, deque[dict[str, Any]]] = {}
        self._experts: RecordTail | None = None
        self._loads: dict[int, deque[ExpertLoad]] = {}

    def gather(self, snapshot: Snapshot, history: History, config: Mapping[str, Any]) -> Evidence:
        """Evidence of the moment of ``snapshot``."""
        stretches = [stretch for stretch in history.stretches() if stretch.kept]
        live = history.attempts[-1] if history.attempts else None
        self._read(live.folder if live else None)
        checkpoints = layout.complete_checkpoints(self.run)
        nodes = {rank: snapshot.attempts[-1].node(rank) for rank in self._tails} if snapshot.attempts else {}
        return Evidence(
            snapshot=snapshot,
            steps=np.concatenate([np.array(each.steps[: each.kept]) for each in stretches] or [np.empty(0, np.int64)]),
            times=np.concatenate([np.array(each.times[: each.kept]) for each in stretches] or [np.empty(0)]),
            series={name: history.series(name) for name in history.names()}
            | evaluations.series(self._evaluations.refresh()),
            events=tuple(live.events) if live else (),
            began=snapshot.attempts[-1].began if snapshot.attempts else None,
            pulses=tuple(self._pulse(rank, nodes.get(rank, "")) for rank in sorted(self._tails)),
            unreadable=frozenset(rank for rank, tail in self._sources(live) if tail.error or tail.newer),
            loads={layer: tuple(found) for layer, found in self._loads.items()},
            disk=_disk(self.run, checkpoints),
            checkpoints=checkpoints,
            config=config,
        )

    def _sources(self, live: Attempt | None) -> Iterator[tuple[int, RecordTail]]:
        """What is read of each rank; of rank 0 the curve is read by itself."""
        yield from self._tails.items()
        if live is not None:
            yield 0, live.tail

    def _read(self, attempt: Path | None) -> None:
        if attempt != self._attempt:
            self._attempt, self._tails, self._rows, self._devices = attempt, {}, {}, {}
            self._experts, self._loads = None, {}
        if attempt is None:
            return
        for rank in layout.recorded_ranks(attempt):
            new = rank not in self._tails
            if new:
                self._tails[rank] = RecordTail(layout.rank_records(attempt, rank), begin=TAIL)
                self._rows[rank], self._devices[rank] = deque(maxlen=RECENT), deque(maxlen=DEVICES)
            for found in self._tails[rank].read():
                if found.again:
                    self._rows[rank].clear()
                    self._devices[rank].clear()
                for record in found.items:
                    if _is_summary(record):
                        self._rows[rank].append(record)
                    elif record["kind"] == "device":
                        self._devices[rank].append(record)
            if new:
                self._fill_up(rank, layout.rank_records(attempt, rank))
        self._read_loads(attempt)

    def _fill_up(self, rank: int, path: Path) -> None:
        """Take what is further back: hours of records of a device behind the last summary of a rank that hangs, or
        minutes of steps behind the last one of a device."""
        _earlier(self._rows[rank], filter(_is_summary, islice(newest(path, "rank"), RECENT)), RECENT)
        _earlier(self._devices[rank], newest(path, "device"), ENOUGH)

    def _read_loads(self, attempt: Path) -> None:
        if self._experts is None:
            self._experts = RecordTail(layout.experts_records(attempt), begin=16 * TAIL)
        for found in self._experts.read():
            if found.again:
                self._loads = {}
            for record in found.items:
                layer, step, first, load = (record.get(name) for name in ("layer", "step", "first", "load"))
                good = isinstance(load, list) and {*map(type, load)} == {int} and min(load) >= 0
                if not (good and type(layer) is int and type(step) is int and record["kind"] == "experts"):
                    continue
                loads = self._loads.setdefault(layer, deque(maxlen=RECENT))
                if not first:
                    loads.append(ExpertLoad(layer, step, tuple(load)))
                elif loads and loads[-1].step == step and len(loads[-1].tokens) == first:
                    loads[-1] = ExpertLoad(layer, step, (*loads[-1].tokens, *load))

    def _pulse(self, rank: int, node: str) -> Pulse:
        rows = self._rows[rank]
        names = dict.fromkeys(name for row in rows for name in row if name not in ("seq", "t", "kind", "step"))
        return Pulse(
            rank=rank,
            node=node,
            times=np.array([row["t"] for row in rows], float),
            steps=np.array([row["step"] for row in rows], np.int64),
            metrics={name: np.array([_value(row, name) for row in rows], float) for name in names},
            devices=tuple(self._devices[rank]),
        )


def _earlier(rows: deque[dict[str, Any]], found: Iterator[dict[str, Any]], most: int) -> None:
    """Put records before those that are there, until there are ``most``; ``found`` has the newest first."""
    while len(rows) < most and (record := next(found, None)) is not None:
        if not rows or record["seq"] < rows[0]["seq"]:
            rows.appendleft(record)


def _is_summary(record: Mapping[str, Any]) -> bool:
    return record["kind"] == "rank" and fields.whole(record.get("step")) is not None


def _value(row: Mapping[str, Any], name: str) -> float:
    found = metric(row.get(name))
    return float("nan") if found is None else found


def _disk(run: Path, checkpoints: Sequence[int]) -> Disk | None:
    try:
        usage = shutil.disk_usage(run)
    except OSError:
        return None
    return Disk(str(run), usage.free, usage.total, _size(layout.checkpoint(run, checkpoints[-1])) if checkpoints else 0)


def _size(folder: Path) -> int:
    """Bytes of a checkpoint, as the sizes of its files say; 0 if there is none."""
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # removed meanwhile
        return 0
