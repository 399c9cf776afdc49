"""A run as CSV: ``history.csv`` (its curve), ``attempts.csv``, ``ranks.csv``, ``experts.csv``, ``lost.csv`` if wanted.

An empty field is a value that is missing; NaN and infinities are written as ``nan``, ``inf`` and ``-inf``. Rows are
appended; the file is written anew where a metric comes late, or steps were lost that it holds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from pathlib import Path
from typing import IO, Any

from monitoring.export import About, replacing
from monitoring.export.increments import Chunk, Increment
from monitoring.export.tables import tables
from monitoring.history import History

FIXED = ("step", "tokens", "attempt", "t")


def make(folder: Path, about: About, lost: bool) -> Csv:
    return Csv(folder / about.name / about.id, lost)


class Csv:
    """One run's tables."""

    appends_only = False

    def __init__(self, folder: Path, lost: bool) -> None:
        self.folder, self.lost = folder, lost
        self.columns: list[str] = []  # of metrics
        self.steps = array("q")  # of each row
        self.file: IO[bytes] | None = None

    def take(self, found: Increment, history: History) -> None:
        names = dict.fromkeys(name for chunk in found.chunks for name in chunk.metrics if name not in FIXED)
        late = [name for name in names if name not in self.columns]
        if self.file is None or late or found.back_to is not None:
            keep = len(self.steps) if found.back_to is None else bisect_right(self.steps, found.back_to)
            old, self.columns = self.file, self.columns + late
            del self.steps[keep:]
            with replacing(self.folder / "history.csv") as file:
                file.write(_line([*FIXED, *self.columns]))
                if old is not None:
                    _copy(old, file, keep, b"," * len(late))
                self._append(file, found)
            self.file = file
            if old is not None:
                old.close()
        else:
            self._append(self.file, found)
            self.file.flush()

    def _append(self, file: IO[bytes], found: Increment) -> None:
        for chunk in found.chunks:
            file.writelines(_lines(chunk, self.columns))
            self.steps.extend(chunk.steps.tolist())

    def restart(self) -> None:
        self.file, self.columns, self.steps = None, [], array("q")

    def close(self, history: History, state: str) -> None:
        if self.file is not None:
            self.file.close()
        for name, frame in tables(history, lost=self.lost):
            with replacing(self.folder / f"{name}.csv") as file:
                frame.to_csv(file, index=False, na_rep="")
            file.close()


def _copy(old: IO[bytes], new: IO[bytes], rows: int, more: bytes) -> None:
    """The first ``rows`` rows, each with ``more`` at its end."""
    old.seek(0)
    old.readline()
    for _ in range(rows):
        new.write(old.readline().rstrip(b"\n") + more + b"\n")


def _lines(chunk: Chunk, columns: list[str]) -> list[bytes]:
    texts: dict[str, list[str]] = {}
    for name in columns:
        texts[name] = [""] * len(chunk.steps)
        if name in chunk.metrics:
            for row, value in zip(*(each.tolist() for each in chunk.metrics[name]), strict=True):
                texts[name][row] = repr(value)
    fixed = (chunk.steps.tolist(), chunk.tokens.tolist(), [chunk.attempt] * len(chunk.steps), chunk.times.tolist())
    rows = zip(*fixed, *(texts[name] for name in columns), strict=True)
    return [(",".join(map(str, row)) + "\n").encode() for row in rows]


def _line(cells: list[Any]) -> bytes:
    """The header; a metric's name may have anything in it."""
    import csv
    import io

    out = io.StringIO()
    # A line break in a name would make the header two lines for readers that go line by line, this one included.
    csv.writer(out, lineterminator="\n").writerow(str(cell).replace("\n", " ").replace("\r", " ") for cell in cells)
    return out.getvalue().encode("utf-8", "replace")
