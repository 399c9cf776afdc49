"""The keys of a view, in sentences."""

from __future__ import annotations

import textwrap

from rich.text import Text

from monitoring.terminal.scroll import Scroll
from monitoring.terminal.view import Opens, View

EVERYWHERE = (
    ("q", "Leave. Runs go on."),
    ("?", "This help; any key leaves it."),
    ("Esc", "Back to where you came from."),
    ("Ctrl-Z", "Leave for the shell; fg comes back."),
)
TABS = (("Tab, 1-8", "The next view of the run, or that one; Shift-Tab goes back."),)


class Help(View):
    title = "help"

    def __init__(self, view: View, tabs: bool) -> None:
        self._view = view
        self._tabs = tabs
        self._scroll = Scroll()

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        rows = [Text(" Keys", "bold")]
        for each in (*EVERYWHERE, *(TABS if self._tabs else ())):
            rows += _rows(*each, width)
        rows += [Text(), Text(f" {self._view.title}", "bold")]
        for key in self._view.keys:
            if key.more or key.shown:
                rows += _rows(key.label, key.more or key.does.capitalize() + ".", width)
        rows += [
            Text(),
            *_rows("mouse", "Tabs, keys at the foot, rows and headings can be clicked; the wheel moves.", width),
        ]
        return self._scroll.part(rows, height)

    def press(self, key: str) -> Opens | None:
        self._scroll.press(key)
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._scroll.by(3 * by)


def _rows(key: str, text: str, width: int) -> list[Text]:
    first, *more = textwrap.wrap(text, max(10, width - 13)) or [""]
    return [Text.assemble((f"   {key:<10}", "bold cyan"), first), *(Text(" " * 13 + part) for part in more)]
