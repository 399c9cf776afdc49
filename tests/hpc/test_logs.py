"""All logs of a run as one stream."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.cli import main
from hpc.ledger import Record, folder
from hpc.logs import LONGEST, Log, Merged
from hpc.runs import Run, write_json, write_text
from monitoring.layout import rank_log

NOON = time.mktime((2026, 3, 9, 12, 0, 0, 0, 0, -1))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "demo" / "20260309-115900-0000")
    run.attempts.mkdir(parents=True)
    run.config_file.write_text("name: demo\n")
    write_json(run.state_file, {"state": "failed"})
    return run


@pytest.fixture
def attempt(run: Run) -> Callable[..., None]:
    """Writes what the ranks of an attempt, begun so many seconds after noon, printed."""

    def make(number: int, began: float, *ranks: str, srun: str = "") -> None:
        place = folder(run, number)
        place.mkdir()
        write_json(place / "attempt.json", {"number": number, "job_id": "7", "began": NOON + began})
        assert Record.read(place) is not None
        for rank, text in enumerate(ranks):
            rank_log(place, rank).write_text(text)
        if srun:
            (place / "srun.log").write_text(srun)

    return make


def merged(run: Run, number: int | None = None) -> list[tuple[str, str]]:
    return [(line.source, line.text) for line in Merged(run, number).lines(rest=True)]


def test_lines_are_in_the_order_of_time_and_those_without_one_stay_behind_theirs(
    run: Run, attempt: Callable[..., None]
) -> None:
    write_text(
        run.log,
        "slurm says hello\n2026-03-09 12:00:00 hpc: attempt 0\n2026-03-09 12:00:09 hpc: over\n"
        "2026-03-09 12:05:00 hpc: attempt 1\n",
    )
    attempt(
        0,
        0.7,
        "12:00:01 [0] a\n12:00:05 [0] d\nTraceback\n  boom\n12:00:07 [0] f\n",
        "no time\n12:00:03 [1] b\n12:00:06 [1] e\n",
        srun="12:00:04 srun c\n",
    )
    attempt(1, 300.2, "12:05:01 [0] again\ntorn")
    first = [
        ("supervisor", "slurm says hello"),
        ("supervisor", "2026-03-09 12:00:00 hpc: attempt 0"),
        ("rank 1", "no time"),
        ("rank 0", "12:00:01 [0] a"),
        ("rank 1", "12:00:03 [1] b"),
        ("srun", "12:00:04 srun c"),
        ("rank 0", "12:00:05 [0] d"),
        ("rank 0", "Traceback"),
        ("rank 0", "  boom"),
        ("rank 1", "12:00:06 [1] e"),
        ("rank 0", "12:00:07 [0] f"),
        ("supervisor", "2026-03-09 12:00:09 hpc: over"),
    ]
    second = [
        ("supervisor", "2026-03-09 12:05:00 hpc: attempt 1"),
        ("rank 0", "12:05:01 [0] again"),
        ("rank 0", "torn"),
    ]
    assert merged(run) == first + second
    assert merged(run, 0) == first
    assert merged(run, 1) == second


def test_midnight_is_passed_and_a_length_of_time_is_no_time_of_day(run: Run, attempt: Callable[..., None]) -> None:
    attempt(0, 0, "12:00:01 a\n23:59:59 b\n00:00:01 d\n", "12:00:01 [1] a\n23:59:59 c\n00:10:00 e\n")
    assert [text[-1] for _, text in merged(run)] == ["a", "a", "b", "c", "d", "e"]
    attempt(1, 1000, "12:16:45 a\n00:10:00 left\n12:17:00 c\n", "12:16:50 b\n")
    written = NOON + 1100
    for rank in (0, 1):
        os.utime(rank_log(folder(run, 1), rank), (written, written))
    assert [text for _, text in merged(run, 1)] == ["12:16:45 a", "00:10:00 left", "12:16:50 b", "12:17:00 c"]


def test_what_is_added_follows_once_and_whole(run: Run, attempt: Callable[..., None]) -> None:
    write_text(run.log, "2026-03-09 12:00:00 hpc: attempt 0\n")
    attempt(0, 0, "12:00:01 a\n12:00:02 b", "")
    stream = Merged(run)
    assert [line.text for line in stream.lines(rest=False)] == ["2026-03-09 12:00:00 hpc: attempt 0", "12:00:01 a"]
    with rank_log(folder(run, 0), 0).open("a") as file:
        file.write("etter\n")
    with run.log.open("a") as file:
        file.write("2026-03-09 12:00:04 hpc: over\n2026-03-09 12:05:00 hpc: attempt 1\n")
    attempt(1, 300, "12:05:03 c\n", "12:05:02 d\n")
    new = [line.text for line in stream.lines(rest=False)]
    assert new == [
        *("12:00:02 better", "2026-03-09 12:00:04 hpc: over"),
        *("2026-03-09 12:05:00 hpc: attempt 1", "12:05:02 d", "12:05:03 c"),
    ]
    assert list(stream.lines(rest=True)) == []


def test_the_command_prefixes_each_line_with_who_printed_it(
    run: Run, attempt: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(0, 0, "12:00:01 a\n12:00:03 \x1b[31mc\n", "12:00:02 b\n")
    assert main(["logs", str(run.folder), "--all"]) == 0
    assert capsys.readouterr().out == "    rank 0 | 12:00:01 a\n    rank 1 | 12:00:02 b\n    rank 0 | 12:00:03 c\n"
    assert main(["logs", str(run.folder), "--all", "-n", "1", "--json"]) == 0
    said = {"file": "0/rank-0.log", "line": "12:00:03 \x1b[31mc", "time": NOON + 3}
    assert json.loads(capsys.readouterr().out) == said
    assert main(["logs", str(run.folder), "--all", "--attempt", "3"]) == 2


def test_memory_is_bounded_however_long_the_logs_and_whatever_the_lines(run: Run, attempt: Callable[..., None]) -> None:
    text = "".join(f"12:{n // 60 % 60:02d}:{n % 60:02d} [0] step {n} {'x' * 80}\n" for n in range(3000))
    attempt(0, 0, *[text * 4] * 16, "y" * (4 * LONGEST))
    tracemalloc.start()
    count = sum(1 for _ in Merged(run).lines(rest=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 16 * 12000
    assert peak < 6e6  # the logs have 22 MB


@given(st.lists(st.sampled_from([b"12:00:01 a", b"", b"\xff\x00", b"2026-99-99 99:99:99", b"0:0", b"99:00:00 x"])))
@settings(max_examples=50, deadline=None)
def test_every_line_comes_out_once_and_times_never_go_back(tmp_path_factory: pytest.TempPathFactory, lines) -> None:
    file = tmp_path_factory.mktemp("log") / "rank-0.log"
    file.write_bytes(b"\n".join(lines))
    found = list(Log(file, "rank 0", NOON).lines(rest=True))
    assert [line.text for line in found] == [
        line.decode("utf-8", "replace") for line in (lines if lines and lines[-1] else lines[:-1])
    ]
    assert [line.time for line in found] == sorted(line.time for line in found)
