"""Readers of growing files that take only what is new.

They poll by opening and reading on, and trust neither size nor modification time to say that nothing is new:
on parallel file systems both lag behind the data. A file that was truncated or replaced is read again from
its start, and the caller is told to forget what it had.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from operator import itemgetter, lt
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from monitoring import layout
from monitoring.recorder import LINE, PROTOCOL
from monitoring.recorder import metric as number_of
from monitoring.text import clean

_HEAD = 256  # bytes by which a file is known again
_BLOCK = 1 << 18  # bytes read at once: a block and its records stay in the cache; 1 MiB took 1.7x the time
_SAMPLES = 1 << 18  # bytes at the end of a rank's records that may all be of its devices: half a day of them
_FAR = 1 << 22  # bytes before its end in which a kind of record is looked for: a week of records of devices
_PROBE = 1 << 13  # bytes of a block by which is judged how many of its lines are wanted
_STEP_BACK = 1 << 16  # bytes that are read at once on the way back from the end
_LONGEST = 1 << 20  # bytes without a newline beyond which they are damage and not a line


@dataclass
class Increment:
    """A block of what a file gained since it was last read."""

    items: list[Any] = field(default_factory=list)
    again: bool = False  # the file is another one: forget all items before these


class _Growing:
    """The new bytes of a file, in blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # of the first byte that was not consumed
        self.error = ""  # why the file could not be read the last time; "" if it could, or is not there yet
        self._head = b""

    def resume(self, offset: int) -> None:
        """Go on behind the first ``offset`` bytes, of which the caller knows what they hold."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            self._head = file.read(_HEAD)
        self.offset = offset

    def _blocks(self, skip_to_last: int | None = None) -> Iterator[tuple[bool, bytes]]:
        """Yield (whether the file is another one than before, bytes from ``offset`` on).

        The consumer moves ``offset``; reading goes on behind each block as a whole.

        Args:
            skip_to_last: of a file read for the first time, begin at most so many bytes before its end.
        """
        self.error = ""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if self.offset:
                self.offset, self._head = 0, b""
                yield True, b""
            return
        except OSError as error:
            self.error = error.strerror or str(error)
            return
        try:
            size = os.fstat(handle).st_size
            head = os.pread(handle, _HEAD, 0)
            again = size < self.offset or not head.startswith(self._head)
            if again:
                self.offset = 0
            if skip_to_last is not None and self.offset == 0:
                self.offset = max(0, size - skip_to_last)
            self._head = head
            position = self.offset
            while block := os.pread(handle, _BLOCK, position):
                position += len(block)
                yield again, block
                again = False
            if again:
                yield True, b""
        except OSError as error:
            self.error = error.strerror or str(error)
        finally:
            os.close(handle)


class RecordTail(_Growing):
    """The new records of one file of the protocol in ``monitoring/recorder.py``.

    Args:
        begin: read a file that is already there only from so many bytes before its end; None: all of it.
        kinds: of records that are wanted, beside headers; None: all. Where few lines name one of them, the others
            are not parsed, nor counted as bad if they are damaged.
    """

    def __init__(self, path: Path, begin: int | None = None, kinds: Collection[str] | None = None) -> None:
        super().__init__(path)
        self.bad = 0  # lines and stretches that could not be read as records
        self.newer = 0  # protocol of a file that is too new to be read; 0: it is not
        self._begin = begin
        self._kinds = None if kinds is None else frozenset({"header", *kinds})
        self._wanted = None if self._kinds is None else _naming(self._kinds)
        self._seq = -1  # of the newest record
        self._header: dict[str, Any] | None = None  # of its writer

    def read(self) -> Iterator[Increment]:
        """The records of all whole lines since the last call, a block at a time.

        A torn last line is left for the next call. All increments are to be consumed before that.
        """
        rest = b""
        cut = self._begin is not None and self.offset == 0
        for again, block in self._blocks(self._begin):
            if again:
                rest, self.bad, self.newer = b"", 0, 0
                self._seq, self._header = -1, None
                cut = self._begin is not None
            data = rest + block
            end = data.rfind(b"\n") + 1
            whole, rest = data[:end], data[end:]
            begun = self.offset
            self.offset += end
            if cut and whole:
                if begun:  # begins in the middle of a line, and what protocol that is says the first one
                    whole = whole[whole.find(b"\n") + 1 :]
                    with contextlib.suppress(OSError), self.path.open("rb") as file:
                        self.newer = _newer(_first(file))
                cut = False
            if len(rest) > _LONGEST:  # no line is so long: one NUL stands for the damage
                self.offset += len(rest) - 1
                rest = b"\0"
            yield Increment(self._first_seen(self._records(whole)), again)

    def _first_seen(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without copies: of a write that failed a part may have landed, and then all of it is written again."""
        if not records:
            return records
        first, last = records[0]["seq"], records[-1]["seq"]
        if first > self._seq and (last - first == len(records) - 1 or _ascending(records)):
            self._seq = last
            self._header = records[0] if records[0]["kind"] == "header" else self._header
            return records
        found = []
        for record in records:
            if record["kind"] == "header" and record != self._header:  # a writer that begins anew, from 0
                self._seq, self._header = -1, record
            if record["seq"] > self._seq:
                self._seq = record["seq"]
                found.append(record)
        return found

    def _records(self, whole: bytes) -> list[dict[str, Any]]:
        """The records of whole lines."""
        if self._wanted is not None and _few(self._wanted, whole):
            whole = _lines_with(self._wanted, whole)
        if not whole:
            return []
        found = _at_once(whole)
        if found is None:
            found = [record for line in whole[:-1].split(b"\n") if (record := self._parsed(line)) is not None]
        if self._kinds is not None:
            found = [record for record in found if record["kind"] in self._kinds]
        headers = [place for place, record in enumerate(found) if record["kind"] == "header"]
        if headers == [0] and self._understood(found[0]):
            return found
        if self.newer or headers:
            found = [record for record in found if self._understood(record)]
        return found

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        if not line:
            return None
        if b"\0" in line:
            self.bad += 1
            line = line[line.rfind(b"\0") + 1 :]
            if not line:
                return None
        if (record := _record(line)) is None:
            self.bad += 1
        return record

    def _understood(self, record: dict[str, Any]) -> bool:
        """Whether the protocol of a record, by the header before it, is one that this reader knows."""
        if record["kind"] == "header":
            self.newer = _newer(record)
        return not self.newer


