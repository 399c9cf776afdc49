"""A curve in braille characters: each cell is two dots wide and four high.

Points are put into bins of one dot's width of which the least and the greatest are drawn, so however many
points share a column, no spike is lost. What is not finite breaks the curve and is told apart, never left out
silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from monitoring.words import count, figure

# The bit of each dot in a cell, by [row][column]; the code point is U+2800 plus their sum.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


@dataclass(frozen=True)
class Bins:
    """Points by column; NaN in columns without a finite point. All arrays have one entry per column."""

    first: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: np.ndarray
    bad: np.ndarray  # bool: a point there is not finite


@dataclass(frozen=True)
class Curve:
    """A drawn curve: ``rows[0]`` is the top."""

    rows: tuple[str, ...]
    low: float  # value of the lowest dot
    high: float  # value of the highest dot
    bad: tuple[int, ...]  # character columns in which values are not finite


def bins(x: np.ndarray, y: np.ndarray, columns: int) -> Bins:
    """Put points into ``columns`` bins of equal width over the range of ``x``.

    Args:
        x: ascending and finite.
        y: any floats.
    """
    empty = np.full(columns, np.nan)
    bad = np.zeros(columns, bool)
    if not len(x):
        return Bins(empty, empty, empty, empty, bad)
    span = float(x[-1] - x[0])
    place = ((x - x[0]) * ((columns - 1) / span)).round().astype(int) if span > 0 else np.zeros(len(x), int)
    finite = np.isfinite(y)
    bad[place[~finite]] = True
    place, y = place[finite], y[finite]
    if not len(y):
        return Bins(empty, empty, empty, empty, bad)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(y)) - 1
    found = [empty.copy() for _ in range(4)]
    parts = (y[starts], np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts), y[ends])
    for target, values in zip(found, parts, strict=True):
        target[place[starts]] = values
    return Bins(found[0], found[1], found[2], found[3], bad)


def curve(x: np.ndarray, y: np.ndarray, width: int, height: int, *, braille: bool = True) -> Curve:
    """Draw points as a connected curve of ``width`` x ``height`` characters.

    Args:
        braille: False draws with ASCII characters, for terminals without Unicode.
    """
    binned = bins(x, y, width * 2)
    filled = np.flatnonzero(~np.isnan(binned.low))
    dots = np.zeros((height * 4, width * 2), bool)
    low = high = 0.0
    if len(filled):
        low, high = float(np.nanmin(binned.low)), float(np.nanmax(binned.high))
        _draw(dots, binned, filled, low, high)
    cells = dots.reshape(height, 4, width, 2)
    if braille:
        codes = 0x2800 + np.einsum("hrwc,rc->hw", cells, _BITS)
        rows = tuple("".join(map(chr, row)).replace("\u2800", " ") for row in codes.tolist())
    else:
        halves = np.any(cells[:, :2], axis=(1, 3)) + 2 * np.any(cells[:, 2:], axis=(1, 3))
        rows = tuple("".join(" '.:"[half] for half in row) for row in halves.tolist())
    return Curve(rows, low, high, tuple(sorted({int(column) // 2 for column in np.flatnonzero(binned.bad)})))


def _draw(dots: np.ndarray, binned: Bins, filled: np.ndarray, low: float, high: float) -> None:
    span = high / 2 - low / 2  # halved, as the range of two floats may exceed what a float holds

    def rows(values: np.ndarray) -> list[int]:
        # A flat line goes through the middle.
        share = (high / 2 - values[filled] / 2) / span if span > 0 else np.full(len(filled), 0.5)
        return np.rint((dots.shape[0] - 1) * share).astype(int).tolist()

    parts = zip(filled.tolist(), *map(rows, (binned.first, binned.high, binned.low, binned.last)), strict=True)
    previous = end = 0
    for number, (column, first, top, bottom, last) in enumerate(parts):
        dots[top : bottom + 1, column] = True
        if number and not binned.bad[previous : column + 1].any():
            steps = max(column - previous, abs(first - end))
            across = np.linspace(previous, column, steps + 1).round().astype(int)
            down = np.linspace(end, first, steps + 1).round().astype(int)
            dots[down, across] = True
        previous, end = column, last


def y_label(value: float) -> str:
    """A value in at most seven characters."""
    return next(text for text in (figure(value), f"{value:.1e}", f"{value:.0e}") if len(text) <= 7)


def y_labels(
    low: float, high: float, height: int, every: int = 4, say: Callable[[float], str] = y_label
) -> dict[int, str]:
    """Row -> the value at that row, as ``say`` has it: of the top and bottom rows, and in between about each ``every``
    rows."""
    if high / 2 - low / 2 <= 0:
        return {height // 2: say(high)}
    parts = max(1, round((height - 1) / every))
    rows = [round(part * (height - 1) / parts) for part in range(parts + 1)]
    span = high / 2 - low / 2
    return {row: say(high - 2 * (span * row / max(1, height - 1))) for row in rows}


def _place(x: float) -> str:
    return f"{x:,.0f}" if x < 1e6 else count(x)


def x_labels(low: float, high: float, width: int, say: Callable[[float], str] = _place) -> str:
    """One row with the first, middle and last x as ``say`` has them; fewer where they do not fit."""
    first, middle, last = (say(value) for value in (low, (low + high) / 2, high))
    if high <= low or width < len(first) + len(last) + 2:
        return last[:width].rjust(width)
    row = first + last.rjust(width - len(first))
    begin = (width - len(middle)) // 2
    if begin > len(first) + 2 and begin + len(middle) < width - len(last) - 2:
        row = row[:begin] + middle + row[begin + len(middle) :]
    return row


def axis(low: float, high: float, width: int, marks: Mapping[int, str]) -> str:
    """The x axis with a tick and a label where each mark's x is; labels that would overlap give way to the
    later."""
    row = ["─"] * width
    for x, label in sorted(marks.items()):
        if high > low and low <= x <= high:
            column = round((x - low) * (width - 1) / (high - low))
            for place, char in enumerate("┴" + label, column):
                if place < width:
                    row[place] = char
    return "".join(row)
