"""The report of a sweep: its runs as a table, the parameters against a metric, the best curves over each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from monitoring.curves import Curves
from monitoring.history import History
from monitoring.report import plot
from monitoring.report.dots import Dot, dots
from monitoring.report.page import facts, page, section, table
from monitoring.report.plot import COLOURS, Line
from monitoring.report.run import PLOTS
from monitoring.text import clean
from monitoring.words import figure

SHOWN = len(COLOURS)  # curves over each other
POINTS = 500


@dataclass(frozen=True)
class Member:
    """One run of a sweep, as the report needs it."""

    folder: Path
    name: str
    state: str
    settings: Mapping[str, Any]  # its values of what the runs differ in
    value: float | None  # of the metric


def report(title: str, members: Sequence[Member], metric: str, *, largest: bool = False, moment: str = "") -> str:
    """The whole document.

    Args:
        metric: by which the best is found.
        largest: the largest is the best.
    """
    ordered = best(members, largest=largest)
    parameters = list(dict.fromkeys(key for member in members for key in member.settings))
    states = [member.state for member in members]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    body = [
        f"<header><h1>{escape(clean(title))}</h1>"
        + facts([("runs", counted), ("judged by", metric), ("as of", moment)])
        + "</header>",
        section(f"The best by {metric}", *_curves(ordered[:SHOWN], metric)),
        section("Parameters", *(_parameter(key, ordered, metric) for key in parameters)),
        section("Runs", _table(ordered, parameters, metric)),
    ]
    return page(clean(title), body)


def best(members: Sequence[Member], *, largest: bool) -> list[Member]:
    """The best first; those without a value last."""
    return sorted(members, key=lambda member: _place(member.value, largest))


def _place(value: float | None, largest: bool) -> tuple[bool, float]:
    if value is None or math.isnan(value):
        return True, 0.0
    return False, -value if largest else value


def _table(members: Sequence[Member], parameters: Sequence[str], metric: str) -> str:
    rows = [
        [
            clean(member.name),
            *(clean(str(member.settings.get(key, ""))) for key in parameters),
            _shown(member),
            member.state,
        ]
        for member in members
    ]
    head = ["run", *parameters, metric, "state"]
    return table(head, rows, numbers=[len(head) - 2])


def _shown(member: Member) -> str:
    return "" if member.value is None else figure(member.value)


def _curves(members: Sequence[Member], metric: str) -> Iterator[str]:
    """The metric of each run over its steps; the loss, where the metric is no curve but one number at the end."""
    read = [Curves(_read(member.folder)) for member in members]
    drawn = metric if any(metric in curves.names() for curves in read) else "loss"
    lines = [
        Line(named(member), curves.view(drawn, most=POINTS), colour)
        for member, curves, colour in zip(members, read, COLOURS, strict=False)
    ]
    log = any(drawn in names for _, names, log in PLOTS if log)
    yield section(f"{drawn} over steps", plot.curves(lines, drawn, "step", log=log), level=3)


def _read(run: Path) -> History:
    history = History(run)
    history.refresh()
    return history


def named(member: Member) -> str:
    """What is said of a run beside the others of its sweep."""
    return clean(" ".join(f"{key}={value}" for key, value in member.settings.items()) or member.name)


def _parameter(key: str, members: Sequence[Member], metric: str) -> str:
    """A parameter with numbers for values against the metric; nothing for another, or for one that never changes."""
    found = [
        Dot(float(value), member.value, f"{clean(member.name)}: {value}, {figure(member.value)}")
        for member in members
        if isinstance(value := member.settings.get(key), int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and member.value is not None
        and math.isfinite(member.value)
    ]
    if len({dot.x for dot in found}) < 2:
        return ""
    return section(f"{metric} over {key}", dots(found, metric, key), level=3)
