"""What is on the screen of the watch application: every view, narrow and wide, as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monitoring import layout
from monitoring.recorder import encode
from monitoring.snapshot import JobState
from tests.monitoring.generate import (
    START,
    Folders,
    Shape,
    Try,
    devices,
    generate,
    hours_of_devices,
    slow,
    waits_for_data,
)
from tests.monitoring.screens import Seen, golden, watched

JOB = JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", ends=START + 900, emulated=True)
VIEWS = ("overview", "curves", "ranks", "experts", "devices", "attempts", "logs", "findings")
SIZES = [(80, 24), (150, 45)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: one of three attempts with a straggler and devices, one that has finished, one without a step."""
    root = tmp_path_factory.mktemp("runs")
    generate(root / "tiny_moe" / "20251122-1f2e")
    slow(root / "tiny_moe" / "20251122-1f2e", rank=3, times=1.4)
    devices(root / "tiny_moe" / "20251122-1f2e")
    generate(
        root / "llammlein" / "20251121-77aa", Shape((Try(0, 60, "finished"),), steps=60, name="llammlein", layers=())
    )
    generate(root / "tiny_moe" / "20251123-0001", Shape((Try(0, 0),)))
    return root


def folders(root: Path) -> Folders:
    return Folders(sorted(root.glob("*/*")), JOB)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_run_from_near(root: Path, size: tuple[int, int]) -> None:
    async def act(seen: Seen) -> None:
        for number, view in enumerate(VIEWS, 1):
            await seen.press(str(number))
            assert "this view failed" not in seen.text
            golden(f"{view}-{size[0]}x{size[1]}", seen.text)

    watched(act, folders(root), root / "tiny_moe" / "20251122-1f2e", size)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_all_runs(root: Path, size: tuple[int, int]) -> None:
    async def act(seen: Seen) -> None:
        golden(f"runs-{size[0]}x{size[1]}", seen.text.replace(str(root), "runs"))
        await seen.press("c")
        golden(f"comparison-{size[0]}x{size[1]}", seen.text)

    watched(act, folders(root), None, size)


def test_the_help_names_every_key_of_the_view(root: Path) -> None:
    async def act(seen: Seen) -> None:
        golden("help-80x24", await seen.press("2", "?"))
        assert "overview" in await seen.press("x") and "over step" in seen.text

    watched(act, folders(root), root / "tiny_moe" / "20251122-1f2e")


@pytest.mark.parametrize("size", [(20, 4), (240, 70)], ids=str)
def test_every_view_fits_every_size(root: Path, size: tuple[int, int]) -> None:
    async def act(seen: Seen) -> None:
        for key in ("1", "2", "3", "4", "5", "6", "7", "8", "?"):
            await seen.press(key)
            assert "this view failed" not in seen.text and len(seen.rows) == size[1]

    watched(act, folders(root), root / "tiny_moe" / "20251122-1f2e", size)
    watched(act, folders(root), root / "tiny_moe" / "20251123-0001", size)


def test_a_tick_while_the_screen_is_taken_apart_is_survived(root: Path) -> None:
    """A timer of the application may run after the widgets were removed and before it ends itself."""

    async def act(seen: Seen) -> None:
        await seen.app.screen.remove_children()
        seen.app._keys()
        seen.app._bars()
        seen.app.on_resized()
        await seen.pilot.pause()

    watched(act, folders(root), root / "tiny_moe" / "20251122-1f2e")


def test_a_straggler_is_named_with_its_node(root: Path) -> None:
    async def act(seen: Seen) -> None:
        await seen.press("3")
        assert "slowest of late: rank 3 on n2gpu1205, 1.3" in seen.text
        worst = next(row for row in seen.rows if row.strip().startswith("3  n2gpu1205"))
        assert "▓" in worst  # the shade says it without colour

    watched(act, folders(root), root / "tiny_moe" / "20251122-1f2e")


