"""Energy of a run's GPUs, from what their ranks recorded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from monitoring import layout
from monitoring.columns import Columns
from monitoring.ranks import DeviceFile, every_rank

METRICS = ("power_w", "energy_j")
LONGEST = 300.0  # seconds between two records beyond which their power says nothing of the time between


def kwh(ranks: Iterable[Columns]) -> float | None:
    """Kilowatt-hours of all ranks together; None where none told of any power.

    By the driver's counter where two records of a rank have it and it grew; else by power times time: that of a record
    is the mean of the time before it.

    Args:
        ranks: of each its device records in an attempt, in order.
    """
    joules, known = 0.0, False
    for rank in ranks:
        seconds = np.diff(np.array(rank.times))
        counted, power = np.diff(rank.column("energy_j")), rank.column("power_w")[1:]
        with np.errstate(invalid="ignore"):
            known_power = (seconds > 0) & (seconds <= LONGEST)
            found = np.where(counted > 0, counted, np.where(known_power, power * seconds, np.nan))
            found = found[np.isfinite(found)]
        joules, known = joules + float(found.sum()), known or bool(len(found))
    return joules / 3.6e6 if known else None


def of_run(run: Path) -> float | None:
    """Kilowatt-hours of all attempts of the run in a folder; None where nothing was recorded of any power."""
    attempts = [layout.attempt_folder(run, number) for number in layout.attempt_numbers(run)]
    return kwh(columns for attempt in attempts for _, columns in every_rank(attempt, DeviceFile, METRICS))


def co2_kg(kilowatt_hours: float, grams_per_kwh: float) -> float:
    """Kilograms of CO2 for what the grid gives off for each kilowatt-hour."""
    return kilowatt_hours * grams_per_kwh / 1e3
