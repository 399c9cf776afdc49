"""Heat maps of shade blocks: colour helps, but the shades alone can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text


@dataclass(frozen=True)
class Scale:
    """Which character and style stand for which values: the first whose bound is not below the value."""

    bounds: tuple[float, ...]  # ascending; the last level has none
    chars: str  # one a level
    plain: str  # the same in ASCII
    styles: tuple[str, ...]

    def legend(self, labels: Sequence[str], *, unicode: bool = True) -> Text:
        row = Text()
        for char, style, label in zip(self.chars if unicode else self.plain, self.styles, labels, strict=True):
            row.append(" ")
            row.append(char, style)
            row.append(f" {label} ", "dim")
        return row


def columns(
    x: np.ndarray, values: np.ndarray, count: int, low: float, high: float, *, mean: bool = False
) -> np.ndarray:
    """The values of each row put into ``count`` columns of equal width over x from ``low`` to ``high``, the greatest of
    each column; NaN where there is none.

    Args:
        x: (S,) finite.
        values: (R, S); NaN missing.
        mean: of each column, instead of the greatest.
    """
    found = np.full((values.shape[0], count), np.nan)
    seen = np.flatnonzero((x >= low) & (x <= high))
    seen = seen[np.argsort(x[seen], kind="stable")]  # where an attempt cannot be read, its steps may come twice
    x, values = x[seen], values[:, seen]
    if not len(x):
        return found
    place = ((x - low) * (count / (high - low))).astype(int).clip(0, count - 1) if high > low else np.zeros(len(x), int)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    if mean:
        missing = np.isnan(values)
        there = np.add.reduceat(~missing, starts, axis=1, dtype=np.int64)
        sums = np.add.reduceat(np.where(missing, 0.0, values), starts, axis=1)
        found[:, place[starts]] = np.divide(sums, there, out=np.full(sums.shape, np.nan), where=there > 0)
    else:
        found[:, place[starts]] = np.fmax.reduceat(values, starts, axis=1)
    # Fewer steps than columns: a step reaches as far as the next.
    filled = place[starts]
    return found[:, np.repeat(filled, np.diff([0, *filled[1:], count]))]


def heat(values: np.ndarray, scale: Scale, *, unicode: bool = True) -> list[Text]:
    """A row of text for each row of values; NaN is blank."""
    level = np.searchsorted(np.array(scale.bounds), values, side="left")
    chars = scale.chars if unicode else scale.plain
    rows = []
    for levels, missing in zip(level.tolist(), np.isnan(values).tolist(), strict=True):
        row, begin = Text(), 0
        keys = [-1 if gone else each for each, gone in zip(levels, missing, strict=True)]
        for end in range(1, len(keys) + 1):
            if end == len(keys) or keys[end] != keys[begin]:
                key = keys[begin]
                row.append((" " if key < 0 else chars[key]) * (end - begin), "" if key < 0 else scale.styles[key])
                begin = end
        rows.append(row)
    return rows
