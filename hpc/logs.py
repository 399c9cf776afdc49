"""The logs of a run as one stream: what its supervisor, srun and each rank printed, merged by time.

A line's time is the one it begins with, HH:MM:SS or YYYY-MM-DD HH:MM:SS, as the project's own lines do. A line without
one stays behind the line before it in its file, so that a traceback is not torn apart. Of each file one block is in
memory and none is held open, however many ranks and however long the logs.
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc import ledger
from hpc.exits import SRUN_LOG
from hpc.runs import Run
from monitoring.layout import rank_log

BLOCK = 1 << 14  # bytes read at a time
LONGEST = 1 << 18  # bytes after which a line without an end is taken as one

_STAMP = re.compile(rb"\s?(?:(\d{4})-(\d\d)-(\d\d)[T ])?(\d\d):(\d\d):(\d\d)\b")
_RANK = re.compile(r"rank-(\d+)\.log")


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    time: float  # unix; of a line without one that of the line before
    source: str  # "supervisor", "srun" or "rank 3"
    file: Path
    text: str


class Log:
    """A growing log that is read on from where it was left.

    Args:
        began: when it was begun, roughly: what a time of day without a date is reckoned from. Unix time.
    """

    def __init__(self, file: Path, source: str = "", began: float = 0.0) -> None:
        self.file = file
        self.source = source
        self.time = began
        self.offset = 0  # of the first byte that was not handed out

    def lines(self, *, rest: bool) -> Iterator[Line]:
        """Whole lines since the last look; with ``rest`` also one that was never ended, as of a killed rank."""
        latest = _written(self.file) + 3600  # a later one, as in "00:10:00 left", is no time at which it was printed
        for data in self._whole_lines(rest):
            self.offset += len(data)
            self.time = _time_of(data, self.time, latest)
            yield Line(self.time, self.source, self.file, data.decode("utf-8", "replace").rstrip("\n"))

    def _whole_lines(self, rest: bool) -> Iterator[bytes]:
        torn, position = b"", self.offset
        while data := _read(self.file, position):
            position += len(data)
            *lines, torn = (torn + data).split(b"\n")
            yield from (line + b"\n" for line in lines)
            if len(torn) > LONGEST:
                yield torn
                torn = b""
        if torn and rest:
            yield torn


def _read(file: Path, position: int) -> bytes:
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # not there yet
        return b""
    try:
        return os.pread(handle, BLOCK, position)
    finally:
        os.close(handle)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _time_of(line: bytes, before: float, latest: float) -> float:
    """The time that a line begins with, or that of the line before it. Times in a file do not go back."""
    match = _STAMP.match(line)
    if match is None:
        return before
    year, month, day, *clock = (None if part is None else int(part) for part in match.groups())
    now = time.localtime(before)
    date = (now.tm_year, now.tm_mon, now.tm_mday) if year is None else (year, month, day)
    try:
        found = time.mktime((*date, *clock, 0, 0, -1))  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return before
    # A little back is the clock, or a record that came late; much is the next day.
    if year is None and found < before - 3600:
        found = time.mktime((date[0], date[1], (date[2] or 0) + 1, *clock, 0, 0, -1))  # type: ignore[arg-type]
    return before if found > latest else max(found, before)


class Merged:
    """All logs of a run, or of one attempt, in the order of time."""

    def __init__(self, run: Run, attempt: int | None = None) -> None:
        self.run = run
        self.attempt = attempt
        self._logs: dict[Path, Log] = {}
        self._supervisor = Log(run.log, "supervisor")
        self._ahead: Line | None = None  # the supervisor's next line, of an attempt that is not reached yet

    def lines(self, *, rest: bool) -> Iterator[Line]:
        """New lines since the last look, as ``Log.lines``."""
        numbers = ledger.numbers(self.run)
        begins = {number: _began(self.run, number) for number in numbers}
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            if self.attempt not in (None, number):
                continue
            end = None if following is None else begins[following]
            # What the supervisor says before its first attempt belongs to that.
            begin = begins[number] if number != numbers[0] else 0.0
            supervisor = self._supervisors(begin, end, rest)
            ranks = [log.lines(rest=rest) for log in self._of_attempt(number, begins[number])]
            # Equal times: the supervisor first, then srun, then the ranks in order.
            yield from heapq.merge(supervisor, *ranks, key=lambda line: line.time)
        if not numbers and self.attempt is None:
            yield from self._supervisors(0.0, None, rest)

    def _supervisors(self, begin: float, end: float | None, rest: bool) -> Iterator[Line]:
        """The supervisor's new lines from ``begin`` up to ``end``, unix time."""
        new = self._supervisor.lines(rest=rest)
        while (line := self._ahead or next(new, None)) is not None:
            self._ahead = None
            if end is not None and line.time >= end:
                self._ahead = line
                return
            if line.time >= begin:
                yield line

    def _of_attempt(self, number: int, began: float) -> list[Log]:
        folder = ledger.folder(self.run, number)
        try:
            names = [entry.name for entry in os.scandir(folder)]
        except OSError:  # removed just now, or another user's
            return []
        ranks = sorted(int(match[1]) for name in names if (match := _RANK.fullmatch(name)))
        found = [(folder / SRUN_LOG, "srun"), *((rank_log(folder, rank), f"rank {rank}") for rank in ranks)]
        return [self._logs.setdefault(file, Log(file, source, began)) for file, source in found]


def _began(run: Run, number: int) -> float:
    """When an attempt began, to the second as logs say it."""
    record = ledger.Record.read(ledger.folder(run, number))
    if record is None or not record.began:
        try:
            return ledger.folder(run, number).stat().st_mtime // 1
        except OSError:
            return 0.0
    return record.began // 1
