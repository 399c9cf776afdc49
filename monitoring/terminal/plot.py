"""Several curves in one braille plot: each cell has the colour of the curve that is drawn last in it.

What is drawn are envelopes, the least and the greatest value of each column, so no spike is lost. A curve of work that
was done again is dotted, and each of several curves ends in a letter: neither needs colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.text import Text

from monitoring.terminal import canvas
from monitoring.terminal.screen import DIM, LABEL

_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


@dataclass(frozen=True)
class Line:
    """A curve as it is to be drawn."""

    x: np.ndarray  # ascending
    low: np.ndarray  # NaN: nothing there
    high: np.ndarray
    bad: np.ndarray = field(default_factory=lambda: np.empty(0))  # x at which values are not finite
    style: str = "cyan"
    dotted: bool = False
    mark: str = ""  # a letter at its end


@dataclass(frozen=True)
class Window:
    """What of the plane is seen."""

    left: float
    right: float
    low: float
    high: float


def window(lines: Sequence[Line], left: float, right: float, *, log: bool = False) -> Window:
    """The window with all values between ``left`` and ``right``, in its y as drawn (the logarithm with ``log``)."""
    lows, highs = [], []
    for line in lines:
        low, high = _heights(line, log)
        seen = (line.x >= left) & (line.x <= right) & np.isfinite(low)
        if seen.any():
            lows.append(float(low[seen].min()))
            highs.append(float(high[seen].max()))
    return Window(left, right, min(lows, default=0.0), max(highs, default=0.0))


def plot(
    lines: Sequence[Line],
    seen: Window,
    width: int,
    height: int,
    *,
    log: bool = False,
    cursor: float | None = None,
    unicode: bool = True,
) -> list[Text]:
    """``height`` rows of labels and cells; the x axis is not among them.

    Args:
        cursor: an x at which a vertical line stands.
    """
    cells = width - LABEL
    codes = np.zeros((height, cells), int)
    owner = np.full((height, cells), -1)
    for number, line in enumerate(lines):
        dots = _dots(line, seen, cells * 2, height * 4, log)
        grouped = dots.reshape(height, 4, cells, 2)
        drawn = np.einsum("hrwc,rc->hw", grouped, _BITS)
        owner[drawn > 0] = number
        codes |= drawn
    say = (lambda value: canvas.y_label(10**value)) if log else canvas.y_label
    labels = canvas.y_labels(seen.low, seen.high, height, say=say) if lines else {}
    chars = [[chr(0x2800 + code) if code else " " for code in row] for row in codes.tolist()]
    if not unicode:
        halves = [(0x01 | 0x08 | 0x02 | 0x10), (0x04 | 0x20 | 0x40 | 0x80)]
        chars = [[" '.:"[bool(c & halves[0]) + 2 * bool(c & halves[1])] for c in row] for row in codes.tolist()]
    styles = [[lines[n].style if n >= 0 else "" for n in row] for row in owner.tolist()]
    _overlay(chars, styles, lines, seen, cells, height, log, cursor, unicode)
    rows = []
    for number in range(height):
        label = labels.get(number, "")
        row = Text.assemble((label.rjust(LABEL - 1), DIM))
        row.append(("┤" if label else "│") if unicode else "|", style=DIM)
        rows.append(row + _runs(chars[number], styles[number]))
    return rows


def _overlay(
    chars: list[list[str]],
    styles: list[list[str]],
    lines: Sequence[Line],
    seen: Window,
    cells: int,
    height: int,
    log: bool,
    cursor: float | None,
    unicode: bool,
) -> None:
    """The cursor's line, a mark where values are not finite, and each curve's letter."""
    if cursor is not None and seen.left <= cursor <= seen.right:
        column = _column(np.array([cursor]), seen, cells)[0]
        for row in range(height):
            if chars[row][column] == " ":
                chars[row][column], styles[row][column] = "│" if unicode else "|", DIM
    for line in lines:
        inside = line.bad[(line.bad >= seen.left) & (line.bad <= seen.right)]
        for column in set(_column(inside, seen, cells).tolist()):
            chars[0][column], styles[0][column] = "×" if unicode else "x", "bold red"
    for line in lines:
        if not line.mark:
            continue
        low, high = _heights(line, log)
        shown = np.flatnonzero((line.x >= seen.left) & (line.x <= seen.right) & np.isfinite(low))
        if len(shown):
            last = shown[-1]
            column = int(_column(line.x[last : last + 1], seen, cells)[0])
            middle = np.array([low[last] / 2 + high[last] / 2])
            row = int(_row(middle, seen, height)[0])
            chars[row][column], styles[row][column] = line.mark, f"bold {line.style}"


def _heights(line: Line, log: bool) -> tuple[np.ndarray, np.ndarray]:
    if not log:
        return line.low, line.high
    with np.errstate(all="ignore"):
        low = np.where(line.low > 0, np.log10(line.low), np.nan)
        high = np.where(line.high > 0, np.log10(line.high), np.nan)
    return np.where(np.isnan(low), high, low), high


def _dots(line: Line, seen: Window, width: int, height: int, log: bool) -> np.ndarray:
    dots = np.zeros((height, width), bool)
    low, high = _heights(line, log)
    # One point beyond each edge, so that the curve runs out of the window.
    inside = np.flatnonzero((line.x >= seen.left) & (line.x <= seen.right))
    if not len(inside):
        return dots
    keep = inside[np.isfinite(low[inside])]
    columns = _column(line.x[keep], seen, width).tolist()
    tops, bottoms = _row(high[keep], seen, height).tolist(), _row(low[keep], seen, height).tolist()
    # A value that is not finite, or a step without one, breaks the curve.
    breaks = np.diff(np.flatnonzero(np.isfinite(low)), prepend=-1) > 1
    broken = dict(zip(np.flatnonzero(np.isfinite(low)).tolist(), breaks.tolist(), strict=True))
    before: tuple[int, int, int] | None = None
    for index, column, top, bottom in zip(keep.tolist(), columns, tops, bottoms, strict=True):
        dots[top : bottom + 1, column] = True
        if before is not None and not broken[index]:
            _join(dots, before, (column, top, bottom))
        before = (column, top, bottom)
    if line.dotted:
        dots[:, 2::4] = dots[:, 3::4] = False
    return dots


def _join(dots: np.ndarray, one: tuple[int, int, int], two: tuple[int, int, int]) -> None:
    """A straight stroke from one column's band to the next one's."""
    begin, top, bottom = one
    end, first, last = two
    start = bottom if first > bottom else top if last < top else max(top, first)
    stop = first if first > bottom else last if last < top else max(top, first)
    steps = max(end - begin, abs(stop - start))
    across = np.linspace(begin, end, steps + 1).round().astype(int)
    dots[np.linspace(start, stop, steps + 1).round().astype(int), across] = True


def _column(x: np.ndarray, seen: Window, width: int) -> np.ndarray:
    span = seen.right - seen.left
    share = (x - seen.left) / span if span > 0 else np.zeros(len(x))
    return np.rint(share * (width - 1)).astype(int).clip(0, width - 1)


def _row(y: np.ndarray, seen: Window, height: int) -> np.ndarray:
    span = seen.high / 2 - seen.low / 2  # halved, as the range of two floats may exceed what a float holds
    share = (seen.high / 2 - y / 2) / span if span > 0 else np.full(len(y), 0.5)
    return np.rint(share * (height - 1)).clip(0, height - 1).astype(int)


def _runs(chars: list[str], styles: list[str]) -> Text:
    """Cells as text, those of one style together."""
    row, begin = Text(), 0
    for end in range(1, len(chars) + 1):
        if end == len(chars) or styles[end] != styles[begin]:
            row.append("".join(chars[begin:end]), styles[begin])
            begin = end
    return row
