"""What each expert of a layer was sent over the steps: a heat map, with the router's entropy and what was dropped."""

from __future__ import annotations

import math

import numpy as np
from rich.text import Text

from monitoring.experts import ExpertLoads
from monitoring.snapshot import Snapshot
from monitoring.terminal.heat import Scale, columns, heat
from monitoring.terminal.plot import Line, plot, window
from monitoring.terminal.screen import DIM, rule
from monitoring.terminal.view import Key, Opens, empty
from monitoring.terminal.views.mapped import NEWER, OLDER, Mapped
from monitoring.terminal.watched import Watched
from monitoring.words import count, plural

TAIL = 8  # columns right of the map
SCALE = Scale(
    (0.0, 0.5, 0.8, 1.25, 2.0), "×·░▒▓█", "x.:+%#", ("bold red", "blue", "cyan", "green", "yellow", "bold bright_red")
)
LABELS = ("nothing", "<0.5", "<0.8", "fair", ">1.25", ">2")
PLOT = 4  # rows of a curve below the map, its title included


class Experts(Mapped):
    title = "experts"
    keys = (
        Key("[", "layer", "The layer before, after."),
        Key("]", "layer", shown=False),
        Key("o", "order", "By number, or what is sent most first."),
        NEWER,
        OLDER,
        Key("up", "up", "Experts above, below; PgUp, PgDn.", shown=False),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._layers: list[int] = []
        self._layer: int | None = None
        self._loads: ExpertLoads | None = None
        self._by_load = False

    def gather(self) -> None:
        super().gather()
        if self.watched.snapshot is None:
            return
        self._layers = self.watched.experts.layers()
        if self._layer not in self._layers:
            self._layer = self._layers[0] if self._layers else None
        self._loads = None if self._layer is None else self.watched.experts.read(self._layer)

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        loads = self._loads
        if loads is None or not loads.share.size:
            return empty("no loads of experts recorded: the model has none, or has not stepped yet", height)
        begin = self.begin(loads.steps)
        steps, share = loads.steps[begin:], loads.share[begin:].T
        last = np.nan_to_num(share[:, -1])
        order = list(range(len(share)))
        if self._by_load:
            order.sort(key=lambda expert: -last[expert])
        rows = [self._title(loads, last), Text(" of the fair share") + SCALE.legend(LABELS, unicode=unicode)]
        extras = [(name, values[begin:]) for name, values in (("entropy", loads.entropy), ("dropped", loads.dropped))]
        extras = [(name, values) for name, values in extras if np.isfinite(values).any() and np.nanmax(values) > 0]
        below = len(extras) * PLOT if height >= 12 + len(extras) * PLOT else 0
        shown = self.page(order, max(2, height - len(rows) - 2 - below))
        cells = max(10, width - self.label - TAIL)
        low, high = float(steps[0]), float(steps[-1])
        drawn = heat(columns(steps, share[shown], cells, low, high), SCALE, unicode=unicode)
        for expert, cell in zip(shown, drawn, strict=True):
            strange = last[expert] <= 0 or last[expert] > 2
            rows.append(
                Text.assemble((f" {expert:>5}  ", DIM))
                + cell
                + Text(f" {last[expert]:5.2f}", "bold red" if strange else DIM)
            )
        rows.append(self.axis(steps, cells))
        if below:
            for name, values in extras:
                rows += self._curve(name, steps, values, cells + self.label, unicode)
        rows.append(self._foot(len(order) - len(shown), len(order), shown, steps, share, cells))
        return rows

    def _title(self, loads: ExpertLoads, last: np.ndarray) -> Text:
        place = self._layers.index(self._layer) + 1 if self._layer in self._layers else 0
        row = Text.assemble((f" layer {self._layer}", "bold"), (f" ({place} of {len(self._layers)})", DIM))
        row.append(f" at step {int(loads.steps[-1]):,}: ")
        if dead := int((last <= 0).sum()):
            row.append(f"{plural(dead, 'expert')} without a token", "bold red")
            row.append(" · ")
        row.append(f"max {last.max():.2f}, min {last.min():.2f}")
        if math.isfinite(loads.entropy[-1]):
            row.append(f" · entropy {loads.entropy[-1]:.2f} of {math.log(len(last)):.2f}")
        if math.isfinite(loads.dropped[-1]):
            row.append(f" · {count(loads.dropped[-1])} dropped", "yellow" if loads.dropped[-1] else "")
        return row

    def _curve(self, name: str, steps: np.ndarray, values: np.ndarray, width: int, unicode: bool) -> list[Text]:
        line = Line(steps, values, values, style="cyan")
        seen = window([line], float(steps[0]), float(steps[-1]))
        return [rule(name, width), *plot([line], seen, width, PLOT - 1, unicode=unicode)]

    def _foot(self, hidden: int, many: int, shown: list[int], steps: np.ndarray, share: np.ndarray, cells: int) -> Text:
        row = Text.assemble((f" {hidden} of {many} experts not seen" if hidden else f" {many} experts", DIM))
        if (cell := self.under(len(shown), steps, cells)) is not None:
            expert, place = shown[cell[0]], cell[1]
            value = share[expert, place]
            row.append(f" · expert {expert} at step {steps[place]:,}: {value:.3f} of the fair share", "bold")
        return row

    def press(self, key: str) -> Opens | None:
        if key in ("[", "]") and self._layers:
            place = self._layers.index(self._layer) if self._layer in self._layers else 0
            self._layer = self._layers[(place + (1 if key == "]" else -1)) % len(self._layers)]
            self._loads = self.watched.experts.read(self._layer)
        elif key == "o":
            self._by_load = not self._by_load
        return super().press(key)
