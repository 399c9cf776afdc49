"""How long each rank's steps took: a heat map in which a straggler is a dark row, and its name."""

from __future__ import annotations

import warnings

import numpy as np
from rich.text import Text

from monitoring.ranks import RankTimes
from monitoring.snapshot import Snapshot
from monitoring.terminal.heat import Scale, columns, heat
from monitoring.terminal.screen import DIM
from monitoring.terminal.view import Key, Opens, RunView, empty
from monitoring.terminal.watched import Watched
from monitoring.terminal.words import figure
from monitoring.text import clean

RECENT = 20  # recorded steps by which ranks are judged
SLOW = 1.1  # times the median from which on a rank is called slow
LABEL, TAIL = 24, 16  # columns left and right of the map
SCALE = Scale((0.95, 1.05, 1.2, 1.5), "·░▒▓█", ".:+%#", ("blue", "green", "yellow", "bright_red", "bold red"))
LABELS = ("below 0.95", "median", "over 1.05", "over 1.2", "over 1.5")


class Ranks(RunView):
    title = "ranks"
    keys = (
        Key("o", "order", "The slowest first, or by rank."),
        Key("r", "against", "Against the median of all ranks at that step, or of the whole run."),
        Key("+", "in", "The newer half of the steps that are seen; - shows more."),
        Key("-", "out"),
        Key("up", "up", "Ranks above, below; PgUp, PgDn.", shown=False),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._times: RankTimes | None = None
        self._slowest_first = True
        self._of_run = False
        self._part = 1.0  # of the steps
        self._first = 0
        self._page = 10
        self._pointed: tuple[int, int] | None = None

    def gather(self) -> None:
        super().gather()
        if self.watched.snapshot is not None:
            self._times = self.watched.ranks.read()

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        times = self._times
        if times is None or not times.step_s.size or np.isnan(times.step_s).all():
            return empty("no step times yet", height)
        begin = int(len(times.steps) * (1 - self._part))
        steps, step_s = times.steps[begin:], times.step_s[:, begin:]
        ratio = _ratio(step_s, of_run=self._of_run)
        recent = _median(_ratio(times.step_s[:, -RECENT:], of_run=False))
        order = list(range(len(times.ranks)))
        if self._slowest_first:
            order.sort(key=lambda row: -np.nan_to_num(recent[row]))
        rows = [_named(snapshot) or _verdict(times, recent)]
        rows.append(Text(" of the median") + SCALE.legend(LABELS, unicode=unicode))
        room = height - len(rows) - 2
        self._page = max(1, room)
        self._first = max(0, min(self._first, len(order) - room))
        shown = order[self._first : self._first + room]
        cells = max(10, width - LABEL - TAIL)
        low, high = float(steps[0]), float(steps[-1])
        drawn = heat(columns(steps, ratio[shown], cells, low, high), SCALE, unicode=unicode)
        seconds = _median(times.step_s[:, -RECENT:])
        for row, cell in zip(shown, drawn, strict=True):
            rows.append(_label(times, row) + cell + _tail(seconds[row], recent[row]))
        hidden = len(order) - len(shown)
        more = f"{hidden} of {len(order)} ranks not seen" if hidden else f"{len(order)} ranks"
        axis = f"{int(low):,}" + f"{int(high):,}".rjust(cells - len(f"{int(low):,}"))
        rows.append(Text(" " * LABEL + axis, DIM))
        rows.append(Text.assemble((f" {more}", DIM)) + self._told(times, shown, steps, step_s, cells))
        return rows

    def _told(self, times: RankTimes, shown: list[int], steps: np.ndarray, step_s: np.ndarray, cells: int) -> Text:
        """What is under the mouse."""
        if self._pointed is None:
            return Text()
        column, line = self._pointed[0] - LABEL, self._pointed[1] - self.top - 2
        if not (0 <= column < cells and 0 <= line < len(shown)):
            return Text()
        row = shown[line]
        at = steps[0] + (steps[-1] - steps[0]) * column / max(1, cells)
        place = min(len(steps) - 1, int(np.searchsorted(steps, at)))
        return Text(
            f" · rank {times.ranks[row]} at step {steps[place]:,}: {figure(float(step_s[row, place]))} s", "bold"
        )

    def press(self, key: str) -> Opens | None:
        if key == "o":
            self._slowest_first = not self._slowest_first
            self._first = 0
        elif key == "r":
            self._of_run = not self._of_run
        elif key in ("+", "="):
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


def _median(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a rank that recorded nothing
        return np.nanmedian(values, axis=1)


def _ratio(step_s: np.ndarray, *, of_run: bool) -> np.ndarray:
    """Each time over the median of all ranks at that step, or over that of the whole run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step that no rank recorded
        middle = np.nanmedian(step_s) if of_run else np.nanmedian(step_s, axis=0)
    return step_s / middle


def _named(snapshot: Snapshot) -> Text | None:
    """Who is slow or gone by what a rank does alone: its steps take as long as everybody's, who wait for it."""
    found = [f for f in snapshot.findings if f.kind in ("dead_rank", "straggler") and not f.silenced]
    if not found:
        return None
    where = f" on {clean(found[0].node)}" if found[0].node else ""
    return Text.assemble(" ", (clean(found[0].title) + where, "bold red"), (f" · {clean(found[0].evidence)}", DIM))


def _verdict(times: RankTimes, recent: np.ndarray) -> Text:
    """Who is slow, and where."""
    many = min(RECENT, len(times.steps))
    if np.isnan(recent).all() or len(times.ranks) < 2:
        return Text(" one rank: nothing to compare it with", DIM)
    row = int(np.nanargmax(recent))
    where = f" on {clean(times.nodes[row])}" if times.nodes[row] else ""
    text = f"rank {times.ranks[row]}{where}, {recent[row]:.2f} of the median"
    if recent[row] < SLOW:
        return Text.assemble((" no rank stands out", "green"), (f"; the slowest is {text}", DIM))
    return Text.assemble((" slowest: ", "bold"), (text, "bold red"), (f" over the last {many} records", DIM))


def _label(times: RankTimes, row: int) -> Text:
    node = clean(times.nodes[row])[-14:]
    return Text.assemble((f" {times.ranks[row]:>5}  {node:<14}  ", DIM))


def _tail(seconds: float, ratio: float) -> Text:
    text = "" if np.isnan(seconds) else f" {seconds:7.3f} s {ratio:4.2f}"
    return Text(text, "bold red" if ratio >= SLOW else DIM)
