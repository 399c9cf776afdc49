"""What GPUs, processes and nodes do: a table of each rank's newest record, or a heat map of one metric over time."""

from __future__ import annotations

import math

import numpy as np
from rich.text import Text

from monitoring.device_history import METRICS, PEAKS, DeviceTimes
from monitoring.latest import Latest
from monitoring.snapshot import Snapshot
from monitoring.terminal.heat import Scale, columns, heat
from monitoring.terminal.screen import DIM
from monitoring.terminal.scroll import Scroll
from monitoring.terminal.view import Key, Opens, empty
from monitoring.terminal.views.device_table import NODE, metrics_of, table
from monitoring.terminal.views.mapped import Mapped
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import plural

TAIL = 16  # columns right of the map
CHARS, PLAIN = "·░▒▓█", ".:+%#"
MORE = ("blue", "cyan", "green", "yellow", "bold bright_white")  # from little to much, of which neither is bad
WORSE = ("blue", "green", "yellow", "bright_red", "bold red")
SHARES = (0.2, 0.4, 0.6, 0.8)
FIXED = {  # bounds that mean the same in every run; those of other metrics follow from what was recorded
    **{"gpu_util": (SHARES, MORE), "host_cpu_util": (SHARES, MORE)},
    **{"throttled": ((0.0, 0.1, 0.5, 0.9), WORSE), "temperature_c": ((50.0, 65.0, 75.0, 85.0), WORSE)},
}
LEAST = 0.2  # of the highest value: less than that between the lowest and it is no difference to look at
HOURS = 3 * 3600.0  # seconds from which on an axis is of hours


class Devices(Mapped):
    title = "devices"
    keys = (
        Key("p", "over time", "The next metric by rank over the time of the run; after the last the newest records."),
        Key("+", "in", "The newer half of the time that is seen; - shows more."),
        Key("-", "out"),
        Key("up", "up", "Rows above, below; PgUp, PgDn, Home, End.", shown=False),
        Key("down", "down", shown=False),
    )
    label = 24

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._scroll = Scroll()
        self._latest = Latest(watched.folder, ("device",))
        self._newest: dict[int, tuple[float, dict[str, float]]] = {}
        self._times: DeviceTimes | None = None  # of the chosen metric; None: the table of the newest records

    def gather(self) -> None:
        super().gather()
        if self._times is not None:
            self._times = self.watched.devices.read(self._times.metric)
            return
        records = {rank: found["device"] for rank, found in self._latest.read().items() if "device" in found}
        self._newest = {rank: (record["t"], metrics_of(record)) for rank, record in records.items()}

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        if self._times is not None:
            return self._map(self._times, width, height, unicode=unicode)
        if not self._newest:
            return empty("none recorded: this run's ranks write no device records", height)
        return self._scroll.part(table(self._newest, self._node, snapshot.now), height)

    def _map(self, times: DeviceTimes, width: int, height: int, *, unicode: bool) -> list[Text]:
        if not len(times.times):
            return empty("the device records are gone", height)
        begin = self.begin(times.times)
        seen, values = times.times[begin:], times.values[:, begin:]
        scale, labels = scaled(times.metric, values)
        legend = Text(f" {_kind(times)} {METRICS[times.metric][0]}", "bold") + scale.legend(labels, unicode=unicode)
        rows = [_totals(times), legend]
        shown = self.page(times.told(), height - len(rows) - 2)
        cells = max(10, width - self.label - TAIL)
        low, high = float(seen[0]), float(seen[-1]) + times.width
        drawn = columns(seen, values[shown], cells, low, high, mean=times.metric not in PEAKS)
        for row, cell in zip(shown, heat(drawn, scale, unicode=unicode), strict=True):
            rows.append(_label(times, row) + cell + _tail(times, row))
        every = len(times.told())
        hidden = f"{every - len(shown)} of {every} ranks not seen" if len(shown) < every else plural(every, "rank")
        foot = Text(f" {hidden}", DIM)
        if (pointed := self.cell(len(shown), cells)) is not None:
            row, column = pointed
            at = since(low + (high - low) * column / cells - times.began, high - times.began)
            foot.append(f" · rank {times.ranks[shown[row]]} at {at}: {_said(times, drawn[row, column])}", "bold")
        return [*rows, self._time_axis(times, low, high, cells), foot]

    def _time_axis(self, times: DeviceTimes, low: float, high: float, cells: int) -> Text:
        begin, end = (since(each - times.began, high - times.began) for each in (low, high))
        middle = "since the first attempt began" if cells > 60 else ""
        axis = begin + middle.center(cells - len(begin) - len(end)) + end
        return Text(" " * self.label + axis + "newest".rjust(8) + _kind(times).rjust(8), DIM)

    def _node(self, rank: int) -> str:
        snapshot = self.watched.snapshot
        return clean(snapshot.attempts[-1].node(rank))[:NODE] if snapshot is not None and snapshot.attempts else ""

    def press(self, key: str) -> Opens | None:
        if key == "p":
            self._choose()
        elif self._times is None:
            self._scroll.press(key)
        else:
            super().press(key)
        return None

    def _choose(self) -> None:
        """The metric after the one that is seen, of those of which there is anything."""
        if self.watched.snapshot is None:
            return
        devices, old = self.watched.devices, None if self._times is None else self._times.metric
        if old is None:
            devices.read(next(iter(METRICS)))
        names = devices.metrics()
        place = names.index(old) + 1 if old in names else 0
        self._times = devices.read(names[place]) if place < len(names) else None
        self._first = 0
        self.gather()

    def scroll(self, x: int, y: int, by: int) -> None:
        if self._times is None:
            self._scroll.by(3 * by)
        else:
            super().scroll(x, y, by)


