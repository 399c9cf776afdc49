"""Compacted attempts read as their records do, only while these are what they were, and never instead of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import compact, compacted, energy, frames, layout, load, sql
from monitoring.experts import Experts
from monitoring.history import History
from monitoring.ranks import Ranks
from monitoring.recorder import PROTOCOL, encode
from tests.monitoring.generate import BATCH, START, Shape, Try, generate

NAMES = (layout.RANKS_COMPACTED, layout.DEVICES_COMPACTED, layout.EXPERTS_COMPACTED, layout.STEPS_COMPACTED)


def close(run: Path, number: int, **more: Any) -> None:
    path = layout.attempt_info(layout.attempt_folder(run, number))
    path.write_text(json.dumps({"number": number, "action": "requeue", **more}))


def write(run: Path, number: int, records: list[tuple[str, dict[str, Any]]]) -> Path:
    folder = layout.attempt_folder(run, number)
    folder.mkdir(parents=True, exist_ok=True)
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": number, "rank": 0, "start": 0.0})
    for kind, fields in records:
        made += encode(len(made), float(len(made)), kind, fields)
    layout.rank_records(folder, 0).write_bytes(b"".join(made))
    close(run, number)
    return folder


def everything(run: Path) -> dict[str, Any]:
    """All that readers make of a run."""
    history = History(run)
    history.refresh()
    frames, times, experts = load(run), Ranks(run).read(), Experts(run)
    return {
        "curve": history.frame(),
        "lost": history.lost_frame(),
        "names": history.names(),
        "ranks": frames.ranks,
        "devices": frames.devices,
        "energy": energy.of_run(run),
        "experts": frames.experts,
        "attempts": frames.attempts,
        "problems": history.problems(),
        "events": [attempt.events for attempt in history.attempts],
        "header": [attempt.header for attempt in history.attempts],
        "times": (times.steps.tolist(), times.ranks, times.nodes, np.nan_to_num(times.seconds, nan=-1).tolist()),
        "loads": {layer: np.nan_to_num(experts.read(layer).share, nan=-1).tolist() for layer in experts.layers()},
    }


def sampled(run: Path) -> None:
    """Let three ranks of two attempts tell of their devices each minute, one of them of less."""
    for number in layout.attempt_numbers(run)[:2]:
        for rank in (0, 1, 3):
            said = {"power_w": 300.0, "memory_gib": 2.5} if rank < 3 else {"memory_gib": math.nan, "mine": 1.0}
            made = [
                encode(1000 + n, START + 60 * n, "device", {**said, "n": n})
                for n in range(5 + 3 * (rank == 1 > number))
            ]
            with layout.rank_records(layout.attempt_folder(run, number), rank).open("ab") as file:
                file.write(b"".join(line for each in made for line in each))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    for name, value in one.items():
        found = other[name]
        if hasattr(value, "equals"):
            assert list(value) == list(found), name
            for column in value:
                a, b = value[column].array, found[column].array
                assert a.isna().tolist() == b.isna().tolist() if hasattr(a, "isna") else True
                assert str(a.tolist()) == str(b.tolist()), (name, column)  # NaN is equal to itself there
        else:
            assert value == found, name
    return True


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "parquet" in path.name}


def test_a_compacted_run_reads_as_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = generate(tmp_path / "run")
    sampled(run)
    before = everything(run)
    assert (len(before["devices"]), before["energy"]) == (33, pytest.approx(19 * 300 * 60 / 3.6e6))
    for number in compact.ended(run):
        assert compact.compact(run, number) == [*NAMES]
        assert compact.compact(run, number) == []
        assert names(layout.attempt_folder(run, number)) == {*NAMES}
    assert compact.ended(run) == [0, 1]
    taken = []
    opened = compacted.opened
    monkeypatch.setattr(compacted, "opened", lambda *args: taken.append(opened(*args)) or taken[-1])
    assert same(before, everything(run))
    assert len(taken) > 8 and all(taken[:2])  # and it was Parquet that was read


values = st.floats(allow_nan=True, allow_infinity=True) | st.none()
records = st.lists(st.tuples(st.integers(1, 12), st.dictionaries(st.sampled_from("abc"), values)), max_size=25)


@settings(max_examples=30)
@given(records, st.lists(st.integers(0, 25), max_size=2), st.integers(-1, 12))
def test_any_records_survive_with_nan_distinct_from_missing(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, dict[str, Any]]], rewinds: list[int], resumed: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    lines: list[tuple[str, dict[str, Any]]] = []
    if resumed >= 0:
        lines.append(("event", {"event": "resumed", "fields": {"step": resumed}}))
    for step, metrics in made:
        known = {name: value for name, value in metrics.items() if value is not None}
        lines.append(("step", {"step": step, "tokens": step * BATCH, **known}))
        lines.append(("rank", {"step": step, "step_s": 0.5, **known}))
        lines.append(("device", known))
    for place in rewinds:
        lines.insert(min(place, len(lines)), ("event", {"event": "rewound", "fields": {"to_step": 3}}))
    folder = write(run, 0, lines)
    before = everything(run)
    compact.compact(run, 0)
    assert layout.STEPS_COMPACTED in names(folder)
    assert same(before, everything(run))


def test_what_comes_after_is_read_from_the_records(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, [("step", {"step": s, "tokens": s, "loss": 1.0}) for s in (1, 2, 3)])
    compact.compact(tmp_path, 0)
    late = encode(9, 9.0, "step", {"step": 4, "tokens": 4, "loss": 2.0})
    with layout.rank_records(folder, 0).open("ab") as file:
        file.write(b"".join(late))
    history = History(tmp_path)
    history.refresh()
    assert history.series("loss").steps.tolist() == [1, 2, 3, 4]


def test_the_frames_have_what_came_after_too(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    folder = layout.attempt_folder(run, 0)
    compact.compact(run, 0)
    late = encode(9999, START + 500, "rank", {"step": 999, "step_s": 1.5, "data_s": 0.5})
    for rank in (0, 1, 9):  # without a row in the Parquet file, with some, and not known to it
        with layout.rank_records(folder, rank).open("ab") as file:
            file.write(b"".join(late))
    with layout.experts_records(folder).open("ab") as file:
        file.write(b"".join(encode(9999, START + 500, "experts", {"step": 130, "layers": {2: [1] * 16, 6: [2] * 4}})))
    found = everything(run)
    assert found["ranks"]["rank"][found["ranks"]["step"] == 999].tolist() == [0, 1, 9]
    assert set(found["experts"]["layer"][found["experts"]["step"] == 130]) >= {2, 6}
    (folder / layout.RANKS_COMPACTED).unlink()
    (folder / layout.EXPERTS_COMPACTED).unlink()
    assert same(found, everything(run))


@pytest.mark.parametrize("change", ["head", "tail", "shorter", "gone"])
def test_parquet_of_other_records_is_not_taken(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path, 0, [("step", {"step": s, "tokens": s, "loss": 1.0}) for s in range(1, 30)])
    compact.compact(tmp_path, 0)
    path = layout.rank_records(folder, 0)
    text = path.read_bytes()
    if change == "head":
        path.write_bytes(text.replace(b'"attempt":0', b'"attempt":7', 1))
    elif change == "tail":
        path.write_bytes(text.replace(b'"step":29', b'"step":33'))
    elif change == "shorter":
        path.write_bytes(b"".join(text.splitlines(keepends=True)[:10]))
    else:
        path.unlink()
    assert compacted.opened(folder, layout.STEPS_COMPACTED) is None
    history = History(tmp_path)
    history.refresh()
    last = {"head": 29, "tail": 33, "shorter": 9, "gone": None}[change]
    assert (history.last[0] if history.last else None) == last


def test_a_damaged_file_costs_nothing_but_time(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 60, "time_limit"),)))
    sampled(run)
    before, folder = everything(run), layout.attempt_folder(run, 0)
    for name in compact.compact(run, 0):
        text = bytearray((folder / name).read_bytes())
        for place in range(8, len(text) // 3, 5):
            text[place] ^= 0xFF
        (folder / name).write_bytes(bytes(text))
    assert same(before, everything(run))
    for name in NAMES:
        (folder / name).write_bytes(b"PAR1")
    assert same(before, everything(run))


def test_what_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, 0, [("step", {"step": 1, "tokens": 1, "loss": 1.0})])
    digests = iter(str(number) for number in range(9))
    monkeypatch.setattr(compact, "_digest", lambda columns: next(digests))
    with pytest.raises(compact.Unequal):
        compact.compact(tmp_path, 0)
    assert names(folder) == set()


def test_ranks_that_cannot_be_compacted_do_not_keep_the_steps_from_it(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    folder = layout.attempt_folder(run, 0)
    with layout.rank_records(folder, 1).open("ab") as file:  # there is a column of that name already
        file.write(b"".join(encode(9999, START, "rank", {"step": 999, "step_s": 1.0, "rank": 1.0})))
    with pytest.raises(compact.Unequal):
        compact.compact(run, 0)
    assert names(folder) == {layout.STEPS_COMPACTED, layout.EXPERTS_COMPACTED}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, 0, [("step", {"step": 1, "tokens": 1, "loss": 1.0})])

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compact.os, "fsync", refuse)
    assert compact.main([str(tmp_path)]) == 1
    assert names(folder) == set()


def test_a_metric_that_only_a_later_rank_has_gets_its_column(tmp_path: Path) -> None:
    folder = write(tmp_path, 0, [("step", {"step": 1, "tokens": 1})])
    for rank, more in ((1, {}), (2, {"late_s": math.nan}), (3, {"other_s": 1.0, "late_s": 2.0})):
        header = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": 0, "rank": rank, "start": 0.0})
        lines = encode(1, 1.0, "rank", {"step": 1, "step_s": 1.0, **more})
        layout.rank_records(folder, rank).write_bytes(b"".join(header + lines))
    before = everything(tmp_path)
    assert layout.RANKS_COMPACTED in compact.compact(tmp_path, 0)
    assert same(before, everything(tmp_path))
    assert load(tmp_path).ranks["late_s"].isna().tolist() == [True, False, False]


def test_the_program_compacts_what_has_ended_and_says_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = generate(tmp_path / "run")
    assert compact.main([str(run), "2"]) == 2
    assert "attempt 2 has not ended; those that have: [0, 1]" in capsys.readouterr().err
    assert compact.main([str(tmp_path / "none")]) == 2
    assert compact.main([str(run), "--seconds", "-1"]) == 0 and not names(layout.attempt_folder(run, 0))
    assert compact.main([str(run)]) == 0
    assert capsys.readouterr().out.count("parquet") == 6
    assert compact.main([str(run)]) == 0 and not capsys.readouterr().out
    assert compact.main([str(run), "0", "--again"]) == 0 and capsys.readouterr().out.count("parquet") == 3


def test_without_pyarrow_the_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = generate(tmp_path / "run")
    compact.main([str(run)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert len(load(run).history) == 290
    assert compact.main([str(run), "--again"]) == 1


def test_sql_sees_the_frames_as_tables(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    run = generate(tmp_path / "run")
    found = sql(run, "select count(*) as n, max(step) as last, count(validation_loss) as v from history")
    assert found.iloc[0].tolist() == [290, 290, 5]
    found = sql(run, "select expert from experts where step = 10 and layer = 2 and attempt = 0 and tokens > 0")
    assert found["expert"].tolist() == list(range(16))
    assert len(sql(run, "select * from ranks r join attempts a on r.attempt = a.number")) == 3 * (12 + 8 + 14)


def test_frames_without_a_row_are_tables_too(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    write(tmp_path / "run", 0, [("step", {"step": 1, "tokens": 1, "loss": 1.0})])
    (tmp_path / "new").mkdir()
    for name in ("lost", "ranks", "experts"):
        assert sql(tmp_path / "run", f"select count(*) n from {name}")["n"].tolist() == [0]
        assert sql(tmp_path / "new", f"select count(*) n, max(step) from {name}")["n"].tolist() == [0]
    assert sql(tmp_path / "new", "select median(step_s) s from ranks")["s"].isna().tolist() == [True]
    assert sql(tmp_path / "new", "select max(last_step) from attempts").shape == (1, 1)
    known = write(tmp_path / "more", 0, [("rank", {"step": 1, "step_s": 1.0})]).parent.parent
    assert list(load(known).ranks) == list(load(tmp_path / "new").ranks)
    assert list(load(known).attempts) == list(load(tmp_path / "new").attempts)


def test_only_tables_that_a_query_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    write(tmp_path, 0, [("step", {"step": 1, "tokens": 1, "loss": 1.0})])
    read = []
    monkeypatch.setattr(frames, "every_rank", lambda *given: read.append(given) or iter(()))
    assert sql(tmp_path, "select max(step) as ranks_done from history")["ranks_done"].tolist() == [1]
    assert not read
    sql(tmp_path, "select count(*) from Ranks")
    assert len(read) == 1


def test_sql_without_duckdb_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ImportError, match="pip install duckdb"):
        sql(tmp_path, "select 1")
