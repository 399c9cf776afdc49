"""Step times of all ranks over the curve, with the node of each; only new bytes are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import compact, layout
from monitoring.findings import Finding, Severity
from monitoring.history import History, undone
from monitoring.ranks import Ranks, parts_told, straggling
from monitoring.recorder import PROTOCOL, encode
from tests.monitoring.generate import BATCH, START, Shape, Try, generate, waits_for_data


def write_rank(run: Path, attempt: int, rank: int, steps: list[int], seconds: float = 1.0) -> None:
    folder = layout.attempt_folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": attempt, "rank": rank, "start": 0.0})
    for step in steps:
        if rank:
            made += encode(len(made), 0.0, "rank", {"step": step, "step_s": seconds + step / 1000})
        else:
            fields = {"step": step, "tokens": step * BATCH, "step_s": seconds + step / 1000}
            made += encode(len(made), 0.0, "step", fields)
    layout.rank_records(folder, rank).write_bytes(b"".join(made))


def test_the_newest_attempt_wins_and_each_rank_has_its_node(tmp_path: Path) -> None:
    found = Ranks(generate(tmp_path / "run")).read()
    assert found.steps.tolist() == list(range(10, 291, 10))
    assert found.attempts.tolist() == [0] * 12 + [1] * 3 + [2] * 14
    assert found.ranks == (0, 1, 2, 3)
    assert found.nodes == ("n2gpu1201", "n2gpu1201", "n2gpu1205", "n2gpu1205")
    assert found.seconds.tolist() == pytest.approx(np.outer([0.85, 0.86, 0.87, 0.88], np.ones(29)))


def test_a_part_of_the_step_shows_who_is_waited_for(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 50),), world_size=4))
    waits_for_data(run, rank=2, seconds=0.31)
    history = History(run)
    history.refresh()
    steps, data = (Ranks(run, history, part).read() for part in ("step_s", "data_s"))
    assert parts_told(history) == ["step_s", "data_s"] and (steps.part, data.part) == ("step_s", "data_s")
    assert (steps.late() == 1).all() and steps.seconds.tolist() == np.ones((4, 5)).tolist()
    for late in (data.late(), data.late(of_run=True)):
        assert late == pytest.approx(np.outer([1, 1, 1.3, 1], np.ones(5)))
    assert data.recent()[1] == pytest.approx([1, 1, 1.3, 1]) and data.recent()[0][2] == 0.31
    nothing = Ranks(run, history, "forward_s").read()
    assert np.isnan(nothing.seconds).all() and np.isnan(nothing.late()).all()


def test_the_part_of_a_straggler_is_that_of_its_finding() -> None:
    slow = Finding("straggler", Severity.warning, "rank 2", "slow", 0.0, about="data")
    assert straggling([Finding("stall", Severity.critical, "x", "y", 0.0), slow]) == "data_s"
    assert straggling([replace(slow, silenced=True), replace(slow, about="what")]) is None


def test_a_rank_that_never_wrote_is_a_row_of_nothing(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 50),), world_size=4))
    layout.rank_records(layout.attempt_folder(run, 0), 3).unlink()
    found = Ranks(run).read()
    assert found.ranks == (0, 1, 2, 3) and np.isnan(found.seconds[3]).all() and not np.isnan(found.seconds[:3]).any()


def test_ranks_that_are_behind_have_no_value_yet_and_later_get_it(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, 0, list(range(1, 41)))
    write_rank(tmp_path, 0, 1, [10, 20, 30, 40])
    write_rank(tmp_path, 0, 2, [10, 20])
    ranks = Ranks(tmp_path)
    found = ranks.read()
    assert found.steps.tolist() == [10, 20, 30, 40]
    assert np.isnan(found.seconds[2]).tolist() == [False, False, True, True]
    write_rank(tmp_path, 0, 2, [10, 20, 30, 40])
    assert not np.isnan(ranks.read().seconds).any()


def test_one_rank_alone_shows_all_its_steps(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, 0, list(range(1, 8)))
    found = Ranks(tmp_path).read()
    assert found.steps.tolist() == list(range(1, 8)) and found.ranks == (0,) and found.nodes == ("",)


def test_what_was_done_again_is_left_out_within_an_attempt_too(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, 0, [*range(1, 41), *range(15, 31)])
    write_rank(tmp_path, 0, 1, [10, 20, 30, 40, 20, 30], 2.0)
    found = Ranks(tmp_path).read()
    assert found.steps.tolist() == [10, 20, 30]
    assert found.seconds[1].tolist() == [2.01, 2.02, 2.03]


def test_a_history_that_is_kept_fresh_elsewhere_is_not_read_twice(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    history = History(run)
    ranks = Ranks(run, history)
    assert not len(ranks.read().steps)
    history.refresh()
    assert len(ranks.read().steps) == 29


def test_damaged_and_strange_values_are_passed_over(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, 0, [10, 20])
    write_rank(tmp_path, 0, 1, [10])
    lines = ['{"seq":2,"t":0,"kind":"rank","step":"x","step_s":1.0}', '{"seq":3,"t":0,"kind":"rank","step":20}', "{"]
    with layout.rank_records(layout.attempt_folder(tmp_path, 0), 1).open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.write('{"seq":4,"t":0,"kind":"rank","step":20,"step_s":"NaN"}\n')
    (layout.attempt_folder(tmp_path, 0) / layout.ATTEMPT_INFO).write_text(
        json.dumps({"nodes": ["a", "b", "c"], "world_size": 2})
    )
    found = Ranks(tmp_path).read()
    assert found.steps.tolist() == [10, 20] and np.isnan(found.seconds[1]).tolist() == [False, True]
    assert found.nodes == ("", "")  # two ranks on three nodes: nobody knows


@given(st.lists(st.integers(0, 20), max_size=30), st.none() | st.integers(0, 20))
def test_undone_is_what_a_later_row_or_attempt_did_again(steps: list[int], cut: int | None) -> None:
    expected = [
        any(later <= step for later in steps[i + 1 :]) or (cut is not None and step > cut)
        for i, step in enumerate(steps)
    ]
    assert undone(np.array(steps, np.int64), cut).tolist() == expected


@pytest.mark.parametrize("compacted", [False, True])
def test_records_that_a_rank_could_not_write_are_told_of_by_who_reads_its_file(tmp_path: Path, compacted: bool) -> None:
    run = generate(tmp_path / "run")
    path = layout.rank_records(layout.attempt_folder(run, 0), 2)
    with path.open("ab") as file:
        file.write(b"".join(encode(9999, START, "dropped", {"count": 7000, "error": "disk full"})))
    if compacted:
        compact.compact(run, 0)
    history = History(run)
    history.refresh()
    assert history.problems() == []
    Ranks(run, history).read()
    assert history.problems() == ["attempt 0: 7000 records of rank 2 could not be written"]


def test_files_of_ranks_that_cannot_be_read_are_told_of_and_keep_nothing_else_from_being_compacted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 50, "time_limit"), Try(50, 60)), world_size=9))
    paths = [layout.rank_records(layout.attempt_folder(run, 0), rank) for rank in range(9)]
    paths[1].write_bytes(encode(0, START, "header", {"protocol": PROTOCOL + 1, "start": START})[0])
    paths[2].write_bytes(paths[1].read_bytes())
    paths[3].unlink()
    paths[3].symlink_to(paths[3].name)
    for path in paths[4:]:
        path.write_bytes(path.read_bytes() + b'garbage\n{"seq":999,"t":1.0,"kind":"rank","step":"three"}\n')
    history = History(run)
    history.refresh()
    assert history.problems() == []
    before = Ranks(run, history).read()
    told = [
        "attempt 0: records of ranks 1, 2 have protocol 2, this reads up to 1",
        "attempt 0: records of rank 3: Too many levels of symbolic links",
        "attempt 0: 10 damaged lines of ranks 4, 5, 6 and 2 more skipped",
    ]
    assert history.problems() == told
    assert compact.main([str(run)]) == 1
    said = capsys.readouterr().err
    assert "attempt 0: ranks.parquet is without rank-1.jsonl, of a newer protocol; rank-2.jsonl" in said
    assert "rank-3.jsonl, Too many levels of symbolic links" in said
    assert {path.name for path in paths[0].parent.glob("*.parquet")} == {
        *(layout.RANKS_COMPACTED, layout.EXPERTS_COMPACTED, layout.STEPS_COMPACTED)
    }
    again = History(run)
    again.refresh()
    after = Ranks(run, again).read()
    assert np.array_equal(before.seconds, after.seconds, equal_nan=True) and np.isfinite(after.seconds[4:]).any()
    assert again.problems() == told
