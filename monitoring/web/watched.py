"""One run that somebody looks at: one reader of its files for all who do."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import layout
from monitoring.curves import Curves
from monitoring.experts import ExpertLoads, Experts
from monitoring.history import read_json
from monitoring.latest import Latest
from monitoring.ranks import STEP, Ranks, RankTimes, parts_told, straggling
from monitoring.reader import Reader
from monitoring.snapshot import JobState, Snapshot
from monitoring.web.encode import numbers

FRESH = 1.0  # seconds for which what was read is new enough for everybody
COLUMNS = 400  # of a heat map, at most


class Gone(Exception):
    """The run's folder is not there any more, or cannot be read."""


@dataclass(frozen=True)
class Heat:
    """A heat map: a value for each row and each bin of steps; NaN where there is none."""

    steps: np.ndarray  # the first of each bin
    values: np.ndarray  # (rows, bins)


class Watched:
    """Reads a run for all who look at it. Its methods block, and may be called from several threads.

    Raises:
        Gone: any of them, if the run is there no more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used = time.monotonic()
        self._lock = threading.Lock()
        self._read = -1e9
        self._snapshot: Snapshot | None = None
        try:
            self._reader = Reader(folder)
        except OSError as error:
            raise Gone(str(error)) from error
        self._curves = Curves(self._reader.history)
        self._ranks: dict[str, Ranks] = {}  # by part of a step; these read many files, and only where somebody asks
        self._experts: Experts | None = None
        self._latest = Latest(folder, ("rank", "step", "device"))

    def snapshot(self, job: JobState | None = None) -> Snapshot:
        """The run as it is now, or was a moment ago."""
        with self._lock:
            return self._refreshed(job)

    def curve(self, name: str, axis: str, low: float, high: float, most: int, smoothing: float) -> dict[str, Any]:
        """One metric in bins, what of it was done again as lines of its own, and which history that was of."""
        with self._lock:
            self._refreshed(None)
            found = self._curves.view(name, axis=axis, low=low, high=high, most=most, smoothing=smoothing)
            ghosts = self._curves.ghosts(name, axis=axis, low=low, high=high, most=max(50, most // 4))
            return {"envelope": found, "ghosts": ghosts, "history": self._generation()}

    def metrics(self) -> list[str]:
        """Their names, in the order in which they first appeared."""
        with self._lock:
            self._refreshed(None)
            return self._curves.names()

    def ranks(self, part: str | None = None) -> tuple[RankTimes, list[str]]:
        """How long a part of a step took, and of which parts the ranks tell; None: that in which one is slow."""
        with self._lock:
            found = self._refreshed(None)
            history = self._reader.history
            part = part or straggling(found.findings) or STEP
            if part not in self._ranks:
                self._ranks[part] = Ranks(self.folder, history, part)
            return self._ranks[part].read(), parts_told(history)

    def layers(self) -> list[int]:
        with self._lock:
            self._refreshed(None)
            self._experts = self._experts or Experts(self.folder, self._reader.history)
            return self._experts.layers()

    def experts(self, layer: int) -> ExpertLoads:
        with self._lock:
            self._refreshed(None)
            self._experts = self._experts or Experts(self.folder, self._reader.history)
            return self._experts.read(layer)

    def summaries(self) -> list[dict[str, Any]]:
        """The newest record that each rank of the newest attempt wrote of itself and its device."""
        with self._lock:
            self._here()
            numbers = layout.attempt_numbers(self.folder)
            if not numbers:
                return []
            info = read_json(layout.attempt_info(layout.attempt_folder(self.folder, numbers[-1]))) or {}
            return [
                {"rank": rank, "node": _node(info, rank) or str(found.get("header", {}).get("host") or "")}
                | _summary(found)
                for rank, found in sorted(self._latest.read().items())
            ]

    def _refreshed(self, job: JobState | None) -> Snapshot:
        self._here()
        now = time.monotonic()
        if self._snapshot is None or now - self._read >= FRESH:
            self._snapshot = self._reader.read(job if job is not None else self._job())
            self._read = now
        return self._snapshot

    def _job(self) -> JobState | None:
        return self._snapshot.job if self._snapshot is not None else None

    def _here(self) -> None:
        self.used = time.monotonic()
        try:
            with (self.folder / layout.CONFIG).open("rb"):
                return
        except OSError as error:
            raise Gone(str(error)) from error

    def _generation(self) -> str:
        """Changes when what was drawn once is not part of the curve any more."""
        history = self._reader.history
        return f"{len(history.attempts)}.{sum(1 for _ in history.stretches())}.{history.lost_steps}"


def _summary(newest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The newest records of a rank as one, with the time of the one of its device."""
    found: dict[str, Any] = {}
    for kind in ("step", "rank", "device"):
        found |= {name: value for name, value in newest.get(kind, {}).items() if name not in ("seq", "kind", "tokens")}
    return found


def _node(info: dict[str, Any], rank: int) -> str:
    nodes, world = info.get("nodes"), info.get("world_size")
    if not (isinstance(nodes, list) and nodes and isinstance(world, int)):
        return ""
    return str(nodes[min(len(nodes) - 1, rank * len(nodes) // max(1, world))])


def binned(steps: np.ndarray, values: np.ndarray, low: float, high: float, most: int = COLUMNS) -> Heat:
    """Rows of values over steps in at most so many bins, each the largest of what it holds: a slow step stays seen.

    Args:
        values: (rows, steps).
    """
    chosen = np.flatnonzero((steps >= low) & (steps <= high))
    if not len(chosen):
        return Heat(np.empty(0, np.int64), np.empty((len(values), 0)))
    first, size = int(chosen[0]), -(-len(chosen) // max(1, most))
    edges = np.arange(first, int(chosen[-1]) + 1, size)
    part = values[:, first : int(chosen[-1]) + 1]
    filled = np.where(np.isnan(part), -np.inf, part)
    largest = np.maximum.reduceat(filled, edges - first, axis=1) if len(part) else part[:, edges - first]
    return Heat(steps[edges], np.where(np.isneginf(largest), np.nan, largest))


def heat(times: RankTimes, parts: list[str], low: float, high: float) -> dict[str, Any]:
    """Seconds per rank, and how late each is by them: 1 is as the median rank, 1.2 a fifth of a step later."""
    shown = binned(times.steps, times.seconds, low, high)
    seconds, late = times.recent()
    return {
        "part": times.part,
        "parts": parts,
        "ranks": list(times.ranks),
        "nodes": list(times.nodes),
        "steps": shown.steps,
        "seconds": numbers(shown.values, 4),
        "recent": [{"seconds": s, "late": r} for s, r in zip(seconds.tolist(), late.tolist(), strict=True)],
        "late": numbers(binned(times.steps, times.late(), low, high).values, 4),
    }


def loads(found: ExpertLoads, low: float, high: float) -> dict[str, Any]:
    """Shares per expert over steps: 1 is fair."""
    shares = binned(found.steps, found.share.T, low, high)
    rest: Sequence[np.ndarray] = (found.entropy[None, :], found.dropped[None, :].astype(float))
    entropy, dropped = (binned(found.steps, each, low, high).values[0] for each in rest)
    return {"steps": shares.steps, "share": numbers(shares.values, 4), "entropy": entropy, "dropped": dropped}
