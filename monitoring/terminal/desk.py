"""The thread in which the watch screen reads and draws, so that the one that takes keys never waits for a disk."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from rich.text import Text

from monitoring.terminal.view import Opens, View
from monitoring.text import clean

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """A drawn view."""

    view: View
    rows: list[Text]
    opens: Opens | None = None  # a person chose these runs in it
    asked: int = 0  # the last request that was taken in


@dataclass
class _Place:
    """What is seen, and how large it is."""

    view: View
    width: int
    height: int


class Desk:
    """Reads on and draws the view that is seen, about every ``every`` seconds and after each key.

    Args:
        show: takes each frame; called in the desk's thread.
        every: seconds between two looks at the files.
        unicode: whether the terminal has more than ASCII.
    """

    def __init__(self, show: Callable[[Frame], None], *, every: float, unicode: bool) -> None:
        self._show = show
        self._every = every
        self._unicode = unicode
        self._tasks: SimpleQueue[Callable[[], Opens | None] | None] = SimpleQueue()
        self._place: _Place | None = None
        self._due = 0.0
        self._trouble = ""  # what went wrong since the last frame
        self.asked = 0  # requests so far
        self.busy_since: float | None = None  # monotonic; None: it waits for work
        # A file system that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, daemon=True, name="desk")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._tasks.put(None)

    def see(self, view: View, width: int, height: int) -> None:
        """From now on draw ``view`` at this size."""

        def turn() -> None:
            if self._place is None or self._place.view is not view:
                self._due = 0.0
            self._place = _Place(view, width, height)

        self.do(turn)

    def do(self, call: Callable[[], Opens | None]) -> None:
        """Call a method of a view in the desk's thread, and draw what is seen then."""
        self.asked += 1
        self._tasks.put(call)

    def _run(self) -> None:
        taken = 0
        while True:
            self.busy_since = None
            try:
                task = self._tasks.get(timeout=max(0.0, self._due - time.monotonic()) if self._place else None)
                tasks = [task]
                while not self._tasks.empty():
                    tasks.append(self._tasks.get())
            except Empty:
                tasks = []
            if None in tasks:
                return
            self.busy_since = time.monotonic()
            self._trouble = ""
            opens = None
            for call in tasks:
                assert call is not None
                opens = self._safely(call) or opens
            taken += len(tasks)
            if self._place is not None:
                self._look(self._place, opens, taken)

    def _look(self, place: _Place, opens: Opens | None, taken: int) -> None:
        if (began := time.monotonic()) >= self._due:
            self._safely(place.view.gather)
            # What takes long is done less often, so that there is time for keys.
            self._due = time.monotonic() + max(self._every, 2 * (time.monotonic() - began))
        rows = self._safely(lambda: place.view.draw(place.width, place.height, unicode=self._unicode)) or []
        if self._trouble:
            rows = [*rows[: place.height - 1], Text(f" {self._trouble}", "bold yellow")]
        for row in rows:
            row.no_wrap = True
            row.truncate(place.width, overflow="ellipsis")
        self._show(Frame(place.view, rows[: place.height], opens, taken))

    def _safely(self, call: Callable[[], T]) -> T | None:
        """A mistake in one view, or of its files, must not take the others and the terminal with it."""
        try:
            return call()
        except OSError as error:
            self._trouble = clean(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            self._trouble = clean(f"this view failed: {type(error).__name__}: {error} ({place})")
        return None
