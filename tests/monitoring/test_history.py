"""Attempts joined into one history: the curve of an uninterrupted run, and every lost step counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import layout
from monitoring.frames import load, sql
from monitoring.history import History
from monitoring.reader import Reader
from monitoring.recorder import PROTOCOL, encode
from tests.monitoring.generate import BATCH, Shape, Try, generate, loss


def write(run: Path, attempt: int, records: list[tuple[str, float, dict[str, Any]]]) -> Path:
    """One attempt's records of rank 0 as (kind, wall time, fields)."""
    folder = layout.attempt_folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": attempt, "rank": 0, "start": 0.0})
    for kind, t, fields in records:
        made += encode(len(made), t, kind, fields)
    layout.rank_records(folder, 0).write_bytes(b"".join(made))
    return folder


def steps(*numbers: int, **metrics: float) -> list[tuple[str, float, dict[str, Any]]]:
    return [("step", float(n), {"step": n, "tokens": n * BATCH, "loss": loss(n), **metrics}) for n in numbers]


@st.composite
def interrupted(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Attempts as (checkpoint resumed from, last step); each resumes from a step that was reached, or anew."""
    reached, kept = 0, []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, reached))
        end = start + draw(st.integers(0, 15))
        kept.append((start, end))
        reached = end if end > start else start
    return kept


@given(interrupted(), st.booleans())
def test_the_history_is_that_of_a_run_which_was_never_interrupted(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]], told: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    done: list[int] = []  # the steps that count, as an exact replay would have them
    made = 0
    for number, (start, end) in enumerate(attempts):
        resumed = [("event", 0.0, {"event": "resumed", "fields": {"step": start}})] if told else []
        write(run, number, resumed + steps(*range(start + 1, end + 1)))
        if told or end > start:  # an attempt that recorded nothing at all goes back nowhere
            done = done[:start] + list(range(start + 1, end + 1))
        made += end - start
    history = History(run)
    history.refresh()
    frame = history.frame()
    assert frame["step"].tolist() == done
    assert frame["tokens"].tolist() == [step * BATCH for step in done]
    assert (frame["loss"].tolist() if done else []) == [loss(step) for step in done]
    assert history.lost_steps == made - len(done) == len(history.lost_frame())
    owner = {s: n for n, (start, end) in enumerate(attempts) for s in range(start + 1, end + 1)}
    assert frame["attempt"].tolist() == [owner[step] for step in done]  # the last attempt wins
    assert history.series("loss").steps.tolist() == done


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4000), max_size=10))
def test_reading_by_increments_gives_what_reading_at_once_gives(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    source, run = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("run")
    shape = Shape(tries=(Try(0, 12), Try(5, 9), Try(8, 20)), files=False, layers=(2,), world_size=1)
    generate(source, shape)
    history = History(run)
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
    whole = load(source).history
    assert history.frame().equals(whole)
    assert whole["step"].tolist() == list(range(1, 21))


def test_lost_work_is_kept_beside_the_curve(tmp_path: Path) -> None:
    write(tmp_path, 0, steps(*range(1, 111)))
    write(tmp_path, 1, steps(101, 102, 103))
    frames = load(tmp_path)
    assert frames.history["step"].tolist() == list(range(1, 104))
    assert frames.lost["step"].tolist() == list(range(101, 111))
    assert frames.attempts["lost_steps"].tolist() == [10, 0]
    assert frames.attempts["resumed_from"].tolist() == [0, 100]


def test_a_fallback_to_an_older_checkpoint_reaches_over_several_attempts(tmp_path: Path) -> None:
    write(tmp_path, 0, steps(*range(1, 111)))
    write(tmp_path, 1, steps(*range(101, 121)))
    write(tmp_path, 2, steps(*range(51, 61)))
    history = History(tmp_path)
    history.refresh()
    assert history.last is not None and history.last[0] == 60
    assert [stretch.lost for stretch in history.stretches()] == [60, 20, 0]


def test_an_attempt_that_goes_back_by_itself_is_joined_alike(tmp_path: Path) -> None:
    write(tmp_path, 0, steps(*range(1, 31)) + steps(*range(21, 41)))
    frames = load(tmp_path)
    assert frames.history["step"].tolist() == list(range(1, 41))
    assert frames.attempts["lost_steps"].tolist() == [10]


def rewound(to_step: int) -> list[tuple[str, float, dict[str, Any]]]:
    return [("event", 0.0, {"event": "rewound", "fields": {"to_step": to_step, "skipped": [8, 16]}})]


def test_a_rewind_by_a_single_step_keeps_the_later_record_whole(tmp_path: Path) -> None:
    before, after = steps(1, 2, 3), steps(3, 4)
    before[-1][2]["spiked"] = 1.0  # a metric that only the first record of the step has
    write(tmp_path, 0, before + rewound(2) + [(kind, t + 100, fields) for kind, t, fields in after])
    frames = load(tmp_path)
    assert frames.history["step"].tolist() == [1, 2, 3, 4]
    assert frames.history["t"].tolist() == [1.0, 2.0, 103.0, 104.0]
    assert frames.history["spiked"].isna().tolist() == [True] * 4
    assert frames.lost["step"].tolist() == [3]


def test_a_rewind_is_seen_before_its_first_step_and_one_to_the_same_step_may_follow(tmp_path: Path) -> None:
    write(tmp_path, 0, steps(*range(1, 11)) + rewound(4))
    history = History(tmp_path)
    history.refresh()
    assert history.last is not None and history.last[0] == 4
    assert history.lost_steps == 6
    write(tmp_path, 0, steps(*range(1, 11)) + rewound(4) + steps(5, 6) + rewound(4) + steps(5, 6, 7, 8))
    write(tmp_path, 1, steps(7))
    frames = load(tmp_path)
    assert frames.history["step"].tolist() == list(range(1, 8))
    assert frames.attempts["lost_steps"].tolist() == [10, 0]
    assert frames.attempts["resumed_from"].tolist() == [0, 6]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8)), max_size=6))
def test_any_rewinds_leave_the_curve_of_a_run_that_never_went_back(
    tmp_path_factory: pytest.TempPathFactory, rewinds: list[tuple[int, int]]
) -> None:
    run = tmp_path_factory.mktemp("run")
    records, done, made = steps(1, 2, 3), [1, 2, 3], 3
    for back, more in rewinds:
        start = max(0, len(done) - back)
        ahead = list(range(start + 1, start + more + 1))
        records += rewound(start) + steps(*ahead)
        done, made = done[:start] + ahead, made + more
    write(run, 0, records)
    frames = load(run)
    assert frames.history["step"].tolist() == done
    assert len(frames.lost) == made - len(done)


def test_nan_infinity_and_missing_are_three_things(tmp_path: Path) -> None:
    write(
        tmp_path,
        0,
        [
            ("step", 1.0, {"step": 1, "tokens": 1, "loss": 2.0}),
            ("step", 2.0, {"step": 2, "tokens": 2, "loss": math.nan}),
            ("step", 3.0, {"step": 3, "tokens": 3, "loss": math.inf, "validation_loss": 1.5}),  # a late key
            ("step", 4.0, {"step": 4, "tokens": 4}),
        ],
    )
    frame = load(tmp_path).history
    assert frame["loss"].isna().tolist() == [False, False, False, True]
    assert math.isnan(frame["loss"].array[1]) and frame["loss"].array[2] == math.inf
    assert frame["validation_loss"].isna().tolist() == [True, True, False, True]
    history = History(tmp_path)
    history.refresh()
    assert history.series("loss").steps.tolist() == [1, 2, 3]
    assert history.latest() == {"loss": math.inf, "validation_loss": 1.5}


def test_a_metric_called_like_a_column_does_not_take_its_place(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, [("step", 1.0, {"step": 1, "tokens": 8, "attempt": 7.0, "rank": 5.0, "loss": 1.0})])
    summary = {"step": 1, "step_s": 0.5, "attempt": 7.0, "rank": 5.0}
    header = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": 1, "rank": 3, "start": 0.0})
    layout.rank_records(folder, 3).write_bytes(b"".join(header + encode(1, 1.0, "rank", summary)))
    frames = load(tmp_path)
    assert frames.history.to_dict("records") == [
        {"step": 1, "tokens": 8, "attempt": 1, "t": 1.0, "rank": 5.0, "loss": 1.0}
    ]
    assert frames.ranks.to_dict("records") == [{"attempt": 1, "rank": 3, "step": 1, "t": 1.0, "step_s": 0.5}]


def test_what_a_later_writer_adds_to_the_loads_of_experts_is_no_damage(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, steps(1))
    fields = {"step": 1, "layers": {2: [3, 4]}, "entropy": {2: 0.6}, "dropped": {2: 1}}
    (line,) = encode(0, 1.0, "experts", fields)
    line = orjson.dumps(orjson.loads(line) | {"something": [1, 2]}) + b"\n"
    layout.experts_records(folder).write_bytes(line)
    history = History(tmp_path)
    history.refresh()
    assert history.experts() == {2: (1, [3, 4])}
    assert history.problems() == []


def test_a_step_split_over_lines_is_one_row(tmp_path: Path) -> None:
    many = {f"expert_{n}_of_a_layer_with_a_long_name": float(n) for n in range(200)}
    write(tmp_path, 0, steps(1, **many) + steps(2))
    frame = load(tmp_path).history
    assert frame["step"].tolist() == [1, 2]
    assert frame["expert_199_of_a_layer_with_a_long_name"].array[0] == 199.0


def test_the_speed_is_of_the_current_attempt_and_no_pause_or_clock_moves_it(tmp_path: Path) -> None:
    times = np.cumsum([0.0] + [0.5] * 40)
    times[20:] += 30.0  # a checkpoint
    times[30:] -= 7200.0  # the clock was set back
    records = [("step", t, {"step": n, "tokens": n * 1000}) for n, t in enumerate(times.tolist(), 1)]
    write(tmp_path, 0, records)
    history = History(tmp_path)
    history.refresh()
    assert history.tokens_per_s() == pytest.approx(2000.0)
    write(tmp_path, 1, [("step", 9e4, {"step": 42, "tokens": 42_000})])
    history.refresh()
    assert history.tokens_per_s() is None  # one step shows no speed, and another attempt's is not this one's


def test_what_is_damaged_dropped_or_newer_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, [*steps(1, 2), ("dropped", 3.0, {"count": 7, "error": "disk full"})])
    with layout.rank_records(folder, 0).open("ab") as file:
        file.write(b'garbage\n{"seq":9,"t":1.0,"kind":"step","step":"three"}\n{"seq":10,"t":1.0,"kind":"unheard"}\n')
    newer = layout.attempt_folder(tmp_path, 1)
    newer.mkdir()
    header = {"seq": 0, "t": 0.0, "kind": "header", "protocol": PROTOCOL + 1}
    layout.rank_records(newer, 0).write_bytes(orjson.dumps(header) + b"\n")
    history = History(tmp_path)
    history.refresh()
    assert history.problems() == [
        "attempt 0: 2 damaged lines skipped",
        "attempt 0: 7 records could not be written",
        f"attempt 1: rank-0.jsonl has protocol {PROTOCOL + 1}, this reads up to {PROTOCOL}",
    ]
    assert history.frame()["step"].tolist() == [1, 2]


def test_loads_of_experts_that_could_not_be_written_are_told_of(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, steps(1, 2))
    lines = encode(0, 0.0, "header", {"protocol": PROTOCOL})
    lines += encode(1, 1.0, "experts", {"step": 1, "layers": {2: [1]}})
    lines += encode(2, 2.0, "dropped", {"count": 5000, "error": "disk full"})
    layout.experts_records(folder).write_bytes(b"".join(lines))
    history = History(tmp_path)
    history.refresh()
    assert history.problems() == ["attempt 0: 5000 records of experts could not be written"]
    layout.experts_records(folder).write_bytes(lines[0] + lines[2].replace(b"5000", b"1"))
    history.refresh()
    assert history.problems() == ["attempt 0: 1 record of experts could not be written"]


def test_all_ranks_and_all_loads_are_there_for_those_who_ask(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape())
    layout.rank_records(layout.attempt_folder(run, 1), 2).unlink()  # a rank that never came to write
    frames = load(run)
    assert set(frames.ranks["rank"]) == {1, 2, 3}
    assert frames.ranks.query("rank == 2")["attempt"].unique().tolist() == [0, 2]
    assert frames.ranks.query("rank == 3 and step == 120")["step_s"].tolist() == [pytest.approx(0.88)]
    loads = frames.experts.query("attempt == 2 and step == 290 and layer == 4")
    assert loads["expert"].tolist() == list(range(16))
    history = History(run)
    history.refresh()
    assert history.experts()[4] == (290, loads["tokens"].tolist())


def test_the_lowest_and_the_highest_integer_are_steps_like_others(tmp_path: Path) -> None:
    ends = [-(1 << 63), (1 << 63) - 1]
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 1), Try(1, 2)), layers=()))
    for attempt in range(2):
        write(run, attempt, [("step", 1.0, {"step": n, "tokens": 1, "step_s": 1.0}) for n in ends])
    frames = load(run)
    assert Reader(run).read(now=10.0).step == ends[1]
    assert frames.history["step"].tolist() == ends and frames.history["attempt"].tolist() == [1, 1]
    assert len(sql(frames, "select * from attempts")) == 2


def test_no_attempt_and_no_record_are_an_empty_history(tmp_path: Path) -> None:
    assert load(tmp_path).history.empty and load(tmp_path).attempts.empty and load(tmp_path).ranks.empty
    layout.attempt_folder(tmp_path, 0).mkdir(parents=True)
    frames = load(tmp_path)
    assert list(frames.history) == ["step", "tokens", "attempt", "t"] and frames.history.empty
    assert frames.attempts["number"].tolist() == [0]
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_load_of_which_the_beginning_was_not_read_is_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, 0, steps(1))
    made = encode(0, 0.0, "experts", {"step": 1, "layers": {2: list(range(600))}})
    assert len(made) == 3
    monkeypatch.setattr("monitoring.history._EXPERTS_TAIL", len(made[1] + made[2]) + 10)
    layout.experts_records(folder).write_bytes(b"".join(made))
    history = History(tmp_path)
    history.refresh()
    assert history.experts() == {}
    more = encode(3, 0.0, "experts", {"step": 2, "layers": {2: list(range(600))}})
    with layout.experts_records(folder).open("ab") as file:
        file.write(b"".join(more))
    history.refresh()
    assert history.experts() == {2: (2, list(range(600)))}
