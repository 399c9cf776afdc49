"""The run on one screen."""

from __future__ import annotations

from rich.text import Text

from monitoring.terminal.screen import screen
from monitoring.terminal.view import RunView, heading


class Overview(RunView):
    title = "overview"

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        snapshot = self.watched.snapshot
        if snapshot is None or self.watched.trouble:
            rows = heading(self.watched, width)[-1:]
            height -= len(rows)
        else:
            rows = []
        return rows + (screen(snapshot, width, height, unicode=unicode) if snapshot is not None else [])
