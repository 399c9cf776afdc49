"""What devices did over time: the same however it is read, in bins that stay few."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import compact, layout
from monitoring.device_history import MOST, WIDTH, DeviceHistory, DeviceTimes
from monitoring.recorder import encode
from monitoring.time_bins import TimeBins
from tests.monitoring.generate import START, Shape, Try, generate

BEGAN = START // WIDTH * WIDTH
SEQ = itertools.count(1000)  # of what is added, in every file
TWO = Shape((Try(0, 60, "node_failure"), Try(30, 90)), world_size=4, layers=())


def say(run: Path, attempt: int, rank: int, *samples: tuple[float, dict[str, float]]) -> None:
    """Let a rank record (seconds since the beginning, metrics)."""
    with layout.rank_records(layout.attempt_folder(run, attempt), rank).open("ab") as file:
        for t, fields in samples:
            file.write(b"".join(encode(next(SEQ), BEGAN + t, "device", fields)))


def same(one: DeviceTimes, other: DeviceTimes) -> bool:
    assert (one.width, one.began, one.ranks, one.nodes) == (other.width, other.began, other.ranks, other.nodes)
    for name in ("times", "mean", "highest", "newest", "average", "peak"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, err_msg=name)
    return True


def test_each_rank_has_its_row_and_the_time_between_attempts_is_empty(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", TWO)
    layout.rank_records(layout.attempt_folder(run, 1), 3).unlink()
    say(run, 0, 0, (0, {"power_w": 100.0}), (32, {"power_w": 300.0}), (64, {"power_w": 50.0}))
    say(run, 0, 1, (64, {"power_w": 70.0, "mine": 1.0}))
    say(run, 1, 0, (256, {"power_w": 80.0, "gpu_util": 0.5}), (300, {"power_w": math.nan}))
    history = DeviceHistory(run)
    found = history.read("power_w")
    assert history.metrics() == ["gpu_util", "power_w"]
    assert (found.width, found.began, found.ranks) == (64.0, START, (0, 1, 2, 3))
    assert found.nodes == ("n2gpu1201", "n2gpu1201", "n2gpu1202", "n2gpu1202")
    assert (found.times - BEGAN).tolist() == [0, 64, 128, 192, 256]
    nan = math.nan
    np.testing.assert_array_equal(found.mean[:2], [[200, 50, nan, nan, 80], [nan, 70, nan, nan, nan]])
    np.testing.assert_array_equal(found.highest[:2], [[300, 50, nan, nan, 80], [nan, 70, nan, nan, nan]])
    assert np.isnan(found.mean[2:]).all() and found.mean.shape == (4, 5)
    np.testing.assert_array_equal(found.newest, [80, 70, nan, nan])
    np.testing.assert_array_equal(found.average, [132.5, 70, nan, nan])
    np.testing.assert_array_equal(found.peak, [300, 70, nan, nan])
    assert np.isnan(history.read("clock_mhz").mean).all()
    nothing = DeviceHistory(generate(tmp_path / "none", TWO)).read("power_w")
    assert nothing.mean.shape == (4, 0) and not len(nothing.times)


seconds = st.one_of(st.integers(0, 400), st.integers(-4000, 200_000), st.sampled_from([-(10**9), 10**12, 3 * 86400]))
said = st.fixed_dictionaries({}, optional={"power_w": st.integers(0, 500), "cpu_cores": st.just(math.nan)})
records = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), seconds, said), max_size=30)


@settings(max_examples=60)
@given(records, st.lists(st.integers(0, 30), max_size=3))
def test_what_is_read_in_pieces_is_what_is_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, int, int, dict[str, float]]], looks: list[int]
) -> None:
    """Whatever a clock says: that of a node may jump."""
    run = tmp_path_factory.mktemp("run")
    for number in (0, 1):
        (folder := layout.attempt_folder(run, number)).mkdir(parents=True)
        info = {"number": number, "world_size": 3, "nodes": ["a"], "began": BEGAN + 1000 * number}
        layout.attempt_info(folder).write_text(json.dumps(info))
    history = DeviceHistory(run)
    for place, (attempt, rank, t, fields) in enumerate(made):
        say(run, attempt, rank, (t, fields))
        if place in looks:
            history.read("power_w")
    found = history.read("power_w")
    assert len(found.times) <= MOST
    # The newest is of the newest attempt that told of any, wherever it was read first.
    assert same(found, DeviceHistory(run).read("power_w"))
    for number in (0, 1):
        info = layout.attempt_info(layout.attempt_folder(run, number))
        info.write_text(json.dumps(json.loads(info.read_text()) | {"action": "requeue"}))
        compact.compact(run, number)
    assert same(found, DeviceHistory(run).read("power_w"))


def test_a_file_that_is_replaced_or_gone_takes_what_it_said_along(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", TWO)
    path = layout.rank_records(layout.attempt_folder(run, 1), 1)
    before = path.read_bytes()
    say(run, 1, 1, (256, {"power_w": 80.0}))
    say(run, 1, 2, (256, {"power_w": 60.0}))
    history = DeviceHistory(run)
    assert history.read("power_w").newest.tolist()[1:3] == [80, 60]
    path.write_bytes(before[:-200])
    say(run, 1, 1, (300, {"power_w": 90.0}), (301, {"power_w": 30.0}))
    found = history.read("power_w")
    assert (found.peak[1], found.average[1], found.peak[2]) == (30, 30, 60)  # one line follows a torn one
    path.unlink()
    assert same(history.read("power_w"), DeviceHistory(run).read("power_w"))


def test_damage_in_what_was_compacted_costs_nothing_but_time(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", TWO)
    for rank in range(4):
        say(run, 0, rank, *((60 * n, {"power_w": 100.0 + n * rank}) for n in range(200)))
    before = DeviceHistory(run).read("power_w")
    compact.compact(run, 0)
    path = layout.attempt_folder(run, 0) / layout.DEVICES_COMPACTED
    text = bytearray(path.read_bytes())
    for place in range(len(text) // 4, len(text) // 2):
        text[place] ^= 0xFF
    path.write_bytes(bytes(text))
    assert same(before, DeviceHistory(run).read("power_w"))


places = st.tuples(st.integers(0, 3), st.integers(-500, 5000), st.floats(-1e3, 1e3) | st.just(math.nan))


@given(st.lists(st.lists(places, max_size=8), max_size=6))
def test_bins_hold_what_fell_into_them(batches: list[list[tuple[int, int, float]]]) -> None:
    bins = TimeBins(4.0, 16)
    for batch in batches:
        for row in range(4):
            own = [(t, value) for at, t, value in batch if at == row]
            bins.add(row, np.array([t for t, _ in own], float), {"x": np.array([value for _, value in own])})
    every = [each for batch in batches for each in batch]
    times = bins.times()
    mean, highest = bins.read("x", [0, 1, 2, 3, None])
    assert len(times) <= 16 and mean.shape == highest.shape == (5, len(times)) and np.isnan(mean[4]).all()
    assert all(times[0] <= t < times[-1] + bins.width for _, t, _ in every)
    for row in range(4):
        own = [(t, value) for at, t, value in every if at == row and not math.isnan(value)]
        for column, begin in enumerate(times):
            inside = [value for t, value in own if begin <= t < begin + bins.width]
            assert mean[row, column] == pytest.approx(np.mean(inside) if inside else math.nan, nan_ok=True, abs=1e-9)
            assert highest[row, column] == pytest.approx(max(inside, default=math.nan), nan_ok=True)
        whole = [value for _, value in own]
        total = (np.mean(whole), max(whole)) if whole else (math.nan, math.nan)
        assert bins.total("x", row) == pytest.approx(total, nan_ok=True, abs=1e-9)
