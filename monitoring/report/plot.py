"""Plots as text: SVG of curves and spans, heat maps as PNG inside it. Pure, and without any library."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from monitoring.bins import Envelope

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 34  # around the drawing
SHADES = 64  # of a heat map: more cannot be told apart, and take more room
COLOURS = ("#2f6fdb", "#d9822b", "#2a9d5c", "#b3446c", "#7a5cc9", "#0e8a9a", "#8a7a2e", "#c0392b")


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    name: str
    curve: Envelope
    colour: str = COLOURS[0]
    ghost: bool = False  # of work that was done again


def curves(lines: Sequence[Line], title: str, x_label: str, *, log: bool = False) -> str:
    """Curves over one axis, as an SVG; the band between a bin's least and greatest value is filled."""
    lines = [line for line in lines if len(line.curve)]
    frame = _Frame.around(lines, log=log)
    if frame is None:
        return ""
    drawn = [_line(line, frame) for line in sorted(lines, key=lambda line: not line.ghost)]
    label = f"{title} over {x_label}"
    return svg(WIDTH, HEIGHT, label, [*_axes(frame, x_label), *drawn]) + _legend(lines)


@dataclass(frozen=True)
class _Frame:
    """What of the values is shown, and where."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    @classmethod
    def around(cls, lines: Sequence[Line], *, log: bool) -> _Frame | None:
        lows = np.concatenate([line.curve.low for line in lines]) if lines else np.empty(0)
        highs = np.concatenate([line.curve.high for line in lines]) if lines else np.empty(0)
        finite = np.concatenate([lows[np.isfinite(lows)], highs[np.isfinite(highs)]])
        log = log and bool(len(finite)) and bool(finite.min() > 0)
        if not len(finite):
            return None
        finite = np.log10(finite) if log else finite
        least, most = (-307.0, 307.0) if log else (-1e307, 1e307)  # beyond it a tick is no float any more
        finite = np.clip(finite, least, most)
        low, high = float(finite.min()), float(finite.max())
        room = (high - low) * 0.04 or max(abs(high) * 0.1, 1e-12)
        xs = np.concatenate([line.curve.x for line in lines]).astype(float)
        x0, x1 = float(xs.min()), float(xs.max())
        return cls(x0, x1 if x1 > x0 else x0 + 1, max(low - room, least), min(high + room, most), log)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        value = math.log10(value) if self.log and value > 0 else value
        return TOP + (self.y1 - value) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _line(line: Line, frame: _Frame) -> str:
    curve, good = line.curve, np.isfinite(line.curve.low)
    parts = []
    for begin, end in _stretches(good):
        xs = [frame.x(float(x)) for x in curve.x[begin:end]]
        lows = [frame.y(float(y)) for y in curve.low[begin:end]]
        highs = [frame.y(float(y)) for y in curve.high[begin:end]]
        if len(xs) == 1 and lows == highs:  # between others that are not finite, or the only one
            parts.append(f'<circle cx="{xs[0]:.1f}" cy="{lows[0]:.1f}" r="2.5" fill="{line.colour}"/>')
            continue
        band = [*zip(xs, highs, strict=True), *zip(xs[::-1], lows[::-1], strict=True)]
        parts.append(f'<path d="{_path(band)}Z" fill="{line.colour}" stroke="{line.colour}" stroke-width="1.2"/>')
    bad = np.flatnonzero(curve.nan)
    parts += [f'<text class="bad" x="{frame.x(float(curve.x[row])):.1f}" y="{TOP + 9}">x</text>' for row in bad[:50]]
    kind = "ghost" if line.ghost else "line"
    return f'<g class="{kind}"><title>{escape(line.name)}</title>{"".join(parts)}</g>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stretches(good: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(int)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _axes(frame: _Frame, x_label: str) -> list[str]:
    parts = []
    for value in _log_ticks(frame) if frame.log else ticks(frame.y0, frame.y1, 5):
        at = frame.y(10**value if frame.log else value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        text = figure(10**value if frame.log else value)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value in (each for each in ticks(frame.x0, frame.x1, 7) if each % 1 == 0):  # they are steps
        at = f'x="{frame.x(value):.1f}" y="{HEIGHT - BOTTOM + 15}"'
        anchor = "middle" if frame.x(value) < WIDTH - 2 * RIGHT else "end"  # half of the last one would be cut off
        parts.append(f'<text class="tick" {at} text-anchor="{anchor}">{figure(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _log_ticks(frame: _Frame) -> list[float]:
    if frame.y1 - frame.y0 < 1:
        found = ticks(10**frame.y0, 10**frame.y1, 5)
        return [math.log10(value) for value in found if value > 0]
    low, high = math.ceil(frame.y0), math.floor(frame.y1)
    return [float(value) for value in range(low, high + 1, max(1, -(-(high - low) // 8)))]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from ``low`` to ``high``, at most about ``most``."""
    raw = (high - low) / max(1, most)
    if not (raw > 0 and math.isfinite(raw)):
        return [low]
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, first + most + 2) if n * step <= high * (1 + 1e-12) + 1e-300]


