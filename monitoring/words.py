"""Figures and times as people read them."""

from __future__ import annotations

import math
import time


def count(value: float | None) -> str:
    """A count in at most five characters: 812, 9.41k, 1.23M, 412B."""
    if value is None:
        return "?"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def figure(value: float | None) -> str:
    """A measured value with four significant digits: 4.213, 0.0003, 2.500e-05, NaN."""
    if value is None:
        return "?"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        return f"{value:.{max(0, 3 - exponent)}f}"
    return f"{value:.3e}"


def duration(seconds: float | None) -> str:
    """A time span: 42s, 2:57, 1:02:03, 2d 03:04."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}:{m:02}"
    if hours:
        return f"{hours}:{m:02}:{s:02}"
    return f"{m}:{s:02}" if minutes else f"{s}s"


def clock(at: float, now: float) -> str:
    """A moment in local time: 14:32 on the same day, otherwise with the date; "?" where no calendar has it."""
    try:
        then, today = time.localtime(at), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "?"
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", then)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
