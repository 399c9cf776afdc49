"""Parts of a log, by place in bytes: its end, what comes before a place, what contains a text. Never all of it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monitoring import layout
from monitoring.web.encode import text

PART = 1 << 16  # bytes of a log that are sent at once
LONGEST = 1 << 13  # bytes of a line that are shown
BLOCK = 1 << 20  # bytes read at once when searching
SEARCHED = 64 << 20  # bytes looked through for one answer
MATCHES = 200

_CHANGED = re.compile(r"[\t\x1b\x80-\x9f]")  # tabs become spaces, and escape sequences nothing
_RANK = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Line:
    at: int  # where it begins, in bytes
    text: str


@dataclass(frozen=True)
class Part:
    """Lines of a log, in order, and where they were looked for."""

    lines: tuple[Line, ...]
    begin: int  # bytes
    end: int
    size: int  # of the log


def path(run: Path, source: str) -> Path | None:
    """The log called ``source``: "job", or attempt and rank as in "2/0"; None if there is none of such a name."""
    if source == "job":
        return run / layout.JOB_LOG
    if match := _RANK.fullmatch(source):
        return layout.rank_log(layout.attempt_folder(run, int(match[1])), int(match[2]))
    return None


def before(file: Path, end: int | None = None) -> Part:
    """The last lines before a place, or of the whole log.

    Raises:
        OSError: if the log cannot be read; one that is not there yet is empty.
    """
    with _Log(file) as log:
        end = log.size if end is None else max(0, min(end, log.size))
        begin = max(0, end - PART)
        data = log.read(begin, end)
        # It begins inside a line; one that fills all of it, as a progress bar does, is shown from there.
        if begin and (rest := data.partition(b"\n")[2]):
            begin, data = end - len(rest), rest
        return Part(_lines(begin, data), begin, end, log.size)


def after(file: Path, begin: int) -> Part:
    """The whole lines behind a place. Of a log that grew by more than is shown, its end; of one that shrank, it anew.

    Raises:
        OSError: as ``before``.
    """
    with _Log(file) as log:
        if not 0 <= begin <= log.size or log.size - begin > PART:
            return before(file)
        data = log.read(begin, log.size)
        data = data[: data.rfind(b"\n") + 1]
        return Part(_lines(begin, data), begin, begin + len(data), log.size)


def search(file: Path, wanted: str, end: int | None = None) -> Part:
    """The last lines before a place that contain a text, in whatever case; ``begin`` tells how far back was looked.

    Raises:
        OSError: as ``before``.
    """
    needle, found = wanted.casefold(), list[Line]()
    overlap = max(0, len(wanted.encode("utf-8", "replace")) - 1)
    with _Log(file) as log:
        end = log.size if end is None else max(0, min(end, log.size))
        begin, rest = end, b""
        while begin > 0 and len(found) < MATCHES and end - begin < SEARCHED:
            low = max(0, begin - BLOCK)
            data = log.read(low, begin) + rest
            cut = (data.find(b"\n") + 1 or len(data)) if low else 0  # what is before it began in an earlier block
            if cut > 2 * BLOCK:  # such a line is looked at in parts
                found = [*_matches(low, data, needle), *found]
                cut = overlap
            else:
                found = [*_matches(low + cut, data[cut:], needle), *found]
            begin, rest = low, data[:cut]
        begin += len(rest)
        if len(found) > MATCHES:
            found = found[-MATCHES:]
            begin = found[0].at
        return Part(tuple(found), begin, end, log.size)


def _lines(begin: int, data: bytes) -> tuple[Line, ...]:
    found = []
    for line in data.split(b"\n"):
        if line:
            found.append(Line(begin, _shown(line)))
        begin += len(line) + 1
    return tuple(found)


def _shown(line: bytes) -> str:
    return text(line[-LONGEST:].decode("utf-8", "replace"))


def _matches(begin: int, data: bytes, needle: str) -> Iterator[Line]:
    """The lines whose text has it, also where that is longer than what is shown of it."""
    for line in data.split(b"\n"):
        whole = line.decode("utf-8", "replace")
        # To make a text safe takes long: it is done where it can change whether it matches.
        if (needle in whole.casefold() or _CHANGED.search(whole)) and needle in text(whole).casefold() and line:
            yield Line(begin, _shown(line))
        begin += len(line) + 1


class _Log:
    """A regular file that is open for reading: not a pipe, on which one would wait, and no link to elsewhere."""

    def __init__(self, file: Path) -> None:
        self.handle: int | None = None
        self.size = 0
        try:
            self.handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        status = os.fstat(self.handle)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else 0

    def read(self, begin: int, end: int) -> bytes:
        return b"" if self.handle is None or end <= begin else os.pread(self.handle, end - begin, begin)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            os.close(self.handle)
