"""A table of what the GPUs, processes and nodes of an attempt do, by each rank's newest device record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.text import Text

from monitoring.recorder import metric
from monitoring.terminal.screen import DIM
from monitoring.text import clean
from monitoring.words import duration, figure

OLD = 150.0  # seconds after which a record's age is pointed out: one a minute is usual
HOT = 85.0  # degrees Celsius
NODE = 14  # columns


Newest = Mapping[int, tuple[float, Mapping[str, float]]]  # by rank: unix seconds, metrics


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


def table(newest: Newest, node: Callable[[int], str], now: float) -> list[Text]:
    """All GPUs together, each rank, and each node.

    Args:
        newest: of each rank.
        node: where a rank runs.
        now: unix seconds, for the age of what is told.
    """
    records = {rank: metrics for rank, (_, metrics) in newest.items()}
    rows = [_totals(records), Text(), *_ranks(newest, node, now)]
    on_nodes = {rank: each for rank, each in records.items() if any(c.field in each for c in NODES)}
    if on_nodes:
        rows += [Text(), *_nodes(on_nodes, node)]
    return rows


def _ranks(newest: Newest, node: Callable[[int], str], now: float) -> list[Text]:
    records = {rank: metrics for rank, (_, metrics) in newest.items()}
    columns = [column for column in RANKS if any(column.field in each for each in records.values())]
    known = {column.field for column in (*RANKS, *NODES)} | set(WORDS)
    for name in sorted({name for each in records.values() for name in each if name not in known}):
        columns.append(Column(name, clean(name)[:9], 10, lambda record, name=name: figure(record[name])))
    rows = [_head("rank", columns) + Text("   age", "bold")]
    for rank in sorted(records):
        row = Text(f" {rank:>4}  {node(rank):<{NODE}}")
        for column in columns:
            hot = column.field == "temperature_c" and records[rank].get(column.field, 0.0) >= HOT
            row.append(_cell(column, records[rank]), "bold red" if hot else "")
        age = now - newest[rank][0]
        row.append(f"{duration(age):>6}", "yellow" if age > OLD else DIM)
        rows.append(row + _trouble(records[rank]))
    return rows


def _nodes(records: Mapping[int, Mapping[str, float]], node: Callable[[int], str]) -> list[Text]:
    rows = [_head("", NODES)]
    for rank in sorted(records):
        row = Text(f" {'':>4}  {node(rank):<{NODE}}")
        for column in NODES:
            row.append(_cell(column, records[rank]))
        rows.append(row)
    return rows


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a device record."""
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
