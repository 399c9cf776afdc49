"""What the GPUs, processes and nodes of the newest attempt do, by each rank's newest device record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.text import Text

from monitoring.latest import Latest
from monitoring.recorder import metric
from monitoring.snapshot import Snapshot
from monitoring.terminal.screen import DIM
from monitoring.terminal.scroll import Scroll
from monitoring.terminal.view import Key, Opens, RunView, empty
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import duration, figure

OLD = 150.0  # seconds after which a record's age is pointed out: one a minute is usual
HOT = 85.0  # degrees Celsius
NODE = 14  # columns


class Column(NamedTuple):
    """A column of a table, where any record has its field."""

    field: str
    title: str
    width: int
    text: Callable[[Mapping[str, float]], str]


def _plain(name: str, form: str, scale: float = 1.0) -> Callable[[Mapping[str, float]], str]:
    return lambda record: format(record[name] * scale, form)


def _of(name: str, total: str) -> Callable[[Mapping[str, float]], str]:
    """So much of so much."""
    return lambda record: f"{record[name]:.1f}" + (f"/{record[total]:.0f}" if total in record else "")


RANKS = (
    Column("gpu_util", "GPU %", 6, _plain("gpu_util", ".0f", 100)),
    Column("gpu_memory_gib", "GPU GiB", 9, _of("gpu_memory_gib", "gpu_memory_total_gib")),
    Column("power_w", "W", 5, _plain("power_w", ".0f")),
    Column("temperature_c", "C", 4, _plain("temperature_c", ".0f")),
    Column("clock_mhz", "MHz", 5, _plain("clock_mhz", ".0f")),
    Column("cpu_cores", "cores", 6, _plain("cpu_cores", ".1f")),
    Column("memory_gib", "GiB", 7, _plain("memory_gib", ".1f")),
)
NODES = (
    Column("host_cpu_util", "node's CPU %", 13, _plain("host_cpu_util", ".0f", 100)),
    Column("host_memory_gib", "node's GiB", 13, _of("host_memory_gib", "host_memory_total_gib")),
)
# Told in words where they are not 0, or not told at all.
WORDS = ("gpu_memory_total_gib", "host_memory_total_gib", "energy_j", "throttled", "ecc_errors", "xid")


class Devices(RunView):
    title = "devices"
    keys = (Key("up", "up", "Rows above, below; PgUp, PgDn, Home, End.", shown=False), Key("down", "down", shown=False))

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._scroll = Scroll()
        self._latest = Latest(watched.folder, ("device",))
        self._newest: dict[int, tuple[float, dict[str, float]]] = {}  # by rank: unix time, metrics

    def gather(self) -> None:
        super().gather()
        records = {rank: found["device"] for rank, found in self._latest.read().items() if "device" in found}
        self._newest = {rank: (record["t"], _metrics(record)) for rank, record in records.items()}

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        if not self._newest:
            return empty("none recorded: this run's ranks write no device records", height)
        records = {rank: metrics for rank, (_, metrics) in self._newest.items()}
        rows = [_totals(records), Text(), *self._ranks(records, snapshot.now, width)]
        on_nodes = {rank: each for rank, each in records.items() if any(c.field in each for c in NODES)}
        if on_nodes:
            rows += [Text(), *self._nodes(on_nodes)]
        return self._scroll.part(rows, height)

    def _ranks(self, records: Mapping[int, Mapping[str, float]], now: float, width: int) -> list[Text]:
        columns = [column for column in RANKS if any(column.field in each for each in records.values())]
        known = {column.field for column in (*RANKS, *NODES)} | set(WORDS)
        for name in sorted({name for each in records.values() for name in each if name not in known}):
            columns.append(Column(name, clean(name)[:9], 10, lambda record, name=name: figure(record[name])))
        rows = [_head("rank", columns) + Text("   age", "bold")]
        for rank in sorted(records):
            row = Text(f" {rank:>4}  {self._node(rank):<{NODE}}")
            for column in columns:
                hot = column.field == "temperature_c" and records[rank].get(column.field, 0.0) >= HOT
                row.append(_cell(column, records[rank]), "bold red" if hot else "")
            age = now - self._newest[rank][0]
            row.append(f"{duration(age):>6}", "yellow" if age > OLD else DIM)
            rows.append(row + _trouble(records[rank]))
        return rows

    def _nodes(self, records: Mapping[int, Mapping[str, float]]) -> list[Text]:
        rows = [_head("", NODES)]
        for rank in sorted(records):
            row = Text(f" {'':>4}  {self._node(rank):<{NODE}}")
            for column in NODES:
                row.append(_cell(column, records[rank]))
            rows.append(row)
        return rows

    def _node(self, rank: int) -> str:
        snapshot = self.watched.snapshot
        return clean(snapshot.attempts[-1].node(rank))[:NODE] if snapshot is not None and snapshot.attempts else ""

    def press(self, key: str) -> Opens | None:
        self._scroll.press(key)
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._scroll.by(3 * by)


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    values = {name: metric(value) for name, value in record.items() if name not in ("seq", "t", "kind")}
    return {name: value for name, value in values.items() if value is not None}


def _head(first: str, columns: Any) -> Text:
    row = Text.assemble((f" {first:>4}  {'node':<{NODE}}", "bold"))
    for column in columns:
        row.append(column.title.rjust(column.width), "bold")
    return row


def _cell(column: Column, record: Mapping[str, float]) -> str:
    return (column.text(record) if column.field in record else "").rjust(column.width)


def _trouble(record: Mapping[str, float]) -> Text:
    """What is wrong with a GPU, in words."""
    share = record.get("throttled", 0.0)
    said = ["throttled" if share == 1 else f"throttled {share:.0%} of the time"] if share else []
    said += [f"{record['ecc_errors']:.0f} ECC errors"] if record.get("ecc_errors") else []
    said += [f"Xid {record['xid']:.0f}"] if record.get("xid") else []
    return Text("  " + ", ".join(said), "bold red") if said else Text()


def _totals(records: Mapping[int, Mapping[str, float]]) -> Text:
    """All GPUs together."""
    use = [each["gpu_util"] for each in records.values() if "gpu_util" in each]
    power = [each["power_w"] for each in records.values() if "power_w" in each]
    heat = {each["temperature_c"]: rank for rank, each in records.items() if "temperature_c" in each}
    parts = [f"{len(records)} ranks"]
    parts += [f"GPUs {sum(use) / len(use):.0%} busy, the least {min(use):.0%}"] if use else []
    parts += [f"{sum(power) / 1e3:.2f} kW"] if power else []
    parts += [f"hottest {max(heat):.0f} C (rank {heat[max(heat)]})"] if heat else []
    return Text(" " + " · ".join(parts))
