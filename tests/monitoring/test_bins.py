"""Bins show every extreme of a curve, never more points than asked for, and stay put while it grows."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.bins import Bins, Envelope

values = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])
points = st.lists(st.tuples(st.floats(0, 100), values), max_size=300)
cuts = st.lists(st.integers(0, 300), max_size=6)
most = st.integers(1, 60)


def arrays(made: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(made, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def binned(x: np.ndarray, y: np.ndarray, at: list[int] | None = None) -> Bins:
    bins, begin = Bins(), 0
    for end in [*sorted(at or []), len(x)]:
        bins.append(x[begin:end], y[begin:end])
        begin = max(begin, min(end, len(x)))
    return bins


def brute(x: np.ndarray, y: np.ndarray, low: float, high: float, most: int) -> list[tuple[float, float, float, bool]]:
    """What a view shows, spelled out point by point."""
    bent, top = [], -math.inf
    for each in x:
        top = max(top, each)
        bent.append(top)
    inside = [i for i, each in enumerate(bent) if low <= each <= high]
    before = [i for i, each in enumerate(bent) if each < low]
    after = [i for i, each in enumerate(bent) if each > high]
    wanted = sorted(inside + before[-1:] + after[:1])
    if not wanted:
        return []
    width = 1
    while len({i // width for i in wanted}) > most:
        width *= 2
    found = []
    for number in sorted({i // width for i in range(wanted[0], wanted[-1] + 1)}):
        bin_ = y[number * width : (number + 1) * width]
        finite = bin_[np.isfinite(bin_)]
        ends = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
        found.append((bent[number * width], *ends, len(finite) < len(bin_)))
    return found


def rows(envelope: Envelope) -> list[tuple[float, float, float, bool]]:
    return [
        (float(x), float(low), float(high), bool(nan))
        for x, low, high, nan in zip(envelope.x, envelope.low, envelope.high, envelope.nan, strict=True)
    ]


def same(one: list[tuple[float, ...]], other: list[tuple[float, ...]]) -> bool:
    return np.array_equal(np.array(one, float), np.array(other, float), equal_nan=True)


@given(points, cuts, st.floats(-10, 110), st.floats(-10, 110), most)
def test_a_view_is_what_brute_force_gives(
    made: list[tuple[float, float]], at: list[int], low: float, high: float, most: int
) -> None:
    x, y = arrays(made)
    assert same(rows(binned(x, y, at).view(low, high, most)), brute(x, y, low, high, most) if low <= high else [])


@given(points, most)
def test_no_extreme_and_no_nan_is_lost_and_most_is_kept_to(made: list[tuple[float, float]], most: int) -> None:
    x, y = arrays(made)
    view = binned(x, y).view(most=most)
    assert len(view) <= most
    finite = y[np.isfinite(y)]
    if len(finite):
        assert (np.nanmin(view.low), np.nanmax(view.high)) == (finite.min(), finite.max())
    assert view.nan.any() == (len(finite) < len(y))
    assert (len(view) > most // 2) or len(view) == len(y)  # and it shows as much as it may


@given(st.lists(st.tuples(st.floats(0, 100), values), min_size=1, max_size=300), st.integers(0, 300), most)
def test_appending_never_changes_a_bin_that_is_full(made: list[tuple[float, float]], cut: int, most: int) -> None:
    x, y = arrays(made)
    bins = binned(x[:cut], y[:cut])
    before = rows(bins.view(most=most))
    bins.append(x[cut:], y[cut:])
    after = rows(bins.view(most=most))
    width = 1 if not before else next(1 << k for k in range(20) if -(-min(cut, len(x)) // (1 << k)) <= most)
    if before and next(1 << k for k in range(20) if -(-len(x) // (1 << k)) <= most) == width:
        full = min(cut, len(x)) // width
        assert same(before[:full], after[:full])


def test_a_spike_among_millions_is_seen_at_every_zoom() -> None:
    count = 3_000_000
    y = np.zeros(count)
    y[1_234_567] = 9.0
    bins = binned(np.arange(count, dtype=float), y)
    for half in (2_000_000, 300_000, 4000, 10):
        view = bins.view(1_234_567 - half, 1_234_567 + half, 500)
        assert (view.high.max() == 9.0 and 250 < len(view) <= 500) or half == 10
    assert 1_234_567 in bins.view(1_234_560, 1_234_570, 500).x


def test_a_clock_that_goes_back_stands_still_and_hides_nothing() -> None:
    bins = binned(np.array([1.0, 2.0, 9.0, 3.0, 4.0, 10.0]), np.arange(6.0))
    assert bins.view(most=6).x.tolist() == [1, 2, 9, 9, 9, 10]
    assert bins.view(8.0, 9.5, 6).high.tolist() == [1, 2, 3, 4, 5]


def test_a_zoom_takes_milliseconds_whatever_the_length() -> None:
    count = 2_000_000
    bins = binned(np.arange(count, dtype=float), np.random.default_rng(0).random(count))
    taken = []
    for width in np.geomspace(10, count, 40):
        begin = time.perf_counter()
        bins.view(count / 2 - width / 2, count / 2 + width / 2, 2000)
        taken.append(time.perf_counter() - begin)
    assert np.median(taken) < 0.02


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Bins().view(most=0)
    with pytest.raises(ValueError, match="places"):
        Bins().append(np.zeros(2), np.zeros(3))
    assert len(Bins().view()) == 0
