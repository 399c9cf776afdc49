"""What the curves of a training show."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.history import Series

WINDOW = 200  # steps that say what is usual
HIGHER = 1.5  # times as far up as the highest of the usual steps: some losses have long tails
NEWS = 500  # steps for which a spike is told
SPIKE = 8.0  # robust standard deviations above the usual
WARM = 100  # first steps, of which nothing is expected
BLOCK = 50  # steps whose median loss is one point of a trend
WORSE = 0.05  # share of the loss by which a divergence is at least worse than the best
FLAT_SHARE = 0.25  # the last part of a run in which a plateau has gained nothing
FLAT_STEPS = 2000  # of which it has at least so many
FLAT_BLOCKS = 8  # and points of its trend, where few steps are recorded


def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """A loss that is no number, now or in steps that were skipped for it."""
    loss = evidence.curve("loss")
    recent = slice(-NEWS, None)
    bad = ~np.isfinite(loss.values[recent])
    if not bad.any():
        return
    steps = loss.steps[recent][bad]
    now = bool(bad[-1])
    yield Finding(
        "not_finite",
        Severity.critical if now else Severity.warning,
        f"the loss is {loss.values[-1]}"
        if now
        else f"the loss was not finite in {len(steps)} of the last {len(bad)} steps",
        f"first at step {steps[0]:,}, last at step {steps[-1]:,}",
        since=evidence.when(steps[0]),
        do=advice.back(evidence, advice.gentler(evidence), steps[0] - 1)
        if now
        else "nothing, if it stays at that: these steps changed no weights"
        if evidence.trains
        else "look at what it printed: hpc logs RUN",
    )


def spike(evidence: Evidence) -> Iterator[Finding]:
    """A loss far above what the steps before it were."""
    loss = _finite(evidence.curve("loss"))
    if len(loss.steps) < WINDOW + 2:
        return
    for row in range(len(loss.steps) - 1, max(WINDOW, len(loss.steps) - NEWS) - 1, -1):
        value = float(loss.values[row])
        # Most steps are no candidates, and a median is dear.
        if value <= loss.values[row - 1] and value <= loss.values[row - BLOCK]:
            continue
        before = loss.values[row - WINDOW : row]
        middle, scale = _usual(before)
        if value - middle > max(SPIKE * scale, HIGHER * (before.max() - middle)):
            yield Finding(
                "loss_spike",
                Severity.warning,
                f"the loss jumped to {value:.4g} at step {loss.steps[row]:,}",
                f"{(value - middle) / scale:.0f} robust standard deviations above the median {middle:.4g} "
                f"of the {WINDOW} steps before; now {loss.values[-1]:.4g}",
                since=evidence.when(loss.steps[row]),
                do="nothing, if it comes down again; see train.watch.spike_sigma and optim.clip if spikes repeat",
            )
            return


def divergence(evidence: Evidence) -> Iterator[Finding]:
    """A loss that went up and stays up."""
    loss = _finite(evidence.curve("loss"))
    steps, medians = _blocks(loss)
    if len(medians) < 8:
        return
    best = int(np.argmin(medians[:-1]))
    # A spike that comes down again is no divergence: all blocks of the end have to be worse.
    tail = medians[-3:]
    _, scale = _usual(np.diff(medians[: max(4, best + 1)]))
    limit = medians[best] + max(WORSE * abs(medians[best]), 6 * scale)
    if best >= len(medians) - 3 or tail.min() <= limit or tail[0] - tail[-1] > max(scale, 3 * _error(loss)):
        return
    begun = best + int(np.argmax(medians[best:] > limit))
    yield Finding(
        "divergence",
        Severity.critical,
        f"the loss has risen since step {steps[best]:,}",
        f"median {tail[-1]:.4g} of the last {steps[-1] - steps[-2]:,} steps, "
        f"{medians[best]:.4g} at step {steps[best]:,}",
        since=evidence.when(steps[begun]),
        do=advice.back(evidence, advice.gentler(evidence), steps[best], steps[begun]),
    )


def plateau(evidence: Evidence) -> Iterator[Finding]:
    """A loss that has gained nothing for long, while the learning rate would still let it."""
    loss, rate = _finite(evidence.curve("loss")), evidence.curve("lr")
    steps, medians = _blocks(loss)
    if len(medians) < 2:
        return
    tail = max(int(len(medians) * FLAT_SHARE), FLAT_STEPS // int(steps[1] - steps[0]), FLAT_BLOCKS)
    if len(medians) < 2 * tail or not len(rate.values) or rate.values[-1] < 0.1 * np.nanmax(rate.values):
        return
    late = medians[-tail:]
    _, scale = _usual(np.diff(late))
    slope = np.polynomial.polynomial.polyfit(np.arange(tail), late, 1)[1]
    error = max(scale, 1e-9) / math.sqrt(tail**3 / 12)
    if slope * tail > -0.002 * abs(late[0]) and slope > -3 * error:
        yield Finding(
            "plateau",
            Severity.info,
            f"the loss has not fallen since step {steps[-tail]:,}",
            f"median {late[0]:.4g} there, {late[-1]:.4g} now, over {tail * int(steps[1] - steps[0]):,} steps",
            since=evidence.when(steps[-tail]),
            do="compare with a run of another optim.lr: hpc watch RUN OTHER",
        )


def _finite(series: Series) -> Series:
    good = np.isfinite(series.values)
    return series if good.all() else Series(series.steps[good], series.values[good])


def _usual(values: np.ndarray) -> tuple[float, float]:
    """(median, robust standard deviation); the latter is never quite 0."""
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, max(spread, 1e-3 * abs(middle), 1e-12)


def _error(series: Series) -> float:
    """The standard deviation of the difference of two blocks' medians, by the noise within the last three."""
    size = _size(series)
    last = series.values[-3 * size :].reshape(3, size)
    noise = 1.4826 * float(np.median(abs(last - np.median(last, axis=1, keepdims=True))))
    return noise * math.sqrt(math.pi / size)  # a median varies by sqrt(pi / 2) as much as a mean


def _size(series: Series) -> int:
    """Steps of a block; long runs have longer ones."""
    return max(BLOCK, (len(series.values) - WARM) // 2000)


def _blocks(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """(first step, median) of whole blocks, those of the warm-up left out."""
    values, steps, size = series.values[WARM:], series.steps[WARM:], _size(series)
    count = len(values) // size
    values, steps = values[len(values) - count * size :], steps[len(steps) - count * size :]
    return steps[::size], np.median(values.reshape(count, size), axis=1) if count else np.empty(0)
