"""A value that was chosen against one that came of it, a dot for each run, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from monitoring.report.plot import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, figure, svg, ticks

ROOM = 28  # pixels between the dots and the ends of an axis
LETTER = 6.5  # pixels of a tick's letter, about
SEVERAL = 10.0  # the largest value over the least, from which on powers are told apart and not sums
MANY = 12  # different values, from which on not each has a tick


class Dot(NamedTuple):
    x: float
    y: float
    words: str  # what it is


def dots(found: Sequence[Dot], title: str, x_label: str) -> str:
    """Dots over one axis, which is logarithmic where the values span several powers; ticks are the values tried."""
    xs, ys = [dot.x for dot in found], [dot.y for dot in found]
    log = min(xs) > 0 and max(xs) / min(xs) >= SEVERAL
    across = _scale(math.log10 if log else float, min(xs), max(xs), LEFT + ROOM, WIDTH - RIGHT - ROOM)
    up = _scale(float, min(ys), max(ys), HEIGHT - BOTTOM - TOP, 2 * TOP)
    parts = [*_rows(up, min(ys), max(ys)), *_columns(across, sorted(set(xs)))]
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = f"{x_label} (logarithmic)" if log else x_label
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(label)}</text>')
    for x, y, words in found:
        place = f'cx="{across(x):.1f}" cy="{up(y):.1f}"'
        parts.append(f'<circle {place} r="4.5" fill="{COLOURS[0]}"><title>{escape(words)}</title></circle>')
    return svg(WIDTH, HEIGHT, f"{title} over {x_label}", parts)


def _scale(
    shape: Callable[[float], float], low: float, high: float, begin: float, end: float
) -> Callable[[float], float]:
    one, two = shape(low), shape(high)
    if not two > one:
        return lambda _: (begin + end) / 2
    return lambda value: begin + (shape(value) - one) / (two - one) * (end - begin)


def _rows(up: Callable[[float], float], low: float, high: float) -> Iterator[str]:
    for value in ticks(low, high, 5) if high > low else [low]:
        at = up(value)
        yield f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{figure(value)}</text>'


def _columns(across: Callable[[float], float], tried: Sequence[float]) -> Iterator[str]:
    shown = tried if len(tried) <= MANY else [value for value in ticks(tried[0], tried[-1], 7) if value > 0]
    end = -math.inf
    for value in shown:
        at, text = across(value), exact(value)
        if at - len(text) * LETTER / 2 > end:  # there is room for it
            yield f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>'
            end = at + len(text) * LETTER / 2


def exact(value: float) -> str:
    """A value that was chosen, with the digits that it was chosen with: all of a batch of 1048576."""
    if not value.is_integer():
        return f"{value:.6g}"
    return str(int(value)) if value % 1000 and abs(value) < 1e15 else figure(value)
