"""What the evaluations of a training show: those beside its steps, and those of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evaluations import LOSS as CHECKPOINT
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.history import Series

BEFORE, AFTER = 7, 5  # evaluations that a line is laid through
NEAR = 16  # evaluations before and after, by which it is known how much they differ
OUT_OF_LINE = 6.0  # robust standard deviations
LEAST = 0.005  # of the loss: a standard deviation at least
NEWS = 8  # evaluations for which one is a warning


def evaluation_out_of_line(evidence: Evidence) -> Iterator[Finding]:
    """An evaluation that does not fit those around it: often a damaged checkpoint or another data set.

    Far back, as in a run that has ended, it is told as well, but warns of nothing any more.
    """
    for name, series in _evaluations(evidence):
        good = np.isfinite(series.values)
        steps, values = series.steps[good], series.values[good]
        off = _off(steps, values)
        rows = np.flatnonzero(off)
        if not len(rows):
            continue
        news = rows[rows >= len(steps) - NEWS]
        row = max(news if len(news) else rows, key=lambda each: abs(off[each]))
        others = f"; so are {len(rows) - 1} more" if len(rows) > 1 else ""
        yield Finding(
            "evaluation_out_of_line",
            Severity.warning if len(news) else Severity.info,
            f"{name} {values[row]:.4g} at step {steps[row]:,} is out of line",
            f"{abs(off[row]):.0f} robust standard deviations {'above' if off[row] > 0 else 'below'} "
            f"what the evaluations around it lead to{others}",
            since=evidence.when(steps[row]),
            about=f"{name}:{steps[row]}",
            do=advice.measured_again(evidence, int(steps[row])),
        )


def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """An evaluation that gave no number."""
    for name, series in _evaluations(evidence):
        recent = slice(-NEWS, None)
        steps, values = series.steps[recent], series.values[recent]
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            last = bad[-1]
            yield Finding(
                "not_finite",
                Severity.warning,
                f"{name} is {values[last]} at step {steps[last]:,}",
                f"{len(bad)} of the last {len(values)} evaluations gave no number",
                since=evidence.when(int(steps[bad[0]])),
                about=name,
                do=advice.measured_again(evidence, int(steps[last])),
            )


def _evaluations(evidence: Evidence) -> Iterator[tuple[str, Series]]:
    for name, series in evidence.series.items():
        if name.split("/")[0] in ("validation_loss", CHECKPOINT):
            yield name, series


def _off(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """By how many robust standard deviations each evaluation is out of line; 0 where it is not.

    It is if it fits neither what went before nor what came after: a loss that begins to fall faster, or comes to
    another level, fits one of them. Until enough came after, only a loss above the line is.
    """
    off = np.zeros(len(values))
    if len(values) <= BEFORE:
        return off
    place = np.log(np.maximum(steps, 1))
    before = _away(place, values, BEFORE)
    after = _away(place[::-1], values[::-1], AFTER)[::-1]
    scale = _scale(values)
    before, after = before / scale, after / scale
    after = np.where(np.isnan(after) & (before > 0), before, after)
    agree = (np.sign(before) == np.sign(after)) & (np.minimum(abs(before), abs(after)) > OUT_OF_LINE)
    return np.where(agree, np.sign(before) * np.minimum(abs(before), abs(after)), 0.0)


def _away(place: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """How far each value is from the line through the ``count`` before it; NaN for the first ones.

    The line is that of Theil and Sen, the median of the slopes between any two: some of them may be off as well.
    """
    away = np.full(len(values), np.nan)
    if len(values) > count:
        x = np.lib.stride_tricks.sliding_window_view(place, count)[:-1]
        y = np.lib.stride_tricks.sliding_window_view(values, count)[:-1]
        one, other = np.triu_indices(count, 1)
        with np.errstate(divide="ignore", invalid="ignore"):  # two evaluations of one step
            slope = np.nan_to_num(np.median((y[:, other] - y[:, one]) / (x[:, other] - x[:, one]), axis=1))
        level = np.median(y - slope[:, None] * x, axis=1)
        away[count:] = values[count:] - (level + slope * place[count:])
    return away


def _scale(values: np.ndarray) -> np.ndarray:
    """How much neighbours usually differ, around each value."""
    wide = min(2 * NEAR, len(values))
    around = np.lib.stride_tricks.sliding_window_view(values, wide)
    change = np.diff(around, axis=1)
    spread = 1.4826 * np.median(abs(change - np.median(change, axis=1, keepdims=True)), axis=1)
    scale = np.maximum(spread, LEAST * abs(np.median(around, axis=1)))
    return scale[np.clip(np.arange(len(values)) - NEAR, 0, len(around) - 1)]