def _naming(kinds: Collection[str]) -> re.Pattern[bytes]:
    """What a line has that is a record of one of these kinds."""
    return re.compile(b'"kind":(?:%s)' % b"|".join(re.escape(orjson.dumps(kind)) for kind in sorted(kinds)))


def _few(wanted: re.Pattern[bytes], whole: bytes) -> bool:
    """Whether, by the first of whole lines, it pays to look for those that are wanted: to parse all is fast too."""
    part = min(len(whole), _PROBE)
    return 3 * len(wanted.findall(whole, 0, part)) <= whole.count(b"\n", 0, part)


def _lines_with(wanted: re.Pattern[bytes], whole: bytes) -> bytes:
    """Those of whole lines in which something is found."""
    found, end = [], 0
    for match in wanted.finditer(whole):
        if match.start() >= end:
            begin, end = whole.rfind(b"\n", 0, match.start()) + 1, whole.find(b"\n", match.end()) + 1
            found.append(whole[begin:end])
    return b"".join(found)


def _ascending(records: list[dict[str, Any]]) -> bool:
    seqs = [*map(itemgetter("seq"), records)]
    return all(map(lt, seqs, seqs[1:]))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if it is none."""
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    good = (
        isinstance(record, dict)
        and isinstance(record.get("seq"), int)
        and isinstance(record.get("t"), int | float)
        and isinstance(record.get("kind"), str)
    )
    return record if good else None


def _newer(header: dict[str, Any] | None) -> int:
    """The protocol that a header tells of, if it is too new to be read; else 0."""
    protocol = header.get("protocol") if header is not None and header["kind"] == "header" else None
    return protocol if isinstance(protocol, int) and protocol > PROTOCOL else 0


def _at_once(whole: bytes) -> list[dict[str, Any]] | None:
    """The records of whole lines in a fraction of the time that line by line takes; None if any may be damaged."""
    try:
        found = orjson.loads(b"[" + whole[:-1].replace(b"\n", b",") + b"]")
        # No tuple for each: allocations beside so many objects keep the garbage collector busy.
        good = (
            {type(record["kind"]) for record in found} == {str}
            and {type(record["seq"]) for record in found} == {int}
            and {type(record["t"]) for record in found} <= {int, float}
        )
    except (ValueError, KeyError, TypeError):
        return None
    return found if good and len(found) == whole.count(b"\n") else None


class TextTail(_Growing):
    """The last lines of a log, safe to print.

    Args:
        keep: lines kept.
        begin: bytes before the end at which a log that is already there is begun.
    """

    def __init__(self, path: Path, keep: int = 200, begin: int = 1 << 16) -> None:
        super().__init__(path)
        self._begin = begin
        self._lines: deque[str] = deque(maxlen=keep)
        self._torn = b""

    def read(self) -> tuple[str, ...]:
        """The last lines by now, the unfinished one included."""
        torn = self._torn
        for again, block in self._blocks(self._begin):
            if again:
                self._lines.clear()
                torn = b""
            self.offset += len(block)
            *lines, torn = (torn + block).split(b"\n")
            for line in lines[-(self._lines.maxlen or 0) :]:
                self._lines.append(_text(line))
            torn = torn[-(1 << 14) :]
        self._torn = torn
        if torn.strip():
            return (*self._lines, _text(torn))
        return tuple(self._lines)


def _text(line: bytes) -> str:
    return clean(line[-(1 << 14) :].decode("utf-8", "replace"))


def said_so_far(path: Path) -> int:
    """Bytes of a rank's log or records up to its last word; what follows are samples of its devices.

    0 where there is no file, or only hours of samples: whatever it is, it changes with a word alone.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if path.suffix != ".jsonl":
                return size
            file.seek(begin := max(0, size - _SAMPLES))
            tail = file.read(_SAMPLES)
    except OSError:
        return 0
    end = len(tail)
    while (line := tail.rfind(b"\n", 0, end - 1)) >= 0 and tail.find(b'"kind":"device"', line, end) >= 0:
        end = line + 1
    return begin + end if line >= 0 or not begin else 0


