"""The protocol of the records, byte by byte: the example in docs/records.md, and ways in which a file may be torn."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from monitoring import compact, layout, load
from monitoring.curves import Curves
from monitoring.experts import Experts
from monitoring.history import History
from monitoring.ranks import Ranks
from monitoring.recorder import LINE, PROTOCOL, encode
from tests.monitoring.generate import Shape, Try, generate

DOCS = Path(__file__).parents[2] / "docs" / "records.md"
BLOCK = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
assert BLOCK is not None
EXAMPLE = BLOCK[1].encode()


def put(run: Path, attempt: int, text: bytes, rank: int = 0) -> Path:
    folder = layout.attempt_folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    layout.rank_records(folder, rank).write_bytes(text)
    return folder


def read(run: Path) -> History:
    history = History(run)
    history.refresh()
    return history


def lines() -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in EXAMPLE.splitlines()]


def test_the_writer_writes_the_documented_bytes() -> None:
    header, resumed, first, bad, evaluated, rank, rewound, again, dropped = (
        {key: value for key, value in line.items() if key not in ("seq", "t", "kind", "event")} for line in lines()
    )
    given = [
        ("header", header),
        ("event", {"event": "resumed", "fields": resumed}),
        ("step", first),
        ("step", bad | {"loss": math.nan, "grad_norm": math.inf}),
        ("step", evaluated),
        ("rank", rank),
        ("event", {"event": "rewound", "fields": rewound}),
        ("step", again),
        ("dropped", dropped),
    ]
    written = [
        encode(seq, line["t"], kind, fields)
        for seq, ((kind, fields), line) in enumerate(zip(given, lines(), strict=True))
    ]
    assert b"".join(each[0] for each in written) == EXAMPLE
    assert header["protocol"] == PROTOCOL and all(len(each) == 1 and len(each[0]) < LINE for each in written)


WITHOUT_ORJSON = """
import sys
sys.modules["orjson"] = None
from monitoring.recorder import encode
sys.stdout.buffer.write(b"".join(encode(0, 1.0, "event", {"event": "a b", "fields": {"step": 3, "range": [96, 128]}})))
"""


def test_lines_are_compact_whatever_library_writes_them() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ORJSON], capture_output=True, timeout=60, check=True)
    fields = {"event": "a b", "fields": {"step": 3, "range": [96, 128]}}
    assert done.stdout == b"".join(encode(0, 1.0, "event", fields)) and done.stdout.count(b" ") == 1


def test_a_reader_makes_of_them_what_the_document_says(tmp_path: Path) -> None:
    put(tmp_path, 1, EXAMPLE)
    frames = load(tmp_path)
    assert frames.history["step"].tolist() == [3, 4] and frames.history["loss"].tolist() == [6.25, 6.125]
    assert frames.history["grad_norm"].isna().tolist() == [False, True]
    assert frames.lost["step"].tolist() == [4]
    assert math.isnan(frames.lost["loss"].array[0]) and frames.lost["grad_norm"].array[0] == math.inf
    assert frames.lost["validation_loss"].tolist() == [6.5]
    assert frames.ranks[["rank", "step", "step_s"]].to_numpy().tolist() == [[0, 4, 0.5]]
    assert frames.attempts["resumed_from"].tolist() == [2]
    assert read(tmp_path).problems() == ["attempt 1: 2 records could not be written"]


def test_torn_at_any_byte_the_history_is_that_of_the_whole_lines_and_then_goes_on(tmp_path: Path) -> None:
    ends = [end for end in range(len(EXAMPLE) + 1) if EXAMPLE[:end].endswith(b"\n") or not end]
    known = {end: read_curve(tmp_path / "whole", EXAMPLE[:end]) for end in ends}
    for cut in range(len(EXAMPLE)):
        run = tmp_path / str(cut)
        folder = put(run, 0, EXAMPLE[:cut])
        history = read(run)
        assert history.problems() in ([], ["attempt 0: 2 records could not be written"])
        assert curve(history) == known[EXAMPLE.rfind(b"\n", 0, cut) + 1]
        with layout.rank_records(folder, 0).open("ab") as file:
            file.write(EXAMPLE[cut:])
        history.refresh()
        assert curve(history) == known[len(EXAMPLE)]


def curve(history: History) -> list[tuple[int, float]]:
    found = history.series("grad_norm")
    return list(zip(found.steps.tolist(), found.values.tolist(), strict=True)) + [
        (stretch.kept, stretch.lost) for stretch in history.stretches()
    ]


def read_curve(run: Path, text: bytes) -> list[tuple[int, float]]:
    put(run, 0, text)
    return curve(read(run))


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_hole_of_nuls_anywhere_costs_at_most_the_lines_it_touches(tmp_path: Path, size: int) -> None:
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": 0, "rank": 0, "start": 0.0})
    for step in range(1, 8):
        made += encode(step, float(step), "step", {"step": step, "tokens": step, "loss": 1.0})
    text = b"".join(made)
    ends = np.cumsum([len(line) for line in made])
    for at in range(0, len(text), 3):
        end = min(len(text), at + size)
        put(tmp_path, 0, text[:at] + b"\0" * (end - at) + text[end:])
        untouched = [n for n in range(1, 8) if ends[n] <= at or ends[n - 1] >= end]
        found = read(tmp_path).series("loss").steps.tolist()
        assert set(untouched) - set(found) == set() and set(found) <= set(range(1, 8)), at


def test_a_late_key_and_one_that_ends_are_missing_elsewhere_and_nan_is_not(tmp_path: Path) -> None:
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": 0, "rank": 0, "start": 0.0})
    for step in range(1, 2001):
        more = {"late": math.nan} if step == 1990 else {"early": 1.0} if step < 3 else {}
        made += encode(step, float(step), "step", {"step": step, "tokens": step, "loss": 1.0, **more})
    put(tmp_path, 0, b"".join(made))
    frame = load(tmp_path).history
    assert np.flatnonzero(~frame["late"].isna()).tolist() == [1989] and math.isnan(frame["late"].array[1989])
    assert np.flatnonzero(~frame["early"].isna()).tolist() == [0, 1]
    assert Curves(read(tmp_path)).view("late").nan.tolist() == [True]


def test_a_clock_that_jumps_changes_no_order(tmp_path: Path) -> None:
    made = encode(0, 0.0, "header", {"protocol": PROTOCOL, "attempt": 0, "rank": 0, "start": 0.0})
    times = [10.0, 11.0, 4000.0, 12.0, -5.0, 13.0]
    for step, t in enumerate(times, 1):
        made += encode(step, t, "step", {"step": step, "tokens": step, "loss": float(step)})
    put(tmp_path, 0, b"".join(made))
    frame = load(tmp_path).history
    assert frame["loss"].tolist() == [1, 2, 3, 4, 5, 6] and frame["t"].tolist() == times
    hours = Curves(read(tmp_path)).view("loss", "hours")
    assert (np.diff(hours.x) >= 0).all() and hours.low.tolist() == [1, 2, 3, 4, 5, 6]


def test_two_attempts_that_write_at_once_are_two_files_and_the_newer_wins(tmp_path: Path) -> None:
    """As when a node that was taken for dead lives: it goes on writing while its successor does."""
    shape = Shape(tries=(Try(0, 60, "node_failure"), Try(40, 70)), world_size=2, layers=(2,))
    run = generate(tmp_path / "run", shape)
    history, ranks, experts = read(run), Ranks(run), Experts(run)
    assert len(ranks.read().steps) == len(experts.read(2).steps) == 7
    first = layout.attempt_folder(run, 0)
    late = [encode(900 + n, 9e9, "step", {"step": n, "tokens": n, "loss": -1.0}) for n in range(61, 80)]
    with layout.rank_records(first, 0).open("ab") as file:
        file.write(b"".join(line for (line,) in late))
    with layout.rank_records(first, 1).open("ab") as file:
        file.write(b"".join(encode(900, 9e9, "rank", {"step": 70, "step_s": 99.0})))
    with layout.experts_records(first).open("ab") as file:
        file.write(b"".join(encode(900, 9e9, "experts", {"step": 70, "layers": {2: [1, 0]}})))
    history.refresh()
    assert history.series("loss").steps.tolist() == list(range(1, 71)) and -1.0 not in history.series("loss").values
    assert ranks.read().seconds.max() < 1 and Ranks(run).read().seconds.max() < 1
    assert Experts(run).read(2).share.shape == (7, 16)
    assert history.lost_steps == 20 + 19


def test_a_rank_without_a_file_is_missing_and_nothing_else(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 40, "crash"), Try(30, 60, "time_limit"))))
    layout.rank_records(layout.attempt_folder(run, 0), 0).unlink()
    layout.rank_records(layout.attempt_folder(run, 1), 2).unlink()
    layout.experts_records(layout.attempt_folder(run, 0)).unlink()
    for _ in range(2):
        history = read(run)
        assert history.series("loss").steps.tolist() == list(range(31, 61)) and not history.problems()
        times = Ranks(run).read()
        assert times.steps.tolist() == [10, 20, 30, 40, 50, 60] and times.ranks == (0, 1, 2, 3)
        assert np.isnan(times.seconds).sum(axis=1).tolist() == [3, 0, 3, 0]
        assert Experts(run).read(2).steps.tolist() == [40, 50, 60]
        for number in compact.ended(run):
            compact.compact(run, number)
