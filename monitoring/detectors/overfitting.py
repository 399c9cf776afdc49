"""Whether a training learns its data by heart: what it was not trained on gets worse while the rest gets better."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evaluations import LOSS as CHECKPOINT
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.history import Series

RISING = 5  # evaluations in a row, all well above the best
RISE = 0.01  # of the loss, that is well above
FALL = 0.01  # of its own, that the training loss has fallen by meanwhile
SIGMAS = 6.0  # robust standard deviations of evaluations, that are well above too
STEPS = range(20, 501)  # steps whose median is the training loss at one moment


def overfitting(evidence: Evidence) -> Iterator[Finding]:
    """A validation loss that rises over several evaluations while the training loss goes on falling."""
    loss = _finite(evidence.curve("loss"))
    for name in ("validation_loss", CHECKPOINT):
        series = _finite(evidence.curve(name))
        best = _turn(series.values)
        if best is None:
            continue
        fell = _fell(loss, int(series.steps[best]), int(series.steps[-1]), len(series.steps))
        if fell is None:
            continue
        yield Finding(
            "overfitting",
            Severity.warning,
            f"{name} has risen since step {series.steps[best]:,}, and the training loss has fallen",
            f"{series.values[best]:.4g} there, {np.median(series.values[-3:]):.4g} now; the training loss "
            f"{fell[0]:.4g} then, {fell[1]:.4g} now",
            since=evidence.when(float(series.steps[best])),
            about=name,
            do=advice.best(evidence, int(series.steps[best])),
        )


def _turn(values: np.ndarray) -> int | None:
    """The row from which on a validation loss rises; None if it does not.

    Medians of three stand for single ones, so that one that is off by chance is neither the best nor a rise.
    """
    if len(values) < RISING + 3:
        return None
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    low = int(np.argmin(smooth))
    change = np.diff(values)
    scale = 1.4826 * float(np.median(abs(change - np.median(change)))) / math.sqrt(2)
    after = smooth[low + 1 :]
    if len(after) < RISING or after[-RISING:].min() <= smooth[low] + max(RISE * abs(smooth[low]), SIGMAS * scale):
        return None
    one, other = np.triu_indices(len(late := after[-3 * RISING :]), 1)
    rises = np.median((late[other] - late[one]) / (other - one)) > 0
    return low + int(np.argmin(values[low : low + 3])) if rises else None


def _fell(loss: Series, since: int, until: int, evaluations: int) -> tuple[float, float] | None:
    """The training loss (behind ``since``, up to ``until``), if it has fallen by more than its noise; else None."""
    width = min(max(len(loss.steps) // evaluations, STEPS.start), STEPS.stop - 1)
    begin, end = np.searchsorted(loss.steps, since), np.searchsorted(loss.steps, until, side="right")
    if end - begin < 2 * width:
        return None
    then, now = loss.values[begin : begin + width], loss.values[end - width : end]
    before, present = float(np.median(then)), float(np.median(now))
    noise = 1.4826 * max(float(np.median(abs(each - np.median(each)))) for each in (then, now))
    # A median varies by sqrt(pi / 2) as much as a mean, and two of them differ.
    limit = max(FALL * abs(before), 3 * noise * math.sqrt(math.pi / width))
    return (before, present) if before - present > limit else None


def _finite(series: Series) -> Series:
    good = np.isfinite(series.values)
    return series if good.all() else Series(series.steps[good], series.values[good])