def events(attempt: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    """The events of these names that rank 0 recorded in an attempt's folder, in order; other lines are not parsed."""
    wanted = [b'"event":' + orjson.dumps(name) for name in names]
    try:
        with layout.rank_records(attempt, 0).open("rb") as file:
            for line in file:
                if not any(each in line for each in wanted):
                    continue
                with contextlib.suppress(ValueError):  # torn or damaged
                    record = orjson.loads(line[line.rfind(b"\0") + 1 :])
                    if isinstance(record, dict) and record.get("kind") == "event" and record.get("event") in names:
                        yield record
    except OSError:  # nothing is recorded yet
        return


def values(run: Path, metric: str) -> Iterator[float]:
    """Every value of a metric that rank 0 of a run recorded with a step, attempt by attempt."""
    key = orjson.dumps(metric) + b":"
    for number in layout.attempt_numbers(run):
        try:
            lines = layout.rank_records(layout.attempt_folder(run, number), 0).read_bytes().split(b"\n")
        except OSError:  # that attempt recorded nothing
            continue
        for line in lines:
            if key not in line:
                continue
            with contextlib.suppress(ValueError):  # torn or damaged
                record = orjson.loads(line[line.rfind(b"\0") + 1 :])
                found = record.get(metric) if isinstance(record, dict) and record.get("kind") == "step" else None
                if (value := number_of(found)) is not None:
                    yield value


def last_value(run: Path, metric: str) -> float | None:
    """The newest value of a metric that rank 0 of a run recorded with a step; None if there is none."""
    key = orjson.dumps(metric) + b":"
    for number in reversed(layout.attempt_numbers(run)):
        try:
            text = layout.rank_records(layout.attempt_folder(run, number), 0).read_bytes()
        except OSError:  # that attempt recorded nothing
            continue
        end = len(text)
        while (found := text.rfind(key, 0, end)) >= 0:
            begin = text.rfind(b"\n", 0, found) + 1
            with contextlib.suppress(ValueError):  # torn or damaged
                record = orjson.loads(text[begin : text.find(b"\n", found) % (len(text) + 1)])
                if isinstance(record, dict) and record.get("kind") == "step" and metric in record:
                    return number_of(record[metric])
            end = begin
    return None


def header(attempt: Path, rank: int) -> dict[str, Any] | None:
    """The newest header of a rank's records, which says who writes them; None if there is none."""
    found = None
    for increment in RecordTail(layout.rank_records(attempt, rank), kinds=()).read():
        found = next(reversed(increment.items), found)
    return found


def first_step(attempt: Path) -> dict[str, Any] | None:
    """The first ``step`` record of rank 0 in an attempt's folder; None if there is none."""
    for increment in RecordTail(layout.rank_records(attempt, 0)).read():
        for record in increment.items:
            if _is_step(record):
                return record
    return None


def last_record(attempt: Path) -> dict[str, Any] | None:
    """The newest ``step`` record of rank 0 in an attempt's folder; None if there is none."""
    path = layout.rank_records(attempt, 0)
    if last := _last_step_near_end(path):
        return last
    # Something went on recording without stepping.
    for found in RecordTail(path).read():
        for record in found.items:
            if _is_step(record):
                last = record
    return last


def recent_steps(attempt: Path, most: int = 50) -> list[dict[str, Any]]:
    """The newest ``step`` records of rank 0 in an attempt's folder, the newest first, of the last lines alone."""
    return list(itertools.islice(_steps_near_end(layout.rank_records(attempt, 0)), most))


def _last_step_near_end(path: Path) -> dict[str, Any] | None:
    """As ``last_record``, from the last lines alone: a list of a thousand runs asks for each."""
    return next(_steps_near_end(path), None)


def _steps_near_end(path: Path) -> Iterator[dict[str, Any]]:
    return filter(_is_step, newest(path, "step"))


def newest(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The records of a kind near the end of a file, the newest first; none of a file that is too new to be read.

    Other lines are not parsed, and no more is read than is asked for: behind the last step of a rank that hangs there
    may be hours of samples of its devices.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:  # nothing is recorded yet
        if _newer(_first(file)):
            return
        for line in _backwards(file, b'"kind":' + orjson.dumps(kind)):
            record = _record(line[line.rfind(b"\0") + 1 :])
            if record is not None and record["kind"] == kind:
                yield record


def _first(file: BinaryIO) -> dict[str, Any] | None:
    """The first record of a file; None if its first line is none."""
    return _record(file.readline(LINE))


def _backwards(file: BinaryIO, key: bytes) -> Iterator[bytes]:
    """The whole lines with ``key`` among the last bytes of a file, the last one first."""
    begin = os.fstat(file.fileno()).st_size
    far, after, ended = max(0, begin - _FAR), b"", False
    while begin > far:
        end, begin = begin, max(far, begin - _STEP_BACK)
        data = os.pread(file.fileno(), end - begin, begin) + after
        if not ended:  # what follows the last newline is torn
            data = data[: data.rfind(b"\n") + 1]
            ended = bool(data)
        first = data.find(b"\n") + 1 if begin else 0  # begins in the middle of a line
        after, at = data[:first], len(data)
        while (found := data.rfind(key, first, at)) >= 0:
            at = max(first, data.rfind(b"\n", 0, found) + 1)
            yield data[at : data.find(b"\n", found)]


def _is_step(record: dict[str, Any]) -> bool:
    """Whether a record is of a step and has what each must have."""
    return (
        record.get("kind") == "step"
        and type(record.get("step")) is int
        and type(record.get("tokens")) is int
        and isinstance(record.get("t"), int | float)
    )


def last_step(attempt: Path) -> int | None:
    """The newest step that rank 0 recorded in an attempt's folder; None if there is none."""
    record = last_record(attempt)
    return None if record is None else record["step"]


class LineTail(_Growing):
    """The new lines of a log, each state of a progress bar as a line of its own, without escape sequences."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._torn = b""

    def read(self, *, rest: bool = False) -> Iterator[str]:
        """The lines since the last call; with ``rest`` also one that was never ended, as nothing will follow it."""
        for again, block in self._blocks():
            self.offset += len(block)
            *lines, torn = re.split(rb"[\r\n]", (b"" if again else self._torn) + block)
            self._torn = torn[-(1 << 14) :]
            yield from (_text(line) for line in lines if line)
        if rest and self._torn:
            yield _text(self._torn)
            self._torn = b""
