"""What people see: the right figures, on any size of screen, and nothing that a name or a log line smuggles in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from monitoring.history import Series
from monitoring.reader import Reader
from monitoring.snapshot import Attempt, ExpertLoad, JobState, Snapshot
from monitoring.terminal.plain import line, plain, summary, to_json
from monitoring.terminal.screen import screen
from tests.monitoring.generate import START, Shape, Try, generate

JOB = JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", ends=START + 900, emulated=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    run = generate(tmp_path_factory.mktemp("runs") / "tiny_moe" / "20251122-1f2e")
    return replace(Reader(run).read(JOB, now=START + 350), folder=Path("runs/tiny_moe/20251122-1f2e"))


def shown(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """The rows that a real terminal has after the screen was printed to it."""
    terminal = pyte.Screen(width, height)
    console = Console(force_terminal=True, width=width, height=height, color_system="256", legacy_windows=False)
    stream = pyte.Stream(terminal)
    for number, row in enumerate(screen(snapshot, width, height), 1):
        with console.capture() as captured:
            console.print(row, end="", no_wrap=True, overflow="crop")
        stream.feed(f"\x1b[{number};1H" + captured.get())
    return [row.rstrip() for row in terminal.display]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_screen_has_all_figures(running: Snapshot, width: int, height: int) -> None:
    rows = shown(running, width, height)
    text = "\n".join(rows)
    assert rows[0].startswith(" tiny_moe/20251122-1f2e") and rows[0].endswith("noctua2  EMULATED   RUNNING")
    assert rows[1] == " attempt 2, 51 lost steps · time limit in 9:10 · job 17 on n2gpu[1201,1205]"
    assert "58.0 %  1.19M of 2.05M tokens" in rows[2]
    assert rows[3].startswith(" step 290 of 500   tokens/s 4.82k   ETA 2:59   loss 3.483   min 3.359")
    assert "10.35┤" in text and "3.359┤" in text and "┴1" in text and "┴2" in text
    assert "layer 2" in text and "layer 4" in text
    assert rows[-1].startswith(" step 290 of 500  loss 3.4835") and len(rows) == height
    if width >= 120:
        assert "validation_loss" in text and "node failure" in text and "51 lost" in text


def test_a_waiting_job_says_why_and_until_when(running: Snapshot) -> None:
    job = JobState("18", "PENDING", "Resources", started=running.now + 200, seen=running.now - 42)
    row = shown(replace(running, job=job, state="requeued"), 100, 24)[1]
    assert "job 18 waits (Resources)" in row and "in 3:20" in row and "Slurm silent for 42s" in row
    assert "PENDING" in shown(replace(running, job=job), 80, 24)[0]
    assert "to train 2:59" in shown(replace(running, job=job), 80, 24)[3]
    assert "no expected start yet" in shown(replace(running, job=replace(job, started=None)), 100, 24)[1]


def test_the_end_of_a_run_is_the_runs_own_word(running: Snapshot) -> None:
    failed = replace(running, state="failed", reason="three attempts without a new step; " * 3)
    rows = shown(failed, 80, 24)
    assert rows[0].endswith("FAILED") and rows[2].startswith(" three attempts without")
    assert not any("ETA" in row for row in rows)


def test_a_loss_that_is_no_number_is_seen(running: Snapshot) -> None:
    values = running.loss.values.copy()
    values[-5:] = math.nan
    rows = shown(replace(running, loss=Series(running.loss.steps, values)), 80, 24)
    assert "loss NaN   min 3.359" in rows[3] and rows[5].endswith("×")


def test_an_old_last_step_comes_to_the_front(running: Snapshot) -> None:
    assert "last step 15:00 ago" in shown(replace(running, now=(running.updated or 0) + 900), 80, 24)[3]


def test_dead_experts_are_marked(running: Snapshot) -> None:
    load = ExpertLoad(2, 290, (0, 100, 300, 100))
    text = "\n".join(shown(replace(running, experts=(load,)), 80, 24))
    assert "×××" in text and "max 2.40  min 0.00" in text


EVIL = "\x1b[2J\x1b[31m[red]evil[/red]\x07\u202e\r\nnext\x9b1m"


def test_nothing_from_outside_is_acted_on(running: Snapshot) -> None:
    evil = replace(
        running,
        **{"name": EVIL, "id": EVIL, "reason": EVIL, "cluster": EVIL, "log": (EVIL,) * 9, "log_name": EVIL},
        **{"job": replace(JOB, nodes=EVIL, reason=EVIL), "sample": EVIL, "problems": (EVIL,), "metrics": {EVIL: 1.0}},
        attempts=(Attempt(0, job_id=EVIL, nodes=(EVIL,), cause=EVIL),),
    )
    texts = [row.plain for row in screen(evil, 120, 40)]
    texts += [*plain(evil).split("\n"), *summary(evil).split("\n"), line(evil)]
    assert any("[red]evil[/red]" in text for text in texts)
    assert all(text.isprintable() for text in texts)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    count = draw(st.integers(0, 30))
    values = draw(st.lists(st.floats(), min_size=count, max_size=count))
    numbers = st.none() | st.integers(0, 1 << 50)
    loads = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300).map(tuple)
    text = st.text(max_size=200)
    return Snapshot(
        folder=Path("x"),
        name=draw(text),
        id=draw(text),
        now=START,
        state=draw(st.sampled_from(["running", "finished", "failed", "queued", "?"])),
        reason=draw(text),
        cluster=draw(text),
        emulated=draw(st.booleans()),
        job=draw(st.none() | st.builds(JobState, text, st.sampled_from(["PENDING", "RUNNING", ""]), text, text)),
        attempts=tuple(
            draw(st.lists(st.builds(Attempt, st.integers(0, 99), cause=text, lost_steps=st.integers(0, 9))))
        ),
        step=draw(numbers),
        tokens=draw(numbers),
        target_tokens=draw(numbers),
        target_steps=draw(numbers),
        tokens_per_s=draw(st.none() | st.floats(0, 1e12)),
        updated=draw(st.none() | st.floats(0, 2e9)),
        loss=Series(np.cumsum(np.ones(count, np.int64)), np.array(values, dtype=float)),
        metrics=draw(st.dictionaries(text, st.floats(), max_size=5)),
        experts=tuple(ExpertLoad(layer, 1, load) for layer, load in enumerate(draw(st.lists(loads, max_size=6)))),
        log=tuple(draw(st.lists(text, max_size=50))),
        log_name=draw(text),
        problems=tuple(draw(st.lists(text, max_size=3))),
    )


@settings(max_examples=60)
@given(snapshots(), st.integers(20, 200), st.integers(4, 60), st.booleans())
def test_any_run_fits_any_screen(snapshot: Snapshot, width: int, height: int, unicode: bool) -> None:
    rows = screen(snapshot, width, height, unicode=unicode)
    assert len(rows) <= height
    assert all(row.cell_len <= width and "\n" not in row.plain for row in rows)
    assert plain(snapshot) and summary(snapshot) and line(snapshot)
    assert "NaN" not in json.dumps(to_json(snapshot), allow_nan=False).replace('"NaN"', "")


PLAIN = """\
run       tiny_moe/20251122-1f2e
state     running on noctua2 (EMULATED)
job       17 RUNNING on n2gpu[1201,1205], time limit in 9:10
progress  step 290 of 500, 1,187,840 of 2,048,000 tokens (58.0 %)
speed     4,818 tokens/s, ETA 2:59, last step 10s ago
loss      3.483 (first 10.35, min 3.359)
metrics   lr 0.0001127  grad_norm 0.4471  balance_loss 1.022  step_s 0.8500  validation_loss 3.686
experts   layer 2: max 1.57, min 0.52 of the fair share at step 290
experts   layer 4: max 3.09, min 0.42 of the fair share at step 290
attempt   0: job 17, steps 1-120, time limit, on n2gpu1201,n2gpu1202
attempt   1: job 17, steps 121-201, node failure, 51 lost steps, on n2gpu1201,n2gpu1202
attempt   2: job 17, steps 151-290, running, on n2gpu1201,n2gpu1205
goodput   73.6% training; repeated 13%, start-up 7%, queue 7%
finish    08:35
folder    runs/tiny_moe/20251122-1f2e
log       rank-0.log
  step 210 of 500  loss 3.5702
  step 220 of 500  loss 3.6289
  step 230 of 500  loss 3.6570
  step 240 of 500  loss 3.5863
  step 250 of 500  loss 3.5863
  checkpoint at step 250 complete in 0.4 s
  step 260 of 500  loss 3.5264
  step 270 of 500  loss 3.4518
  step 280 of 500  loss 3.4263
  step 290 of 500  loss 3.4835"""

SUMMARY = """\
tiny_moe/20251122-1f2e: finished on noctua2 (EMULATED)
  loss      10.35 -> 3.333
  tokens    1,228,800 in 300 steps
  tokens/s  4,802
  attempts  2 (time limit, finished), 21 lost steps
  goodput   84.6% training; repeated 6%, start-up 5%, queue 4%
  sample    The installer asks for the name of the disk. Das
            Installationsprogramm
  folder    runs/x"""


def test_a_pipe_gets_one_plain_snapshot(running: Snapshot) -> None:
    assert plain(running) == PLAIN
    assert plain(running).isascii()


def test_the_summary_says_what_came_of_the_run(tmp_path: Path) -> None:
    run = generate(
        tmp_path / "tiny_moe" / "20251122-1f2e", Shape((Try(0, 121, "time_limit"), Try(100, 300, "finished")), 300)
    )
    assert summary(replace(Reader(run).read(), folder=Path("runs/x")), width=64) == SUMMARY


def test_programs_get_values(running: Snapshot) -> None:
    value = json.loads(json.dumps(to_json(replace(running, metrics={"loss": math.nan})), allow_nan=False))
    assert (value["step"], value["lost_steps"], value["job"]["state"]) == (290, 51, "RUNNING")
    assert value["metrics"] == {"loss": "NaN"} and value["loss"]["min"] == pytest.approx(3.359, abs=1e-3)
    assert value["attempts"][1]["cause"] == "node_failure" and value["attempts"][1]["lost_steps"] == 51
