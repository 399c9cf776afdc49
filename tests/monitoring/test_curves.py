"""Curves over each axis, smoothed, zoomed and with their ghosts, as a growing history has them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import layout
from monitoring.curves import Curves, Smoothing
from monitoring.history import History
from tests.monitoring.generate import BATCH, Shape, Try, generate
from tests.monitoring.test_history import rewound, steps, write


def curves(run: Path) -> Curves:
    history = History(run)
    history.refresh()
    return Curves(history)


def test_a_curve_is_the_history_s_and_what_was_lost_are_its_ghosts(tmp_path: Path) -> None:
    found = curves(generate(tmp_path / "run"))
    assert found.names()[:2] == ["loss", "lr"]
    view = found.view("loss", most=1000)
    assert view.x.tolist() == list(range(1, 291))
    assert view.low.tolist() == view.high.tolist() == found.history.series("loss").values.tolist()
    assert found.view("validation_loss").x.tolist() == [50, 100, 150, 200, 250]
    (ghost,) = found.ghosts("loss")
    assert ghost.attempt == 1 and ghost.curve.x.tolist() == list(range(151, 202))
    assert not len(found.view("unheard_of"))


def test_the_axes_are_steps_tokens_and_hours(tmp_path: Path) -> None:
    records = steps(1, 2, 3, 4)
    for record, t in zip(records, (100.0, 3700.0, 1800.0, 5400.0), strict=True):  # the clock is set back after step 2
        record[2]["loss"] = 1.0
        records[records.index(record)] = (record[0], t, record[2])
    write(tmp_path, 0, records)
    write(tmp_path, 1, [("step", 9000.0, {"step": 4, "tokens": 4 * BATCH, "loss": 1.0})])
    found = curves(tmp_path)
    assert found.view("loss", "tokens").x.tolist() == [BATCH, 2 * BATCH, 3 * BATCH, 4 * BATCH]
    assert found.view("loss", "hours").x.tolist() == [0.0, 1.0, 1.0, 3.0]  # with the pause between attempts
    assert found.ghosts("loss", "hours")[0].curve.x.tolist() == [2.0]
    with pytest.raises(ValueError, match="one of: step, tokens, hours"):
        found.view("loss", "days")


def averaged(values: list[float], weight: float) -> list[float]:
    found, mean, count = [], 0.0, 0
    for value in values:
        if math.isfinite(value):
            mean, count = weight * mean + (1 - weight) * value, count + 1
            found.append(mean / (1 - weight**count))
        else:
            found.append(value)
    return found


@given(
    st.lists(st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf]), max_size=200),
    st.sampled_from([0.0, 0.01, 0.3, 0.9, 0.999]),
    st.integers(0, 200),
)
def test_smoothing_is_the_corrected_moving_average_however_it_is_fed(
    values: list[float], weight: float, cut: int
) -> None:
    smooth = Smoothing(weight)
    found = np.concatenate([smooth(np.array(values[:cut])), smooth(np.array(values[cut:]))])
    assert found.tolist() == pytest.approx(averaged(values, weight), rel=1e-6, abs=1e-6, nan_ok=True)


def test_smoothing_of_a_constant_is_that_constant_over_many_blocks() -> None:
    assert Smoothing(0.05)(np.full(10_000, 3.0)) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="below 1"):
        Smoothing(1.0)


@given(st.lists(st.integers(0, 5000), max_size=8), st.sampled_from(["step", "tokens", "hours"]), st.integers(2, 40))
def test_a_curve_that_grows_is_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], axis: str, most: int
) -> None:
    source, run = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("run")
    generate(source, Shape(tries=(Try(0, 30), Try(15, 28), Try(20, 33)), files=False, layers=(), world_size=1))
    history = History(run)
    growing = Curves(history)
    for number in layout.attempt_numbers(source):
        text = layout.rank_records(layout.attempt_folder(source, number), 0).read_bytes()
        folder = layout.attempt_folder(run, number)
        folder.mkdir(parents=True)
        begin = 0
        for end in [*sorted(cuts), len(text)]:
            with layout.rank_records(folder, 0).open("ab") as file:
                file.write(text[begin : max(begin, end)])
            begin = max(begin, min(end, len(text)))
            history.refresh()
            growing.view("loss", axis, most=most, smoothing=0.5)
    one = growing.view("loss", axis, most=most, smoothing=0.5)
    other = curves(source).view("loss", axis, most=most, smoothing=0.5)
    for field in ("x", "low", "high", "nan"):
        assert getattr(one, field) == pytest.approx(getattr(other, field))


def test_a_rewind_takes_the_lost_steps_out_of_the_curve(tmp_path: Path) -> None:
    write(tmp_path, 0, steps(*range(1, 11)))
    found = curves(tmp_path)
    assert len(found.view("loss")) == 10
    write(tmp_path, 0, steps(*range(1, 11)) + rewound(4) + steps(5, 6))
    found.history.refresh()
    assert found.view("loss").x.tolist() == [1, 2, 3, 4, 5, 6]
    assert [ghost.curve.x.tolist() for ghost in found.ghosts("loss")] == [[5, 6, 7, 8, 9, 10]]


def test_of_many_smoothings_one_is_kept(tmp_path: Path) -> None:
    found = curves(generate(tmp_path / "run"))
    for weight in (0.0, 0.5, 0.6, 0.7, 0.0):
        found.view("loss", smoothing=weight)
    assert sorted(weight for _, _, weight in found._curves) == [0.0, 0.7]


def test_of_a_name_that_nobody_recorded_nothing_is_kept(tmp_path: Path) -> None:
    found = curves(tmp_path)
    write(tmp_path, 0, steps(1, 2))
    assert all(len(found.view(f"no{n}", smoothing=0.5)) == 0 for n in range(5)) and not found._curves
    found.history.refresh()
    assert len(found.view("loss")) == 2 and len(found._curves) == 1
