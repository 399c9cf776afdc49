"""CSV with a column for the step and one for each metric, rows as sparse as they like: Lightning's CSVLogger, other
trackers' exports, our own. A step that goes back begins a new attempt, as does a new value in a column ``attempt``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from monitoring.fields import LATEST
from monitoring.importing import Begin, End, Item, Step, Tally, Unreadable, files_of, name_of, stamp
from monitoring.patterns import number

_FIELD = 1 << 20  # characters of a field beyond which a row is damaged
_WORDS = ("", "null", "none", "na", "n/a")  # of a value that is missing
_MOST_STEPS = 1 << 62


def read(paths: list[Path], tally: Tally, to: str) -> Iterator[Item]:
    """The attempts in CSV files; of folders in their ``metrics.csv``, or where there is none in every ``*.csv``."""
    files = files_of(paths, ["metrics.csv"]) or files_of(paths, ["*.csv"])
    if not files:
        raise Unreadable(f"no CSV in {', '.join(map(str, paths))}. Name the file itself")
    found, at = False, 0.0
    for file in files:
        begun = False
        for item in Rows(file, tally, at).read():
            begun = True
            at = max(at, item.t)
            yield item
        if not begun:
            tally.without_steps.append(file.name)
        found = found or begun
    if not found:
        raise Unreadable(f"no row with a step in {', '.join(file.name for file in files[:5])}")


class Rows:
    """One file. Without a column for the time all steps have that of the file's last change.

    Args:
        at: unix seconds at which the attempt before ended.
    """

    def __init__(self, path: Path, tally: Tally, at: float) -> None:
        self.path, self.tally, self.at = path, tally, at
        self.step: int | None = None
        self.tokens: int | None = None
        self.attempt: float | None = None
        self.t = 0.0

    def read(self) -> Iterator[Item]:
        csv.field_size_limit(_FIELD)
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = Lines(file)
            rows = csv.reader(lines)
            names = [name_of(cell) for cell in next(rows, [])]
            if "step" not in names:
                shown = ", ".join(names[:8]) or "nothing"
                raise Unreadable(
                    f"{self.path}: no column for the step. Its first line names: {shown}. "
                    "Expected one of step, iteration, global_step, iter"
                )
            self.t = max(self.at, self.path.stat().st_mtime)
            if "t" not in names:
                self.tally.clock = "the files' last change: nothing tells when each step was made"
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    break
                except csv.Error as error:
                    self.tally.bad(f"{self.path.name} line {rows.line_num}: {error}")
                    continue
                if row:
                    yield from self._take(names, row, rows.line_num, torn=lines.torn)
        if self.step is not None:
            yield End(self.t)

    def _take(self, names: Sequence[str], row: Sequence[str], line: int, *, torn: bool) -> Iterator[Item]:
        given: dict[str, float] = {}
        bad = len(row) != len(names) or torn
        for name, cell in zip(names, row, strict=False) if not bad else ():
            if cell.strip().lower() in _WORDS:
                continue
            value = number(cell)
            if value is None and name == "t":
                value = stamp(cell)
            if value is None and name in ("step", "tokens"):
                bad = True
            if value is not None:
                given.setdefault(name, value)
        step = _count(given.pop("step", None), self.step)
        if bad or step is None:
            self.tally.bad(f"{self.path.name} line {line}: {','.join(row)[:80]}")
            return
        t, attempt = _moment(given.pop("t", None)), given.pop("attempt", self.attempt)
        self.tokens = _count(given.pop("tokens", None), self.tokens)
        if self.step is not None and (step < self.step or attempt != self.attempt):
            yield End(self.t)
            self.step = None
        if t is not None:
            self.t = t
        elif "t" in names:
            self.tally.clock = "recorded, but not of every row: others have that of the row before, or of the file"
        if self.step is None:
            yield Begin(self.t, self.path.name)
        self.step, self.attempt = step, attempt
        if given:
            yield Step(step, self.t, given, self.tokens)


class Lines:
    """The lines of a file, without NULs; ``torn`` once the last one came without its end."""

    def __init__(self, file: Iterator[str]) -> None:
        self.file = file
        self.torn = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.torn = not line.endswith(("\n", "\r"))
        return line.replace("\0", "\ufffd")


def _moment(value: float | None) -> float | None:
    """Unix seconds, of a time in these or in their thousandths, millionths or billionths, as browsers and Java say."""
    if value is None or not (math.isfinite(value) and 0 <= value < LATEST * 1e9):
        return None
    while value >= LATEST:
        value /= 1000
    return value


def _count(value: float | None, default: int | None) -> int | None:
    if value is None:
        return default
    return int(value) if 0 <= value < _MOST_STEPS else None