def scaled(metric: str, values: np.ndarray) -> tuple[Scale, tuple[str, ...]]:
    """The scale of a map and what its levels are called."""
    known = values[np.isfinite(values)]
    if metric in FIXED:
        bounds, styles = FIXED[metric]
    else:
        high = float(known.max()) if len(known) else 1.0
        low = min(float(known.min()) if len(known) else 0.0, high - LEAST * abs(high))
        bounds, styles = tuple(low + (high - low) * share for share in SHARES), MORE
    unit = METRICS[metric][1]
    first, *more, last = (f"{100 * each:.0f}" if unit == "%" else f"{each:.4g}" for each in bounds)
    below = f"below {first}" if bounds[0] > 0 else first
    return Scale(bounds, CHARS, PLAIN, styles), (below, f"over {first}", *more, f"{last} {unit}".rstrip())


def since(seconds: float, longest: float) -> str:
    """A moment of an axis that ends ``longest`` seconds after its origin."""
    return f"{seconds / 3600:.1f} h" if longest >= HOURS else f"{seconds / 60:.0f} min"


def _totals(times: DeviceTimes) -> Text:
    """All ranks together, and who stands out."""
    rows = [row for row in times.told() if not math.isnan(times.average[row])]
    if not rows:
        return Text(" nothing recorded", DIM)
    low, high = min(rows, key=lambda row: times.average[row]), max(rows, key=lambda row: times.peak[row])
    said = [f"mean {_said(times, float(np.mean(times.average[rows])))}"]
    said += [f"rank {times.ranks[low]} least, {_said(times, times.average[low])}"] if len(rows) > 1 else []
    said += [f"highest {_said(times, times.peak[high])}, rank {times.ranks[high]}"]
    return Text(" " + " · ".join(said))


def _kind(times: DeviceTimes) -> str:
    """What a cell of the map is of its time."""
    return "highest" if times.metric in PEAKS else "mean"


def _said(times: DeviceTimes, value: float) -> str:
    """A value with its unit."""
    if math.isnan(value):
        return "nothing recorded"
    return f"{_short(times, value)} {METRICS[times.metric][1]}".rstrip()


def _short(times: DeviceTimes, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:.0f}" if METRICS[times.metric][1] == "%" else f"{value:.4g}"


def _label(times: DeviceTimes, row: int) -> Text:
    node = clean(times.nodes[row])[-14:]
    return Text(f" {times.ranks[row]:>5}  {node:<14}  ", DIM)


def _tail(times: DeviceTimes, row: int) -> Text:
    whole = times.peak[row] if times.metric in PEAKS else times.average[row]
    return Text(f"{_short(times, times.newest[row]):>8}{_short(times, whole):>8}", DIM)
