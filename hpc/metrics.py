"""A run's number by name: of what it records step by step, or of what its FINISHED says."""

from __future__ import annotations

import math
from pathlib import Path

from hpc.runs import Run, read_json
from monitoring.recorder import metric
from monitoring.tail import last_value, values


def newest(run: Path, name: str) -> float | None:
    """The newest value; None if there is none."""
    value = last_value(run, name)
    return _finished(run, name) if value is None else value


def best(run: Path, name: str, *, largest: bool) -> float | None:
    """The smallest or largest value, of all attempts; None if there is none that is a number."""
    found = [value for value in values(run, name) if not math.isnan(value)]
    if not found:
        return _finished(run, name)
    return max(found) if largest else min(found)


def _finished(run: Path, name: str) -> float | None:
    return metric((read_json(Run(run).finished_file) or {}).get(name))
