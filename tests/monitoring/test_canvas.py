"""Curves in characters: no spike is lost, no NaN hides, whatever the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.terminal.canvas import axis, bins, curve, x_labels, y_labels
from monitoring.words import clock, count, duration, figure


def test_one_spike_among_a_million_points_is_drawn_at_the_top() -> None:
    y = np.ones(1_000_000)
    y[654_321] = 100.0
    drawn = curve(np.arange(1_000_000), y, 60, 8)
    assert drawn.high == 100.0 and drawn.low == 1.0
    column = int(654_321 / 1_000_000 * 60)
    assert drawn.rows[0][column] != " " and len(drawn.rows[0].split()) == 1
    assert all(char != " " for char in drawn.rows[-1])


def test_every_bin_holds_its_least_and_its_greatest() -> None:
    x = np.arange(1000)
    y = np.sin(x / 7.0) * x
    found = bins(x, y, 50)
    place = (x * (49 / 999)).round().astype(int)
    for column in range(50):
        mine = y[place == column]
        assert (found.low[column], found.high[column]) == (mine.min(), mine.max())
        assert (found.first[column], found.last[column]) == (mine[0], mine[-1])


def test_a_few_points_are_joined_to_a_line() -> None:
    drawn = curve(np.array([0, 10]), np.array([0.0, 1.0]), 20, 5)
    assert all(any(row[column] != " " for row in drawn.rows) for column in range(20))
    assert drawn.rows[0][-1] != " " and drawn.rows[-1][0] != " "


def test_what_is_not_finite_breaks_the_line_and_is_told() -> None:
    y = np.array([1.0, 1.0, np.nan, 2.0, np.inf, 2.0])
    drawn = curve(np.arange(6), y, 24, 4)
    assert [round(column / 23 * 5) for column in drawn.bad] == [2, 4]
    gap = range(drawn.bad[0] - 3, drawn.bad[0] + 3)
    assert all(row[column] == " " for row in drawn.rows for column in gap)
    assert (drawn.low, drawn.high) == (1.0, 2.0)


def test_a_curve_of_nothing_but_nan_is_empty_and_says_so() -> None:
    drawn = curve(np.arange(3), np.full(3, np.nan), 10, 3)
    assert drawn.rows == (" " * 10,) * 3 and len(drawn.bad) == 3


def test_one_point_and_a_flat_line_lie_in_the_middle() -> None:
    assert curve(np.array([7]), np.array([3.0]), 9, 5).rows[2].strip()
    assert all(char != " " for char in curve(np.arange(5), np.zeros(5), 9, 5).rows[2])
    assert y_labels(3.0, 3.0, 5) == {2: "3.000"}


points = st.lists(st.floats(width=64), max_size=40)


@given(points, st.integers(1, 50), st.integers(1, 20), st.booleans())
def test_any_values_fill_exactly_the_room_given(values: list[float], width: int, height: int, braille: bool) -> None:
    y = np.array(values, dtype=float)
    drawn = curve(np.arange(len(y)), y, width, height, braille=braille)
    assert len(drawn.rows) == height and all(len(row) == width for row in drawn.rows)
    finite = y[np.isfinite(y)]
    assert any(row.strip() for row in drawn.rows) == bool(len(finite))
    if len(finite):
        assert (drawn.low, drawn.high) == (finite.min(), finite.max())
    if len(finite) and finite.min() / 2 < finite.max() / 2:
        assert drawn.rows[0].strip() and drawn.rows[-1].strip()
    if not braille:
        assert all(row.isascii() for row in drawn.rows)
    y_labels(drawn.low, drawn.high, height)


def test_axes_tell_values_where_they_are() -> None:
    assert y_labels(1.0, 3.0, 9) == {0: "3.000", 4: "2.000", 8: "1.000"}
    assert x_labels(1, 290, 20) == "1       146      290"
    assert x_labels(1, 9_000_000, 12) == "1      9.00M"
    assert x_labels(5, 5, 6) == "     5"
    assert axis(0, 10, 11, {5: "1", 20: "9"}) == "─────┴1────"


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (count(None), "?"),
        (count(0), "0"),
        (count(999), "999"),
        (count(999.6), "1.00k"),
        (count(39_600), "39.6k"),
        (count(999_600), "1.00M"),
        (count(123_456_789_012), "123B"),
        (figure(None), "?"),
        (figure(float("nan")), "NaN"),
        (figure(float("-inf")), "-Inf"),
        (figure(0.0), "0"),
        (figure(4.2134), "4.213"),
        (figure(-0.00031), "-0.0003100"),
        (figure(2.5e-5), "2.500e-05"),
        (figure(123456.7), "123457"),
        (duration(None), "?"),
        (duration(41.6), "42s"),
        (duration(59.7), "1:00"),
        (duration(177), "2:57"),
        (duration(3723), "1:02:03"),
        (duration(183_845), "2d 03:04"),
        (duration(-5), "0s"),
    ],
)
def test_figures_read_well(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_a_time_of_another_day_has_its_date() -> None:
    now = 1_763_800_000.0
    assert len(clock(now, now)) == 5 and len(clock(now + 86_400, now)) == 16
