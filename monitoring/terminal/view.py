"""What a view of the watch screen is: it reads, takes keys and the mouse, and draws itself as rows of text.

All its methods are called by one thread (``monitoring/terminal/desk.py``), so a view needs no locks, and waiting for a
slow file system stops nothing but the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from monitoring.snapshot import Snapshot
from monitoring.terminal.screen import DIM, header
from monitoring.terminal.watched import Watched
from monitoring.words import duration


@dataclass(frozen=True)
class Key:
    """A key that a view takes."""

    key: str  # a character, or a name such as ``up``
    does: str  # in a word or two
    more: str = ""  # in a sentence, for the help
    shown: bool = True  # in the row at the foot of the screen
    asks: str = ""  # a text is to be typed: its label

    @property
    def label(self) -> str:
        return _LABELS.get(self.key, self.key)


_LABELS = {
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "space": "space",
    "enter": "Enter",
    "escape": "Esc",
    "tab": "Tab",
}


@dataclass(frozen=True)
class Opens:
    """What a view asks for when a person chose runs in it: one opens as itself, several as a comparison."""

    folders: tuple[Path, ...]


class View:
    """One tab. What it keeps between two drawings is what a person chose, and what it read."""

    title = ""
    keys: Sequence[Key] = ()

    def gather(self) -> None:
        """Read what is new. Called about once a second while the view is seen."""

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """At most ``height`` rows of at most ``width`` cells."""
        raise NotImplementedError

    def press(self, key: str) -> Opens | None:
        """A key of ``keys``."""

    def typed(self, key: str, text: str, *, done: bool) -> None:
        """What stands in the line that ``key`` asked for; ``done`` once it was entered."""

    def click(self, x: int, y: int, *, double: bool) -> Opens | None:
        """The mouse on a cell."""

    def hover(self, x: int, y: int) -> None:
        """The mouse over a cell; -1, -1 when it left."""

    def scroll(self, x: int, y: int, by: int) -> None:
        """The wheel over a cell; ``by`` is -1 upwards."""


class RunView(View):
    """A view of one run; a row at its top says which, and in which state."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def gather(self) -> None:
        self.watched.refresh()

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        rows = heading(self.watched, width)
        snapshot = self.watched.snapshot
        if snapshot is not None and height > len(rows):
            rows += self.body(snapshot, width, height - len(rows), unicode=unicode)
        return rows

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        raise NotImplementedError

    @property
    def top(self) -> int:
        """Rows above the body."""
        return len(heading(self.watched, 80))


def heading(watched: Watched, width: int) -> list[Text]:
    """Which run, in which state; and why what is seen may be old."""
    rows = [] if watched.snapshot is None else header(watched.snapshot, width)[:1]
    if watched.trouble:
        age = f"; what is seen is {duration(watched.age)} old" if watched.snapshot is not None else ""
        rows.append(Text(f" {watched.trouble}{age}", "bold yellow"))
    return rows


def empty(text: str, height: int) -> list[Text]:
    """Why there is nothing to see."""
    return [Text() for _ in range(max(0, height // 3))] + [Text(f"  {text}", DIM)]
