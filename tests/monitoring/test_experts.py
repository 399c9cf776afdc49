"""Loads of experts by layer, over the curve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from monitoring import layout
from monitoring.experts import Experts
from monitoring.recorder import PROTOCOL, encode
from tests.monitoring.generate import Shape, generate, load


def write_experts(run: Path, attempt: int, *made: dict) -> Path:
    folder = layout.attempt_folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    lines = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": attempt, "rank": 0, "start": 0.0})
    for fields in made:
        lines += encode(len(lines), 0.0, "experts", fields)
    layout.experts_records(folder).write_bytes(b"".join(lines))
    first = [{"step": fields["step"], "tokens": 1} for fields in made]
    steps = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": attempt, "rank": 0, "start": 0.0})
    for fields in first:
        steps += encode(len(steps), 0.0, "step", fields)
    layout.rank_records(folder, 0).write_bytes(b"".join(steps))
    return folder


def test_each_layer_over_the_curve_as_shares_of_the_fair_load(tmp_path: Path) -> None:
    experts = Experts(generate(tmp_path / "run", Shape()))
    assert experts.layers() == [2, 4]
    found = experts.read(4)
    assert found.steps.tolist() == list(range(10, 291, 10))  # the steps that the third attempt did again come once
    tokens = np.array(load(150, 4, 16))
    assert found.share[14].tolist() == pytest.approx((tokens / tokens.mean()).tolist())
    assert np.isnan(found.entropy).all() and np.isnan(found.dropped).all()
    empty = experts.read(7)
    assert (empty.steps.shape, empty.share.shape) == ((0,), (0, 0))


def test_entropy_and_dropped_rows_come_with_it_nan_and_missing_alike(tmp_path: Path) -> None:
    write_experts(
        tmp_path,
        0,
        {"step": 1, "layers": {2: [3, 1]}, "entropy": {2: 0.6}, "dropped": {2: 4}},
        {"step": 2, "layers": {2: [0, 0]}, "entropy": {2: math.nan}},
    )
    found = Experts(tmp_path).read(2)
    assert found.share.tolist() == [[1.5, 0.5], [0, 0]]
    assert found.entropy[0] == 0.6 and math.isnan(found.entropy[1])
    assert found.dropped[0] == 4 and math.isnan(found.dropped[1])


def test_a_layer_of_many_experts_is_put_together_and_a_torn_beginning_is_left_out(tmp_path: Path) -> None:
    folder = write_experts(tmp_path, 0, *({"step": s, "layers": {1: [s] * 600}} for s in (1, 2, 3)))
    lines = layout.experts_records(folder).read_bytes().splitlines(keepends=True)
    del lines[4]  # the beginning of step 2
    layout.experts_records(folder).write_bytes(b"".join(lines))
    found = Experts(tmp_path).read(1)
    assert found.steps.tolist() == [1, 3] and found.share.shape == (2, 600) and (found.share == 1).all()


def test_a_number_of_experts_that_changed_leaves_gaps(tmp_path: Path) -> None:
    write_experts(tmp_path, 0, {"step": 1, "layers": {1: [1, 3]}}, {"step": 2, "layers": {1: [1, 2, 3]}})
    write_experts(tmp_path, 1, {"step": 3, "layers": {1: [2, 2, 2, 2]}})
    found = Experts(tmp_path).read(1)
    assert found.share.shape == (3, 4)
    assert np.isnan(found.share).tolist() == [[False] * 2 + [True] * 2, [False] * 3 + [True], [False] * 4]
    assert found.share[0, :2].tolist() == [0.5, 1.5]


def test_new_lines_are_taken_and_garbage_is_not(tmp_path: Path) -> None:
    folder = write_experts(tmp_path, 0, {"step": 1, "layers": {1: [1]}})
    experts = Experts(tmp_path)
    assert experts.read(1).steps.tolist() == [1]
    good = encode(10, 0.0, "experts", {"step": 2, "layers": {1: [1], 5: [2]}})
    bad = b'{"seq":9,"t":0,"kind":"experts","step":3,"layer":1,"first":0,"load":[1,"x"]}\n'
    with layout.experts_records(folder).open("ab") as file:
        file.write(bad + b"".join(good))
    assert experts.read(1).steps.tolist() == [1, 2] and experts.layers() == [1, 5]