def test_a_rank_that_all_wait_for_is_seen_by_what_it_does_alone(tmp_path: Path) -> None:
    run = generate(tmp_path / "moe" / "20251122-slow", Shape((Try(0, 100),), world_size=4))
    waits_for_data(run, rank=2, seconds=0.31)

    async def act(seen: Seen) -> None:
        assert "rank 2 keeps the others waiting" in await seen.press("3")
        assert " data_s" in seen.text and "█ +0.5 of a step" in seen.text  # the part in which it was found
        worst = next(row for row in seen.rows if row.split()[:1] == ["2"])
        assert "▓" in worst and worst.rstrip().endswith("0.310 s 1.30")
        assert "of the median" in await seen.press("p") and "▓ over" in seen.text and " data_s" not in seen.text

    watched(act, folders(tmp_path), run)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_what_devices_did_over_time_is_a_map_of_each_metric(tmp_path: Path, size: tuple[int, int]) -> None:
    run = generate(tmp_path / "tiny_moe" / "20251122-1f2e")
    hours_of_devices(run)

    async def act(seen: Seen) -> None:
        table = await seen.press("5")
        assert "mean GPU use" in await seen.press("p")
        idle = next(row for row in seen.rows if row.split()[:1] == ["2"])
        assert "█····" in idle  # an hour of it
        assert idle.rstrip().endswith("93      84")
        place = idle.index("··")
        await seen.hover(place + 1, seen.rows.index(idle))
        assert "rank 2 at 2." in seen.text and ": 2 %" in seen.text
        await seen.hover(1, 1)
        golden(f"devices-power-{size[0]}x{size[1]}", await seen.press("p"))
        for named in ("GPU memory", "temperature", "clock", "throttled", "CPU cores", "memory", "node's CPU"):
            assert f" {named} " in await seen.press("p") and "this view failed" not in seen.text
        assert len([row for row in seen.rows if "n2gpu" in row]) == 2  # one rank of each node tells of it
        assert "highest node's memory" in await seen.press("p")
        assert "5.0 h" in await seen.press("+")  # the newer half
        assert await seen.press("p") == table

    watched(act, folders(tmp_path), run, size)


def test_an_expert_that_gets_nothing_is_seen(tmp_path: Path) -> None:
    run = generate(tmp_path / "moe" / "20251122-dead", Shape((Try(0, 100),), layers=(2,), experts=4))
    path = layout.experts_records(layout.attempt_folder(run, 0))
    lines = [
        encode(1000 + n, START, "experts", {"step": 100 + n, "layers": {2: [0, 10, 10, 20]}}) for n in range(1, 40)
    ]
    with path.open("ab") as file:
        file.write(b"".join(b"".join(each) for each in lines))
    watched(_experts, Folders([run], JOB), run)


async def _experts(seen: Seen) -> None:
    await seen.press("4")
    assert "1 expert without a token" in seen.text
    assert "×××" in next(row for row in seen.rows if row.startswith("     0  "))


def test_what_is_not_a_number_is_marked(tmp_path: Path) -> None:
    run = generate(tmp_path / "bad" / "20251122-0bad", Shape((Try(0, 40),)))
    with layout.rank_records(layout.attempt_folder(run, 0), 0).open("ab") as file:
        for n in range(41, 60):
            file.write(b"".join(encode(1000 + n, START + n, "step", {"step": n, "tokens": n, "loss": np.nan})))

    async def act(seen: Seen) -> None:
        await seen.press("2")
        assert "×" in seen.rows[seen.row("─ loss") + 1]
        await seen.press("left")
        assert "not finite" in seen.text
        await seen.press("1")
        assert " critical " in seen.text
        await seen.press("8")
        assert " critical " in seen.text and "since " in seen.text and "hpc retry" in seen.text
        await seen.press("a")
        assert "(seen)" in seen.text
        await seen.press("a")
        assert "(seen)" not in seen.text
        await seen.press("x")
        assert "(silenced)" in seen.text
        assert "findings 1" not in seen.rows[0]

    watched(act, Folders([run], JOB), run)


def test_lost_work_is_a_dotted_line(tmp_path: Path) -> None:
    run = generate(tmp_path / "tiny_moe" / "20251122-lost", Shape((Try(0, 200, "crash"), Try(100, 110))))

    async def act(seen: Seen) -> None:
        await seen.press("2")
        assert "1 to 200" in seen.text  # as far as the lost attempt came
        rows = seen.rows[seen.row("─ loss") :]
        right = "".join(row[50:] for row in rows)
        assert any(0x2800 < ord(char) < 0x2900 for char in right)

    watched(act, Folders([run], replace(JOB, state="RUNNING")), run)
