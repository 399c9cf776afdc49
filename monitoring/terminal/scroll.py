"""A place in rows that are more than fit."""

from __future__ import annotations

from rich.text import Text

from monitoring.terminal.screen import DIM


class Scroll:
    """The first row that is seen. It is brought into bounds when rows are drawn, so it may be moved freely."""

    def __init__(self) -> None:
        self.first = 0
        self._height = 1

    def by(self, rows: int) -> None:
        self.first = max(0, self.first + rows)

    def press(self, key: str) -> bool:
        """Take a key; False if it is none of these."""
        moves = {
            "up": -1,
            "down": 1,
            "pageup": -self._height,
            "pagedown": self._height,
            "home": -(1 << 30),
            "end": 1 << 30,
        }
        if key not in moves:
            return False
        self.by(moves[key])
        return True

    def part(self, rows: list[Text], height: int) -> list[Text]:
        """The rows that are seen; where some are not, the last says how many are below."""
        self._height = max(1, height - 2)
        self.first = min(self.first, max(0, len(rows) - height))
        found = rows[self.first : self.first + height]
        below = len(rows) - self.first - height
        if below > 0 and found:
            found = [*found[:-1], Text(f" ... {below + 1} more rows below", DIM)]
        return found
