"""All runs that are watched, a row each: sorted, filtered, opened, or marked to be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text

from monitoring.findings import Severity
from monitoring.terminal.screen import DIM, STATE_STYLES
from monitoring.terminal.source import Entry, Source
from monitoring.terminal.view import Key, Opens, View, empty
from monitoring.text import clean
from monitoring.words import count, duration, figure

LIVE = ("running", "completing", "pending", "queued", "requeued", "configuring", "submitting")


class Column(NamedTuple):
    """What stands in a column; runs of which it is not known come last, whichever way it is sorted."""

    title: str
    width: int
    text: Callable[[Entry], str]
    key: Callable[[Entry], Any]
    wide: int = 0  # columns of the screen from which it is there


SEVERITIES = {severity.value: -severity.rank for severity in Severity}


def _share(value: float | None) -> str:
    return "" if value is None else f"{math.floor(value * 1000) / 10:.1f}%"


COLUMNS = (
    Column("state", 10, lambda e: e.state, lambda e: (e.state not in LIVE, e.state)),
    Column("run", 0, lambda e: f"{e.name}/{e.id}", lambda e: (e.name, e.id)),
    Column("done", 6, lambda e: _share(e.share), lambda e: e.share),
    Column("loss", 9, lambda e: "" if e.loss is None else figure(e.loss), lambda e: e.loss),
    Column("tok/s", 6, lambda e: "" if not e.tokens_per_s else count(e.tokens_per_s), lambda e: e.tokens_per_s),
    Column("ETA", 9, lambda e: "" if e.eta_s is None else duration(e.eta_s), lambda e: e.eta_s),
    Column("finding", 8, lambda e: e.severity, lambda e: SEVERITIES.get(e.severity)),
    Column("goodput", 7, lambda e: "" if e.goodput is None else f"{e.goodput:.1%}", lambda e: e.goodput, 100),
    Column("step", 9, lambda e: "" if e.step is None else f"{e.step:,}", lambda e: e.step, 110),
    Column("try", 3, lambda e: "" if e.attempt is None else str(e.attempt), lambda e: e.attempt, 110),
    Column("last step", 9, lambda e: "" if e.age is None else duration(e.age), lambda e: e.age, 110),
    Column("cluster", 10, lambda e: e.cluster, lambda e: e.cluster, 130),
)
NEWEST = "newest"
LEFT = ("state", "run", "finding")  # columns of words


class Runs(View):
    title = "runs"
    keys = (
        Key("enter", "open", "Open the run; a double click does it too."),
        Key(
            "/", "filter", "Only runs with these words in name, id, state, reason, changes or findings.", asks="filter"
        ),
        Key("s", "sort", "By the next column; a click on a heading does it too."),
        Key("r", "reverse", "The other way round."),
        Key("space", "mark", "Mark runs to compare them."),
        Key("c", "compare", "The curves of the marked runs, or of all that are listed, at most 12."),
        Key("up", "up", "The run above, below; PgUp, PgDn, Home, End.", shown=False),
    )
    MOST = 12  # runs in one comparison

    def __init__(self, source: Source) -> None:
        self.source = source
        self._entries: tuple[Entry, ...] = ()
        self._read = False
        self._chosen: Path | None = None
        self._marked: set[Path] = set()
        self._words = ""
        self._sort = NEWEST
        self._reverse = False
        self._first = 0
        self._page = 10
        self._heads: list[tuple[int, int, str]] = []  # from column, to column, title
        self._top = 2

    def gather(self) -> None:
        self._entries = tuple(self.source.entries())
        self._read = True

    @property
    def shown(self) -> list[Entry]:
        """The rows in their order."""
        words = self._words.lower().split()
        found = [e for e in self._entries if all(word in e.words.lower() for word in words)]
        column = next((c for c in COLUMNS if c.title == self._sort), None)
        if column is None:
            return found[::-1] if self._reverse else found
        known = [e for e in found if _known(column.key(e))]
        known.sort(key=column.key, reverse=self._reverse)
        return known + [e for e in found if not _known(column.key(e))]

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        shown = self.shown
        by = "the newest first" if self._sort == NEWEST else f"by {self._sort}"
        title = Text.assemble((f" {len(shown)} of {len(self._entries)} runs", "bold"))
        title.append(f", {by}{', reversed' if self._reverse else ''}")
        if self._words:
            title.append(f" · filter: {clean(self._words)}", "yellow")
        if self._marked:
            title.append(f" · {len(self._marked)} marked", "cyan")
        title.append(f" · {clean(self.source.title)}", DIM)
        rows = [title]
        if self.source.trouble:
            rows.append(Text(f" {clean(self.source.trouble)}", "bold yellow"))
        self._top = len(rows) + 1
        columns = [column for column in COLUMNS if width >= column.wide]
        rows.append(self._head(columns, width))
        if not shown:
            said = "no run matches" if self._entries else "no runs yet; start one with: hpc submit"
            return rows + empty(said if self._read else "reading", height - len(rows))
        place = next((n for n, e in enumerate(shown) if e.folder == self._chosen), 0)
        self._chosen = shown[place].folder
        room = max(1, height - len(rows) - 1)
        self._page = room
        self._first = min(max(self._first, place - room + 1), place, max(0, len(shown) - room))
        rows += [self._row(e, columns, width) for e in shown[self._first : self._first + room]]
        rows += [Text() for _ in range(height - 1 - len(rows))]
        entry = shown[place]
        why = " · ".join(part for part in (entry.changes, entry.reason, entry.finding) if part)
        rows.append(Text(f" {clean(why)}", "yellow" if entry.reason or entry.finding else DIM))
        return rows

    def _widths(self, columns: list[Column], width: int) -> list[int]:
        rest = width - 2 - sum(c.width + 1 for c in columns if c.width)
        return [c.width or max(12, rest - 1) for c in columns]

    def _head(self, columns: list[Column], width: int) -> Text:
        row, self._heads = Text("  "), []
        for column, wide in zip(columns, self._widths(columns, width), strict=True):
            begin = row.cell_len
            text = column.title[:wide]
            row.append(
                (text.ljust(wide) if column.title in LEFT else text.rjust(wide)) + " ",
                f"bold {'reverse' if column.title == self._sort else DIM}",
            )
            self._heads.append((begin, row.cell_len, column.title))
        return row

    def _row(self, entry: Entry, columns: list[Column], width: int) -> Text:
        chosen = entry.folder == self._chosen
        row = Text.assemble(("*" if entry.folder in self._marked else " ", "bold cyan"))
        row.append(">" if chosen else " ", "bold")
        for column, wide in zip(columns, self._widths(columns, width), strict=True):
            said = clean(column.text(entry))
            text = Text(_fitted(said, wide) if column.title == "run" else said)
            text.truncate(wide, overflow="ellipsis", pad=False)
            if column.title in LEFT:
                text.pad_right(wide - text.cell_len)
            else:
                text.pad_left(wide - text.cell_len)
            text.stylize(_style(column.title, entry))
            row += text + Text(" ")
        if chosen:
            row.stylize("reverse")
        return row

    def press(self, key: str) -> Opens | None:
        shown = self.shown
        place = next((n for n, e in enumerate(shown) if e.folder == self._chosen), 0)
        moves = {
            "up": -1,
            "down": 1,
            "pageup": -self._page,
            "pagedown": self._page,
            "home": -len(shown),
            "end": len(shown),
        }
        if key in moves and shown:
            self._chosen = shown[max(0, min(len(shown) - 1, place + moves[key]))].folder
        elif key == "enter" and shown:
            return Opens((shown[place].folder,)) if shown[place].begun else None
        elif key == "s":
            titles = [NEWEST, *(column.title for column in COLUMNS)]
            self._sort = titles[(titles.index(self._sort) + 1) % len(titles)]
        elif key == "r":
            self._reverse = not self._reverse
        elif key == "space" and shown:
            self._marked ^= {shown[place].folder}
            return self.press("down")
        elif key == "c" and shown:
            found = [e.folder for e in self._entries if e.folder in self._marked] or [
                e.folder for e in shown if e.begun
            ]
            return Opens(tuple(found[: self.MOST]))
        return None

    def typed(self, key: str, text: str, *, done: bool) -> None:
        self._words = text

    def click(self, x: int, y: int, *, double: bool) -> Opens | None:
        shown, place = self.shown, self._first + y - self._top
        if y == self._top - 1:
            title = next((title for begin, end, title in self._heads if begin <= x < end), None)
            if title is not None:
                self._reverse = not self._reverse if title == self._sort else False
                self._sort = title
        elif y >= self._top and place < len(shown):
            self._chosen = shown[place].folder
            if double:
                return self.press("enter")
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        for _ in range(3):
            self.press("down" if by > 0 else "up")


def _fitted(name: str, width: int) -> str:
    """A name that is too long without a piece in its middle: runs of a sweep differ in their ends."""
    if len(name) <= width:
        return name
    tail = (2 * width) // 3
    return f"{name[: width - tail - 1]}…{name[-tail:]}"


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _style(title: str, entry: Entry) -> str:
    if title == "state":
        look = STATE_STYLES.get(entry.state, "yellow" if entry.state in LIVE else "")
        return {"black on green": "green", "white on red": "bold red"}.get(look, look)
    if title == "finding" and entry.severity:
        return {"critical": "bold red", "warning": "yellow"}.get(entry.severity, DIM)
    if title == "loss" and entry.loss is not None and not math.isfinite(entry.loss):
        return "bold red"
    return ""