def figure(value: float) -> str:
    """A tick's value: 1.5k, 20M, 0.003."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def _legend(lines: Sequence[Line]) -> str:
    named = {line.name: line for line in lines}
    if len(named) < 2:
        return ""
    items = [
        f'<li class="{"ghost" if line.ghost else "line"}"><svg width="14" height="8" aria-hidden="true">'
        f'<rect width="14" height="8" fill="{line.colour}"/></svg> {escape(name)}</li>'
        for name, line in named.items()
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


# -- spans and heat maps -----------------------------------------------------------------------------------------


def spans(found: Sequence[tuple[float, float, str, str]], label: str, colours: dict[str, str]) -> str:
    """(begin, end, kind, words) side by side on one line, to scale."""
    if not found:
        return ""
    begin, end = found[0][0], max(found[-1][1], found[0][0] + 1e-9)
    parts = []
    for one, two, kind, words in found:
        x, wide = (one - begin) / (end - begin) * WIDTH, (two - one) / (end - begin) * WIDTH
        if wide >= 0.2:  # what is narrower is in the table
            place = f'x="{x:.2f}" y="0" width="{wide:.2f}" height="28"'
            parts.append(f'<rect {place} fill="{colours[kind]}"><title>{escape(words)}</title></rect>')
    return svg(WIDTH, 28, label, parts)


def heat_map(values: np.ndarray, label: str, low: float, high: float, pixels: int = 150_000) -> str:
    """Rows by columns as a picture: light is ``low``, dark ``high``, nothing where NaN. Wide ones are made narrower.

    Args:
        pixels: that it has at most: each takes up to a byte of the document.
    """
    values = _narrower(values, min(600, max(1, pixels // max(1, len(values)))))
    if not values.size:
        return ""
    share = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    known = np.isfinite(values)
    shade = np.where(known, 1 + np.rint(np.where(known, share, 0.0) * (SHADES - 1)), 0).astype(np.uint8)
    row = max(2, min(16, 220 // max(1, len(values))))
    source = base64.b64encode(png(shade, _palette())).decode()
    size = f'width="{WIDTH}" height="{row * len(values)}"'
    return f'<img class="heat" {size} alt="{escape(label)}" src="data:image/png;base64,{source}">'


def _palette() -> np.ndarray:
    """Nothing, then from light to dark."""
    light, middle, dark = np.array([237, 243, 252.0]), np.array([84, 141, 224.0]), np.array([120, 16, 60.0])
    share = np.linspace(0, 1, SHADES)[:, None]
    colour = np.where(share < 0.5, light + (middle - light) * share * 2, middle + (dark - middle) * (share * 2 - 1))
    return np.concatenate([np.full((1, 3), 255.0), colour]).astype(np.uint8)


def _narrower(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many columns, each the greatest of those that it stands for."""
    if values.ndim != 2 or values.shape[1] <= most:
        return values
    edges = np.linspace(0, values.shape[1], most + 1).astype(int)[:-1]
    filled = np.where(np.isfinite(values), values, -np.inf)
    found = np.maximum.reduceat(filled, edges, axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """A picture as a PNG file (ISO/IEC 15948).

    Args:
        pixels: (rows, columns) bytes, each a row of the palette; the first one is transparent.
        palette: (up to 256, 3) bytes, red, green and blue.
    """
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", b"\0")
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """A picture that is named for those who do not see it."""
    view = f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="plot" {view}>{"".join(parts)}</svg>'
