"""How every benchmark here tells its figures: a table, and with --json a list as the last line."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``goal`` as ">= 1.4" or "<= 15"."""

    figure: str
    value: float | None  # None: not measured here
    unit: str
    goal: str = ""
    compared_with: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a value."""
        if not self.goal or self.value is None:
            return None
        relation, bound = self.goal.split()
        return self.value >= float(bound) if relation == ">=" else self.value <= float(bound)


def unwind_when_terminated() -> None:
    """Let SIGTERM and SIGHUP end what was started, as an error would: a cluster, a mount."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def progress(text: str) -> None:
    """Say how far a long measurement is, beside what it prints."""
    print(text, file=sys.stderr, flush=True)


def report(figures: list[Figure], *, as_json: bool) -> None:
    """Print the table, then the JSON list if asked."""
    widths = {"figure": 28, "value": 12, "unit": 8, "goal": 10}
    print("".join(name.ljust(width) for name, width in widths.items()) + "compared with")
    for row in figures:
        value = "not measured" if row.value is None else f"{row.value:.3g}"
        mark = {True: "", False: " MISSED", None: ""}[row.reached]
        cells = (row.figure, value, row.unit, row.goal)
        print("".join(c.ljust(w) for c, w in zip(cells, widths.values(), strict=True)) + row.compared_with + mark)
    if as_json:
        print(json.dumps([asdict(row) for row in figures]))
