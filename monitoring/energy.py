"""Energy of a run's GPUs, from what their ranks recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from monitoring import layout

LONGEST = 300.0  # seconds between two records beyond which nothing is said of the time between


def kwh(samples: Iterable[Sequence[Mapping[str, Any]]]) -> float | None:
    """Kilowatt-hours of all ranks together; None where none told of any power.

    By the driver's counter where two records of a rank have it and it grew; else by power times time: that of a record
    is the mean of the time before it.

    Args:
        samples: of each rank its device records, in order.
    """
    joules, known = 0.0, False
    for rank in samples:
        for one, two in pairwise(rank):
            seconds = two["t"] - one["t"]
            if not 0 < seconds <= LONGEST:
                continue
            counted = _number(two, "energy_j") - _number(one, "energy_j")
            power = _number(two, "power_w")
            if counted > 0:
                joules, known = joules + counted, True
            elif power == power:
                joules, known = joules + power * seconds, True
    return joules / 3.6e6 if known else None


def of_run(run: Path) -> float | None:
    """Kilowatt-hours of all attempts of the run in a folder; None where nothing was recorded of any power."""
    found = []
    for number in layout.attempt_numbers(run):
        attempt = layout.attempt_folder(run, number)
        for rank in layout.recorded_ranks(attempt):
            found.append(list(_device_records(layout.rank_records(attempt, rank))))
    return kwh(found)


def _device_records(path: Path) -> Iterator[dict[str, Any]]:
    """Only these lines are parsed, of files that may have millions of others."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file:
            if b'"kind":"device"' not in line:
                continue
            with contextlib.suppress(ValueError):  # torn or damaged
                record = orjson.loads(line[line.rfind(b"\0") + 1 :])
                if isinstance(record, dict) and isinstance(record.get("t"), int | float):
                    yield record


def co2_kg(kilowatt_hours: float, grams_per_kwh: float) -> float:
    """Kilograms of CO2 for what the grid gives off for each kilowatt-hour."""
    return kilowatt_hours * grams_per_kwh / 1e3


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else float("nan")
