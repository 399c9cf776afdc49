"""Using the watch application: keys, mouse, size, and what goes on around it while it is open."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from monitoring import layout
from monitoring.recorder import Recorder
from monitoring.terminal.app import Options
from monitoring.terminal.source import Entry
from monitoring.terminal.view import View
from tests.monitoring.generate import BATCH, START, Folders, Shape, Try, finish, generate
from tests.monitoring.screens import LIVE, Seen, watched

SHORT = Shape((Try(0, 40),), layers=())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return generate(tmp_path / "tiny_moe" / "20251122-1f2e")


@pytest.fixture
def several(tmp_path: Path) -> list[Path]:
    found = []
    for number, (name, rate) in enumerate([("alpha", 0.1), ("beta", 0.2), ("gamma", 0.1)]):
        folder = generate(tmp_path / name / f"20251122-000{number}", Shape((Try(0, 40 + 10 * number),), layers=()))
        with (folder / layout.CONFIG).open("a") as file:
            file.write(f"optim: {{lr: {rate}}}\n")
        found.append(folder)
    return found


# -- the list ------------------------------------------------------------------------------------------------------


def test_a_run_is_found_opened_and_left(several: list[Path]) -> None:
    async def act(seen: Seen) -> None:
        assert "3 of 3 runs" in seen.text
        await seen.press("/", "b", "e", "t")
        assert "1 of 3 runs" in seen.text and "alpha/" not in seen.text
        await seen.press("enter")
        assert "filter: bet" in seen.text
        await seen.press("enter")
        assert "1 overview" in seen.text and "step 50 of 500" in seen.text
        await seen.press("escape")
        assert "1 of 3 runs" in seen.text
        await seen.press("/", "escape")
        assert "3 of 3 runs" in seen.text

    watched(act, Folders(several))


def test_rows_are_sorted_by_any_column(several: list[Path]) -> None:
    async def act(seen: Seen) -> None:
        def order() -> list[str]:
            return [row.split("/")[0].split()[-1] for row in seen.rows if "/20251122-" in row]

        assert order() == ["alpha", "beta", "gamma"]
        head = seen.row("loss")
        column = seen.rows[head].index("loss")
        await seen.click(column, head)
        assert order() == ["gamma", "beta", "alpha"] and "by loss" in seen.text
        await seen.click(column, head)
        assert order() == ["alpha", "beta", "gamma"] and "reversed" in seen.text
        await seen.press("s")
        assert "by tok/s" in seen.text

    watched(act, Folders(several))


def test_marked_runs_are_compared_and_grouped(several: list[Path]) -> None:
    async def act(seen: Seen) -> None:
        await seen.press("home", "space", "space", "c")
        assert "2 runs" in seen.text and "A alpha/20251122-0000" in seen.text and "gamma" not in seen.text
        await seen.press("escape", "space", "c", "g", "g", "g")
        for _ in range(12):
            if "by optim.lr" in seen.text:
                break
            await seen.press("g")
        assert "A 0.1" in seen.text and "B 0.2" in seen.text

    watched(act, Folders(several), size=(120, 30))


def test_the_mouse_opens_a_run_and_its_tabs(several: list[Path]) -> None:
    async def act(seen: Seen) -> None:
        await seen.click(20, seen.row("beta/"), times=2)
        assert "1 overview" in seen.text and "beta/" not in seen.rows[0]
        await seen.click(seen.rows[0].index("attempts") + 2, 0)
        assert "T training" in seen.text
        foot = len(seen.rows) - 1
        await seen.click(seen.rows[foot].index("help") + 1, foot)
        assert "Leave. Runs go on." in seen.text

    watched(act, Folders(several))


def test_no_run_at_all(tmp_path: Path) -> None:
    async def act(seen: Seen) -> None:
        assert "no runs yet" in seen.text
        await seen.press("enter", "c", "space", "up", "down", "s", "r")
        assert "no runs yet" in seen.text

    watched(act, Folders([]))


# -- curves --------------------------------------------------------------------------------------------------------


def test_metrics_are_chosen_zoomed_and_read(run: Path) -> None:
    async def act(seen: Seen) -> None:
        await seen.press("2", "down", "space")
        assert "─ loss" in seen.text and "─ lr" in seen.text and "[x] lr" in seen.text
        await seen.press("x")
        assert "over tokens" in seen.text and "1.19M" in seen.text
        await seen.press("x")
        assert "over hours" in seen.text and "0.09 h" in seen.text
        await seen.press("x", "s", "l")
        assert "over step" in seen.text and "smoothing 0.6" in seen.text and "log" in seen.text
        await seen.press("s", "s", "s", "l", "up", "enter")
        assert "smoothing" not in seen.text and "─ lr" not in seen.text
        await seen.press("+", "+")
        assert "109 to 182" in seen.text and "zoomed" in seen.text
        await seen.press(">")
        assert "127 to 200" in seen.text
        await seen.press("0", "left")
        assert "loss at 290  3.4" in seen.text

    watched(act, Folders([run]), run)


def test_the_mouse_reads_values_and_zooms(run: Path) -> None:
    async def act(seen: Seen) -> None:
        await seen.press("2")
        await seen.hover(30, 12)
        assert "loss at 91  4." in seen.text
        await seen.press("+")
        assert "zoomed" in seen.text

    watched(act, Folders([run]), run)


# -- logs ----------------------------------------------------------------------------------------------------------


def test_a_log_is_followed_searched_and_paged(tmp_path: Path) -> None:
    lines = [f"line {n}" + (" needle" if n in (70, 400) else "") for n in range(1000)]
    run = generate(tmp_path / "tiny_moe" / "20251122-1f2e", Shape((Try(0, 40),), layers=(), log=lines))

    async def act(seen: Seen) -> None:
        assert "line 999" in await seen.press("7")
        await seen.press("/", *"NEEDLE", "enter")
        assert "line 400 needle" in seen.text
        await seen.press("n")
        assert "line 400 needle" in seen.text  # upwards is the first way
        await seen.press("N")
        assert "line 70 needle" in seen.text
        await seen.press("N")
        assert "nothing above" in seen.text
        await seen.press("n")
        assert "line 400 needle" in seen.text
        await seen.press("home")
        assert "rank 0 of 4" in seen.text
        await seen.press("pagedown", "pageup", "f")
        assert "line 999" in seen.text and "following" in seen.text
        await seen.press("[")
        assert "job.log" in seen.text and "attempt 0" in seen.text

    watched(act, Folders([run]), run)


# -- the world around it -------------------------------------------------------------------------------------------


def test_it_follows_a_run_that_grows(run: Path) -> None:
    async def act(seen: Seen) -> None:
        recorder = Recorder(layout.attempt_folder(run, 2), 0, 4, "tiny_moe", 2)
        recorder.step(step=291, tokens=291 * BATCH, loss=3.125)
        recorder.close()
        await seen.sees("step 291 of 500", "3.125")
        await seen.press("7")
        with layout.rank_log(layout.attempt_folder(run, 2), 0).open("a") as log:
            log.write("a new line\n")
        await seen.sees("a new line")

    watched(act, Folders([run]), run, options=LIVE)


def test_it_ends_with_the_run_where_that_is_asked_for(run: Path) -> None:
    async def act(seen: Seen) -> None:
        assert seen.app.is_running
        finish(run, Shape())
        for _ in range(1000):
            if not seen.app.is_running:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    watched(act, Folders([run]), run, options=Options(interval=0.05, until_done=True))


def test_a_run_that_is_deleted_stays_on_the_screen(run: Path) -> None:
    async def act(seen: Seen) -> None:
        await seen.sees("step 290 of 500")
        shutil.rmtree(run)
        await seen.sees("the run's folder is gone")
        for key in "23456781":
            await seen.press(key)
            assert "gone" in seen.text and "this view failed" not in seen.text
        assert "290" in seen.text

    watched(act, Folders([run]), run, options=LIVE)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    async def act(seen: Seen) -> None:
        for key in "12345678":
            await seen.press(key)
            assert "there is no such run" in seen.text and "this view failed" not in seen.text

    watched(act, Folders([]), tmp_path / "none" / "such")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_run_is_said(run: Path) -> None:
    async def act(seen: Seen) -> None:
        assert "Permission denied" in seen.text
        await seen.press("3")
        assert "Permission denied" in seen.text and "this view failed" not in seen.text

    run.parent.chmod(0o700)
    os.seteuid(65534)
    try:
        watched(act, Folders([]), run)
    finally:
        os.seteuid(0)


def test_files_that_cannot_be_read_are_named(run: Path) -> None:
    attempt = layout.attempt_folder(run, 2)
    layout.rank_records(attempt, 0).unlink()
    layout.rank_records(attempt, 0).mkdir()
    header = {"seq": 0, "t": START, "kind": "header", "protocol": 99}
    layout.experts_records(attempt).write_text(json.dumps(header) + "\n")

    async def act(seen: Seen) -> None:
        assert "attempt 2: rank-0.jsonl: Is a directory" in seen.text
        assert "experts.jsonl has protocol 99" in seen.text
        for key in "2345678":
            await seen.press(key)
            assert "this view failed" not in seen.text

    watched(act, Folders([run]), run)


def test_names_and_lines_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "[red]x[/red]\x1b]0;pwned\x07\x1b[2J"
    run = generate(tmp_path / "tiny_moe" / "20251122-[bold]", Shape((Try(0, 40),), layers=(), log=[evil]))
    (run / layout.CONFIG).write_text(json.dumps({"name": evil, "train": {"tokens": 1000, "batch_tokens": 10}}))
    with layout.rank_records(layout.attempt_folder(run, 0), 0).open("ab") as file:
        record = {"seq": 9999, "t": START, "kind": "step", "step": 41, "tokens": 410, "loss": 1.0, evil: 2.0}
        file.write(json.dumps(record).encode() + b"\n")
    info = layout.attempt_info(layout.attempt_folder(run, 0))
    info.write_text(json.dumps({**json.loads(info.read_text()), "cause": evil, "evidence": evil, "nodes": [evil]}))
    entry = Entry(run, evil, "20251122-[bold]", "running", evil, evil, changes=evil)

    class One(Folders):
        def entries(self) -> list[Entry]:
            return [entry]

    async def act(seen: Seen) -> None:
        assert "[red]x[/red]" in seen.text and "\x1b" not in seen.text
        await seen.press("enter")
        for key in "12345678":
            await seen.press(key)
            assert "\x1b" not in seen.text and "\x07" not in seen.text and "pwned" not in seen.text
            assert "this view failed" not in seen.text and "[red]x[/red]" in seen.text

    watched(act, One([run]), size=(150, 40))


def test_a_view_that_fails_leaves_the_others_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: View, width: int, height: int, *, unicode: bool = True) -> list:
        raise ValueError("[b]none\x1b[2J")

    monkeypatch.setattr("monitoring.terminal.views.ranks.Ranks.draw", broken)

    async def act(seen: Seen) -> None:
        await seen.press("3")
        assert "this view failed: ValueError: [b]none" in seen.text
        assert "layer 2" in await seen.press("4")

    watched(act, Folders([run]), run)


def test_a_disk_that_hangs_stops_its_view_and_nothing_else(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr("monitoring.terminal.views.ranks.Ranks.gather", lambda self: answers.wait(20))
    monkeypatch.setattr("monitoring.terminal.app.SLOW", 0.05)

    async def act(seen: Seen) -> None:
        await seen.pilot.press("3")
        await seen.sees("reading for")
        assert "3 ranks" in seen.text
        await seen.pilot.press("?")  # is taken, and answered once the disk answers
        answers.set()
        await seen.sees("Leave. Runs go on.")

    watched(act, Folders([run]), run)


def test_the_size_of_the_terminal_may_change(run: Path) -> None:
    async def act(seen: Seen) -> None:
        for size in [(120, 40), (40, 10), (20, 4), (80, 24)]:
            await seen.resize(*size)
            assert len(seen.rows) == size[1] and max(map(len, seen.rows)) <= size[0]
        assert "step 290 of 500" in seen.text

    watched(act, Folders([run]), run)
