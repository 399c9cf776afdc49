"""How long each rank's steps took, or a part of them: a heat map in which a straggler is a dark row, and its name."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from monitoring.ranks import STEP, RankTimes, straggling
from monitoring.snapshot import Snapshot
from monitoring.terminal.heat import Scale, columns, heat
from monitoring.terminal.screen import DIM
from monitoring.terminal.view import Key, Opens, empty
from monitoring.terminal.views.mapped import NEWER, OLDER, Mapped
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import figure

SLOW = 1.1  # times the median from which on a rank is called slow
TAIL = 16  # columns right of the map
SCALE = Scale((0.95, 1.05, 1.2, 1.5), "·░▒▓█", ".:+%#", ("blue", "green", "yellow", "bright_red", "bold red"))
LABELS = ("below 0.95", "median", "over 1.05", "over 1.2", "over 1.5")
LATE = ("earlier", "median", "+0.05", "+0.2", "+0.5 of a step")


class Ranks(Mapped):
    title = "ranks"
    keys = (
        Key("p", "part", "Whole steps, or a part: what a rank does alone names who is waited for."),
        Key("o", "order", "The slowest first, or by rank."),
        Key("r", "against", "Against the median of all ranks at that step, or of the whole run."),
        NEWER,
        OLDER,
        Key("up", "up", "Ranks above, below; PgUp, PgDn.", shown=False),
    )
    label = 24

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._times: RankTimes | None = None
        self._chosen: str | None = None  # part of a step; None: nobody chose one
        self._slowest_first = True
        self._of_run = False

    def gather(self) -> None:
        super().gather()
        if (snapshot := self.watched.snapshot) is not None:
            self._times = self.watched.ranks(self._chosen or straggling(snapshot.findings) or STEP).read()

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        times = self._times
        if times is None or not times.seconds.size or np.isnan(times.seconds).all():
            return empty("no step times yet", height)
        begin = self.begin(times.steps)
        steps, seconds, late = times.steps[begin:], times.seconds[:, begin:], times.late(of_run=self._of_run)
        usual, recent = times.recent()
        order = list(range(len(times.ranks)))
        if self._slowest_first:
            order.sort(key=lambda row: -np.nan_to_num(recent[row]))
        rows = [_named(snapshot) or _verdict(times, recent), _legend(times.part, unicode)]
        shown = self.page(order, height - len(rows) - 2)
        cells = max(10, width - self.label - TAIL)
        low, high = float(steps[0]), float(steps[-1])
        drawn = heat(columns(steps, late[shown, begin:], cells, low, high), SCALE, unicode=unicode)
        for row, cell in zip(shown, drawn, strict=True):
            rows.append(_label(times, row) + cell + _tail(usual[row], recent[row]))
        hidden = len(order) - len(shown)
        foot = Text(f" {hidden} of {len(order)} ranks not seen" if hidden else f" {len(order)} ranks", DIM)
        if (cell := self.under(len(shown), steps, cells)) is not None:
            row, place = shown[cell[0]], cell[1]
            what = f" · rank {times.ranks[row]} at step {steps[place]:,}: {figure(float(seconds[row, place]))} s"
            foot.append(what, "bold")
        return [*rows, self.axis(steps, cells), foot]

    def press(self, key: str) -> Opens | None:
        if key == "p" and self._times is not None:
            parts = self.watched.parts
            self._chosen = parts[(parts.index(self._times.part) + 1) % len(parts)]
            self._times = self.watched.ranks(self._chosen).read()
        elif key == "o":
            self._slowest_first = not self._slowest_first
            self._first = 0
        elif key == "r":
            self._of_run = not self._of_run
        return super().press(key)


def _named(snapshot: Snapshot) -> Text | None:
    """Who is slow or gone by what a rank does alone: its steps take as long as everybody's, who wait for it."""
    found = [f for f in snapshot.findings if f.kind in ("dead_rank", "straggler") and not f.silenced]
    if not found:
        return None
    return Text.assemble(" ", (clean(found[0].headline), "bold red"), (f" · {clean(found[0].evidence)}", DIM))


def _verdict(times: RankTimes, recent: np.ndarray) -> Text:
    """Who is slow, and where."""
    if np.isnan(recent).all() or len(times.ranks) < 2:
        return Text(" one rank: nothing to compare it with", DIM)
    row = int(np.nanargmax(recent))
    where = f" on {clean(times.nodes[row])}" if times.nodes[row] else ""
    much = f"{recent[row]:.2f} of the median" if times.part == STEP else f"{recent[row] - 1:+.2f} of a step"
    text = f"rank {times.ranks[row]}{where}, {much}"
    if recent[row] < SLOW:
        return Text.assemble((" no rank stands out", "green"), (f"; the slowest is {text}", DIM))
    return Text.assemble((" slowest of late: ", "bold"), (text, "bold red"))


def _legend(part: str, unicode: bool) -> Text:
    if part == STEP:
        return Text(" of the median") + SCALE.legend(LABELS, unicode=unicode)
    return Text(f" {part}", "bold") + SCALE.legend(LATE, unicode=unicode)


def _label(times: RankTimes, row: int) -> Text:
    node = clean(times.nodes[row])[-14:]
    return Text.assemble((f" {times.ranks[row]:>5}  {node:<14}  ", DIM))


def _tail(seconds: float, ratio: float) -> Text:
    text = "" if np.isnan(seconds) else f" {seconds:7.3f} s {ratio:4.2f}"
    return Text(text, "bold red" if ratio >= SLOW else DIM)
