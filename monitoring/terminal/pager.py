"""Any place of a log, however long, by reading only what is seen."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 16
LONGEST = 1 << 12  # bytes of a line that are shown
FAR = 1 << 22  # bytes in which the begin of a line is looked for, before its middle is taken for one
SEARCH_BLOCK = 1 << 20
SEARCH_S = 0.2  # seconds for which a search goes on before keys are taken again


@dataclass(frozen=True)
class Line:
    """A line of a log."""

    at: int  # its first byte
    text: str


class Pager:
    """A window onto a growing log; without a place of its own it follows the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.error = ""
        self._top: int | None = None  # the first byte that is seen; None: it follows

    @property
    def follows(self) -> bool:
        return self._top is None

    @property
    def share(self) -> float:
        """How far down the window begins, 0 to 1."""
        return 1.0 if self._top is None else self._top / max(1, self.size)

    @property
    def top(self) -> int:
        return self.size if self._top is None else self._top

    def refresh(self) -> None:
        """See how long the log is by now. A log that became shorter is another one."""
        try:
            size = self.path.stat().st_size
            self.error = ""
        except FileNotFoundError:
            size, self.error = 0, "not there yet"
        except OSError as error:
            size, self.error = 0, error.strerror or str(error)
        if size < self.size:
            self._top = None
        self.size = size

    def lines(self, height: int) -> list[Line]:
        """The lines of the window."""
        return self.before(self.size, height) if self._top is None else self.after(self._top, height)

    def begin(self) -> None:
        self._top = 0

    def follow(self) -> None:
        self._top = None

    def show(self, at: int, height: int) -> None:
        """Move the window so that the line that begins at ``at`` is in its upper part."""
        above = self.before(at, height // 4)
        self._top = above[0].at if above else at

    def move(self, by: int, height: int) -> None:
        """Move by lines; at the end it follows."""
        shown = self.lines(height)
        if not shown:
            return
        if by < 0:
            above = self.before(shown[0].at, -by)
            self._top = above[0].at if above else shown[0].at
        elif self._top is not None:
            below = self.after(self._top, by + height)
            self._top = below[by].at if len(below) == by + height else None

    def before(self, end: int, most: int) -> list[Line]:
        """The last lines that begin before ``end``."""
        data, begin = b"", end
        while begin > 0 and data.count(b"\n") <= most and end - begin < FAR:
            size = min(BLOCK, begin)
            data = self.read(begin - size, size) + data
            begin -= size
        found = _split(data, begin)
        if begin > 0:
            found = found[1:] if len(found) > 1 else found  # began in the middle of a line
        return found[-most:] if most > 0 else []

    def after(self, begin: int, most: int) -> list[Line]:
        """The first lines from ``begin`` on, which is the first byte of one."""
        data = b""
        while data.count(b"\n") < most and len(data) < FAR:
            block = self.read(begin + len(data), BLOCK)
            if not block:
                break
            data += block
        return _split(data, begin)[:most]

    def read(self, at: int, size: int) -> bytes:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.error = error.strerror or str(error)
            return b""
        try:
            return os.pread(handle, size, at)
        except OSError as error:
            self.error = error.strerror or str(error)
            return b""
        finally:
            os.close(handle)


def _split(data: bytes, at: int) -> list[Line]:
    found = []
    for line in data.split(b"\n"):
        found.append(Line(at, line[-LONGEST:].decode("utf-8", "replace")))
        at += len(line) + 1
    if found and not found[-1].text:
        found.pop()  # behind the last newline
    return found


def _pairs(text: str) -> list[tuple[bytes, bytes]]:
    """Other capitals than ASCII's, and their small letters where these are as long in a log."""
    both = [
        (each.upper().encode(), each.lower().encode()) for each in set(text) if each.isalpha() and not each.isascii()
    ]
    return [(capital, small) for capital, small in both if capital != small and len(capital) == len(small)]


class Search:
    """Looks for a text from where the window is, a little at each call of ``go_on``."""

    def __init__(self, pager: Pager, text: str) -> None:
        self.text = text
        self.said = ""
        self._pager = pager
        self._pairs = _pairs(text)
        self._word = self._folded(text.encode("utf-8", "replace"))
        self._forward = False  # the newest place first, as a log is read from its end
        self._found: int | None = None
        self._at: int | None = pager.top  # up to where it was searched; None: it found something, or gave up

    def again(self, *, forward: bool) -> None:
        """Go on from what was found."""
        self._forward = forward
        start = self._found if self._found is not None else self._pager.top
        self._at = start + 1 if forward else start

    def go_on(self) -> None:
        ends = time.monotonic() + SEARCH_S
        while self._at is not None:
            found = self._step(self._at)
            if found is not None:
                self._at, self._found = None, found
                line = self._line(found)
                self._pager.show(line, 20)
                self.said = f"{self.text!r} at byte {found:,}"
                return
            if self._at is not None and time.monotonic() > ends:
                self.said = f"searching {self.text!r}: {self._at / max(1, self._pager.size):.0%}"
                return

    def _step(self, at: int) -> int | None:
        """Search one block; None if nothing is in it."""
        overlap = len(self._word) - 1
        if self._forward:
            data = self._pager.read(at, SEARCH_BLOCK + overlap)
            place = self._folded(data).find(self._word)
            self._at = at + SEARCH_BLOCK if len(data) >= SEARCH_BLOCK else None
            if place < 0 and self._at is None:
                self.said = f"{self.text!r}: nothing below"
            return at + place if place >= 0 else None
        begin = max(0, at - SEARCH_BLOCK)
        data = self._pager.read(begin, at - begin + overlap)
        place = self._folded(data).rfind(self._word, 0, at - begin + overlap)
        self._at = begin if begin > 0 else None
        if place < 0 and self._at is None:
            self.said = f"{self.text!r}: nothing above"
        return begin + place if place >= 0 and begin + place < at else None

    def _folded(self, data: bytes) -> bytes:
        """The same number of bytes, without the difference between capitals and small letters."""
        data = data.lower()  # of ASCII
        for capital, small in self._pairs:
            data = data.replace(capital, small)
        return data

    def _line(self, at: int) -> int:
        """The first byte of the line in which ``at`` is."""
        found = self._pager.after(at, 1)
        above = self._pager.before(at + 1, 1)
        return above[-1].at if above else found[0].at if found else at
