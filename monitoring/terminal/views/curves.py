"""Curves of a run, or of several beside each other: chosen metrics over steps, tokens or hours, to zoom into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from monitoring.bins import Envelope
from monitoring.terminal import canvas
from monitoring.terminal.plot import Line, plot, window
from monitoring.terminal.screen import DIM, LABEL, rule
from monitoring.terminal.view import Key, Opens, View, empty, heading
from monitoring.terminal.viewport import Viewport
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import figure, plural

SMOOTHINGS = (0.0, 0.6, 0.9, 0.98)
STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red", "bright_cyan", "bright_yellow")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LIST = 26  # columns of the list of metrics
WIDE = 100  # columns from which it is always there
LEAST = 5  # rows of a plot, its title included


@dataclass(frozen=True)
class _Look:
    """How one run is drawn."""

    watched: Watched
    style: str
    mark: str


class Curves(View):
    title = "curves"

    def __init__(self, runs: Sequence[Watched]) -> None:
        self.runs = list(runs)
        self.keys = (
            Key("space", "show/hide", "Show or hide the metric that is marked in the list; Enter: that one alone."),
            Key("enter", "only", shown=False),
            Key("m", "metrics", "The list of metrics. Up and down move in it.", shown=False),
            Key("up", "up", shown=False),
            Key("down", "down", shown=False),
            Key("x", "axis", "Over steps, tokens or hours since the first step."),
            Key("s", "smooth", "A moving average; the values themselves stay behind it."),
            Key("l", "log", "A logarithmic scale."),
            Key("left", "cursor", "Move the cursor, at which values are told; the mouse does it too.", shown=False),
            Key("right", "cursor", shown=False),
            Key("+", "in", "Zoom in at the cursor; the mouse wheel does it too."),
            Key("-", "out"),
            Key("<", "pan", "Earlier, later."),
            Key(">", "pan", shown=False),
            Key("0", "all", "The whole run, without a cursor."),
            *([Key("g", "group", "Colour runs by a value of their configuration.")] if len(runs) > 1 else []),
        )
        self._chosen: list[str] = []
        self._marked = 0
        self._listing = False
        self._smoothing = SMOOTHINGS[0]
        self._log = False
        self._port = Viewport()
        self._group: str | None = None
        self._list_top = 0

    # -- reading ---------------------------------------------------------------------------------------------------

    def gather(self) -> None:
        for run in self.runs:
            run.refresh()

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for run in self._readable for name in run.curves.names()))

    @property
    def _readable(self) -> list[Watched]:
        return [run for run in self.runs if run.snapshot is not None]

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        looks = self._looks()
        rows = heading(self.runs[0], width) if len(self.runs) == 1 else self._legend(looks, width)
        names = self._names
        if not names:
            return rows + empty("no step yet", height - len(rows))
        self._chosen = [name for name in self._chosen if name in names] or [_first(names)]
        self._marked = min(self._marked, len(names) - 1)
        self._measure(looks)
        rows.append(self._settings(width))
        room = height - len(rows)
        side = LIST if (self._listing or width >= WIDE) and width >= LIST + LABEL + 20 else 0
        self._port.cells = width - side - LABEL
        plots = self._plots(looks, width - side, room, unicode)
        if side:
            self._list_top = len(rows)
            plots = _beside(plots, self._list(names, room, unicode), width - side)
        return rows + plots

    def _looks(self) -> list[_Look]:
        runs = self._readable
        if len(self.runs) == 1:
            return [_Look(run, STYLES[0], "") for run in runs]
        if self._group is None:
            return [
                _Look(run, STYLES[n % len(STYLES)], LETTERS[n % len(LETTERS)])
                for n, run in enumerate(self.runs)
                if run in runs
            ]
        values = [_value(run, self._group) for run in runs]
        order = {value: n for n, value in enumerate(dict.fromkeys(values))}
        return [
            _Look(run, STYLES[order[v] % len(STYLES)], LETTERS[order[v] % len(LETTERS)])
            for run, v in zip(runs, values, strict=True)
        ]

    def _legend(self, looks: list[_Look], width: int) -> list[Text]:
        """Which letter and colour is which run, or which value that they are grouped by."""
        by = f", by {clean(self._group)}" if self._group else ""
        row = Text.assemble((f" {plural(len(self.runs), 'run')}{by}", "bold"))
        rows = []
        said: set[str] = set()
        for look in looks:
            text = look.watched.name if self._group is None else _value(look.watched, self._group)
            if look.mark in said and self._group is not None:
                continue
            said.add(look.mark)
            part = Text(f"   {look.mark} {clean(text)}", look.style)
            if row.cell_len + part.cell_len > width and len(rows) < 3:
                rows, row = [*rows, row], Text()
            row += part
        troubled = [Text(f" {run.name}: {run.trouble}", "bold yellow") for run in self.runs if run.trouble]
        return [*rows, row, *troubled[:2]]

    def _settings(self, width: int) -> Text:
        (low, high), axis = self._port.seen, self._port.axis
        parts = [f"over {axis}", f"{_place(low, axis)} to {_place(high, axis)}"]
        parts += [f"smoothing {self._smoothing}"] if self._smoothing else []
        parts += ["log"] if self._log else []
        parts += ["zoomed, 0: all"] if self._port.zoomed else []
        return Text(" " + " · ".join(parts), DIM)

    def _plots(self, looks: list[_Look], width: int, room: int, unicode: bool) -> list[Text]:
        shown = self._chosen[: max(1, (room - 2) // LEAST)]
        hidden = len(self._chosen) - len(shown)
        each, more = divmod(max(0, room - 2 - bool(hidden)), len(shown))
        rows: list[Text] = []
        for number, name in enumerate(shown):
            rows += self._plot(looks, name, width, each + (number < more), unicode)
        low, high = self._port.seen
        marks: dict[int, str] = {}
        if len(looks) == 1 and self._port.axis == "step" and looks[0].watched.snapshot is not None:
            attempts = looks[0].watched.snapshot.attempts[1:]
            marks = {a.resumed_from: str(a.number) for a in attempts if a.resumed_from is not None}
        rows.append(Text(" " * (LABEL - 1) + "└" + canvas.axis(low, high, width - LABEL, marks), DIM))
        labels = canvas.x_labels(low, high, width - LABEL, say=lambda x: _place(x, self._port.axis))
        rows.append(Text(" " * LABEL + labels, DIM))
        if hidden:
            rows.append(Text(f" {hidden} more chosen: the screen is too low for them", "yellow"))
        return rows

    def _plot(self, looks: list[_Look], name: str, width: int, height: int, unicode: bool) -> list[Text]:
        lines: list[Line] = []
        front: list[tuple[_Look, Envelope]] = []
        low, high = self._port.seen
        most = 2 * (width - LABEL)
        for look in looks:
            curves = look.watched.curves
            lines += [
                _line(ghost.curve, look.style if len(looks) > 1 else "red", dotted=True)
                for ghost in curves.ghosts(name, self._port.axis, low, high, most)
            ]
            raw = curves.view(name, self._port.axis, low, high, most)
            if self._smoothing and len(looks) == 1:
                lines.append(_line(raw, "bright_black"))
            smooth = curves.view(name, self._port.axis, low, high, most, self._smoothing) if self._smoothing else raw
            front.append((look, smooth))
        lines += [_line(found, look.style, mark=look.mark) for look, found in front if len(found)]
        seen = window(lines, low, high, log=self._log)
        rows = [rule(clean(name), width)]
        if self._port.cursor is not None:
            rows = [self._values(name, front, width)]
        if height > 1:
            rows += plot(lines, seen, width, height - 1, log=self._log, cursor=self._port.cursor, unicode=unicode)
        return rows

    def _values(self, name: str, front: list[tuple[_Look, Envelope]], width: int) -> Text:
        """The values at the cursor, as the title of a plot."""
        assert self._port.cursor is not None
        row = Text.assemble(
            ("─ ", DIM), (clean(name), "bold"), (f" at {_place(self._port.cursor, self._port.axis)}", DIM)
        )
        for look, found in front:
            if not len(found):
                continue
            place = max(0, int(np.searchsorted(found.x, self._port.cursor, "right")) - 1)
            low, high = float(found.low[place]), float(found.high[place])
            text = figure(low) if low == high or math.isnan(low) else f"{figure(low)} to {figure(high)}"
            if found.nan[place]:
                text = "not finite" if math.isnan(low) else f"{text}, some not finite"
            row.append(f"  {look.mark} {text}".replace("   ", "  "), f"bold {look.style}")
        row.append(" " + "─" * max(0, width - row.cell_len - 1), DIM)
        return row

    def _measure(self, looks: list[_Look]) -> None:
        """From where to where the chosen metrics reach."""
        ends: list[float] = []
        for look in looks:
            for name in self._chosen:
                curves = look.watched.curves
                for side in (-math.inf, math.inf):  # of which the point next to it is seen
                    found = [curves.view(name, self._port.axis, side, side, 1)]
                    found += [ghost.curve for ghost in curves.ghosts(name, self._port.axis, side, side, 1)]
                    ends += [float(each.x[0]) for each in found if len(each)]
        self._port.extent = (min(ends, default=0.0), max(ends, default=1.0))

    def _list(self, names: Sequence[str], height: int, unicode: bool) -> list[Text]:
        first = max(0, min(self._marked - height // 2, len(names) - height))
        self._first = first
        rows = []
        for number, name in enumerate(names[first : first + height], first):
            row = Text(" > " if number == self._marked else "   ")
            row.append("[x] " if name in self._chosen else "[ ] ", "" if name in self._chosen else DIM)
            row.append(clean(name), "bold" if number == self._marked else "")
            rows.append(row)
        return rows

    _first = 0

    # -- choosing --------------------------------------------------------------------------------------------------

    def press(self, key: str) -> Opens | None:
        names = self._names
        if key in ("up", "down") and names:
            self._marked = (self._marked + (1 if key == "down" else -1)) % len(names)
            self._listing = True
        elif key == "m":
            self._listing = not self._listing
        elif key in ("space", "enter") and names:
            self._toggle(names[min(self._marked, len(names) - 1)], alone=key == "enter")
        elif key == "x":
            self._port.next_axis()
        elif key == "s":
            self._smoothing = SMOOTHINGS[(SMOOTHINGS.index(self._smoothing) + 1) % len(SMOOTHINGS)]
        elif key == "l":
            self._log = not self._log
        elif key in ("left", "right"):
            self._port.move_cursor(1 if key == "right" else -1)
        elif key in ("+", "=", "-"):
            self._port.zoom(2.0 if key == "-" else 0.5)
        elif key in ("<", ">"):
            self._port.pan(0.25 if key == ">" else -0.25)
        elif key == "0":
            self._port.all()
        elif key == "g":
            self._next_group()
        return None

    def _toggle(self, name: str, *, alone: bool) -> None:
        if alone:
            self._chosen = [name]
        elif name in self._chosen:
            self._chosen.remove(name)
        else:
            self._chosen.append(name)

    def _next_group(self) -> None:
        """The next value of the configuration in which the runs differ; after the last none."""
        flats = [_flat(run.config) for run in self._readable]
        keys = sorted(set().union(*flats)) if flats else []
        differing = [key for key in keys if len({str(flat.get(key)) for flat in flats}) > 1]
        options = [None, *differing]
        place = options.index(self._group) if self._group in options else 0
        self._group = options[(place + 1) % len(options)]

    def click(self, x: int, y: int, *, double: bool) -> Opens | None:
        names = self._names
        if x >= LABEL + self._port.cells:
            place = self._first + y - self._list_top
            if 0 <= place < len(names):
                self._marked = place
                self._toggle(names[place], alone=False)
        else:
            self.hover(x, y)
        return None

    def hover(self, x: int, y: int) -> None:
        self._port.point(x - LABEL)

    def scroll(self, x: int, y: int, by: int) -> None:
        if x >= LABEL + self._port.cells:
            self.press("down" if by > 0 else "up")
        else:
            self.hover(x, y)
            self._port.zoom(1.5 if by > 0 else 1 / 1.5)


def _first(names: Sequence[str]) -> str:
    return "loss" if "loss" in names else names[0]


def _line(found: Envelope, style: str, *, dotted: bool = False, mark: str = "") -> Line:
    return Line(found.x, found.low, found.high, found.x[found.nan], style, dotted, mark)


def _place(x: float, axis: str) -> str:
    if axis == "hours":
        return f"{x:.2f} h" if x < 1000 else f"{x:,.0f} h"
    return f"{x:,.0f}" if x < 1e6 else canvas.count(x)


def _value(run: Watched, key: str) -> str:
    return f"{_flat(run.config).get(key)}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as values by path."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= _flat(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def _beside(left: list[Text], right: list[Text], width: int) -> list[Text]:
    rows = []
    for number, row in enumerate(left):
        row = row.copy()
        row.truncate(width, overflow="ellipsis", pad=True)
        rows.append(row + (right[number] if number < len(right) else Text()))
    return rows
