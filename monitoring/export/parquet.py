"""A run as Parquet: ``history.parquet`` (its curve), attempts, ranks, experts, lost if wanted.

Null is a value that is missing; NaN and infinities stay. A Parquet file cannot grow: while a run goes on its curve is
written anew, at most once a minute.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from monitoring.export import About, needs, replacing
from monitoring.export.increments import Increment
from monitoring.export.tables import tables
from monitoring.history import History

EVERY = 60.0  # seconds between two writings of the curve


def make(folder: Path, about: About, lost: bool) -> Parquet:
    return Parquet(folder / about.name / about.id, lost)


class Parquet:
    """One run's tables."""

    appends_only = False

    def __init__(self, folder: Path, lost: bool) -> None:
        self.folder, self.lost = folder, lost
        self.arrow = needs("pyarrow", "parquet")
        self.parquet = needs("pyarrow.parquet", "parquet")
        self.written = -EVERY
        self.behind = False

    def take(self, found: Increment, history: History) -> None:
        self.behind = True
        if time.monotonic() - self.written >= EVERY:
            self._curve(history)

    def restart(self) -> None:
        self.written = -EVERY

    def close(self, history: History, state: str) -> None:
        if self.behind:
            self._curve(history)
        for name, frame in tables(history, lost=self.lost):
            self._write(name, frame)

    def _curve(self, history: History) -> None:
        self._write("history", history.frame())
        self.written, self.behind = time.monotonic(), False

    def _write(self, name: str, frame: Any) -> None:
        table = self.arrow.Table.from_pandas(frame, preserve_index=False)
        with replacing(self.folder / f"{name}.parquet") as file:
            self.parquet.write_table(table, file, compression="zstd")
        file.close()
