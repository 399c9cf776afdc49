"""What the views with a heat map have in common: which rows and steps of it are seen, and what is under the mouse."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from monitoring.terminal.screen import DIM
from monitoring.terminal.view import Key, Opens, RunView
from monitoring.terminal.watched import Watched

NEWER = Key("+", "in", "The newer half of the steps that are seen; - shows more.")
OLDER = Key("-", "out")


class Mapped(RunView):
    """A map of rows over steps; two rows of text stand above it."""

    label = 8  # columns left of the map
    head = 2  # rows above it

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._part = 1.0  # of the steps
        self._first = 0
        self._page = 10
        self._pointed: tuple[int, int] | None = None

    def begin(self, steps: np.ndarray) -> int:
        """The first of the steps that are seen."""
        return int(len(steps) * (1 - self._part))

    def page(self, order: list[int], room: int) -> list[int]:
        """The rows that are seen."""
        self._page = max(1, room)
        self._first = max(0, min(self._first, len(order) - self._page))
        return order[self._first : self._first + self._page]

    def axis(self, steps: np.ndarray, cells: int) -> Text:
        low, high = f"{steps[0]:,}", f"{steps[-1]:,}"
        return Text(" " * self.label + low + high.rjust(cells - len(low)), DIM)

    def under(self, rows: int, steps: np.ndarray, cells: int) -> tuple[int, int] | None:
        """(row, place in the steps) of the cell under the mouse."""
        if (cell := self.cell(rows, cells)) is None:
            return None
        at = steps[0] + (steps[-1] - steps[0]) * cell[1] / max(1, cells)
        return cell[0], min(len(steps) - 1, int(np.searchsorted(steps, at)))

    def cell(self, rows: int, cells: int) -> tuple[int, int] | None:
        """(row, column) of the cell under the mouse."""
        if self._pointed is None:
            return None
        column, row = self._pointed[0] - self.label, self._pointed[1] - self.top - self.head
        return (row, column) if 0 <= column < cells and 0 <= row < rows else None

    def press(self, key: str) -> Opens | None:
        if key in ("+", "="):
            self._part = max(1 / 1024, self._part / 2)
        elif key == "-":
            self._part = min(1.0, self._part * 2)
        moves = {"up": -1, "down": 1, "pageup": -self._page, "pagedown": self._page, "home": -(1 << 30)}
        self._first = max(0, self._first + moves.get(key, 0))
        return None

    def hover(self, x: int, y: int) -> None:
        self._pointed = (x, y) if x >= 0 else None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._first = max(0, self._first + 3 * by)
