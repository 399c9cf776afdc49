"""Reports: whole, small, closed to the outside, and safe whatever a run is called."""

from __future__ import annotations

import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.cli import main
from monitoring import layout
from monitoring.goodput import Bucket
from monitoring.recorder import encode
from monitoring.report import plot
from monitoring.report.dots import Dot, dots, exact
from monitoring.report.figures import HEIGHT, draw
from monitoring.report.run import BUCKETS, report
from monitoring.report.sweep import Member
from monitoring.report.sweep import report as sweep_report
from tests.monitoring.generate import START, Shape, Try, generate, waits_for_data

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Whether tags nest, and what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("href", "src") or (value or "").startswith("data:image/png;base64,")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_is_one_file_that_needs_nothing(tmp_path: Path) -> None:
    run = generate(tmp_path / "runs" / "tiny_moe" / "20251122-1f2e")
    (run / layout.MANIFEST).write_text(json.dumps({"submitted": START - 30, "command": ["hpc", "submit"]}))
    with (run / layout.CONFIG).open("a") as config:
        config.write("\nnotify:\n  webhook: https://host/secret\n")
    found = Checked(text := report(run, now=START + 400))
    assert not found.open and not found.tags & {"script", "link", "iframe", "object"}
    assert "webhook: (set)" in found.text and "host/secret" not in text
    assert "http://" not in text and "https://" not in text
    for word in ("Loss", "Where the time went", "repeated", "node failure", "Layer 2", "done again", "hpc submit"):
        assert word in found.text, word
    assert len(text) < 200_000


def test_names_and_logs_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m"
    run = generate(tmp_path / "x", Shape((Try(0, 60),), name="x", layers=()))
    (run / layout.CONFIG).write_text(json.dumps({"name": hostile, "train": {"tokens": 1, "batch_tokens": 1}}))
    (run / layout.STATE).write_text(json.dumps({"state": "failed", "reason": hostile, "cluster": hostile}))
    text = report(run)
    assert "script" not in Checked(text).tags and "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_a_long_run_stays_below_a_megabyte(tmp_path: Path) -> None:
    shape = Shape((Try(0, 20_000), Try(15_000, 30_000)), steps=30_000, layers=(1, 2, 3, 4), experts=64)
    assert len(report(generate(tmp_path / "r", shape))) < 1_000_000
    shape = Shape((Try(0, 6000),), steps=6000, layers=range(1, 25), experts=64)
    assert len(report(generate(tmp_path / "wide", shape))) < 800_000


def test_pictures_keep_to_their_pixels_whatever_they_show() -> None:
    noise = np.random.default_rng(0).random((256, 9000))
    for pixels in (1000, 30_000, 150_000):
        assert len(plot.heat_map(noise, "x", 0.0, 1.0, pixels)) < 1.1 * pixels + 1500
    assert len(plot.heat_map(noise, "x", 0.0, 1.0, 1)) < 1500  # a column at least


def test_the_bar_of_a_long_run_shows_what_its_time_went_into(tmp_path: Path) -> None:
    run = generate(tmp_path / "r", Shape((Try(0, 20, "finished"),), steps=20, layers=(), world_size=1))
    attempt, t = layout.attempt_folder(run, 0), START + 60.0
    lines = [b"".join(encode(0, START, "header", {"protocol": 1, "attempt": 0, "rank": 0, "world_size": 1}))]
    for step in range(1, 20_001):
        save = {"checkpoint_s": 3.0} if step % 20 == 0 else {}
        t += 10.0 + sum(save.values())
        lines.append(b"".join(encode(step, t, "step", {"step": step, "tokens": step, "step_s": 10.0, **save})))
    layout.rank_records(attempt, 0).write_bytes(b"".join(lines))
    ended = {"number": 0, "began": START, "ended": t, "cause": "finished", "action": "end"}
    layout.attempt_info(attempt).write_text(json.dumps(ended))
    (run / layout.MANIFEST).write_text(json.dumps({"submitted": START - 30}))
    bar = re.search(r"where the time went, from left to right.*?</svg>", report(run), re.DOTALL)
    assert bar is not None
    widths = dict.fromkeys(BUCKETS.values(), 0.0)
    for wide, colour in re.findall(r'width="([\d.]+)" height="28" fill="([^"]+)"', bar[0]):
        widths[colour] += float(wide)
    assert widths[BUCKETS[Bucket.training]] > 0.98 * plot.WIDTH


def test_steps_are_counted_from_zero_where_they_begin_so(tmp_path: Path) -> None:
    run = generate(tmp_path / "r", Shape((Try(0, 8),), steps=9, layers=(), world_size=1))
    records = layout.rank_records(layout.attempt_folder(run, 0), 0)
    header = records.read_bytes().partition(b"\n")[0] + b"\n"
    steps = [b"".join(encode(n + 1, START + n, "step", {"step": n, "tokens": n * 4096})) for n in range(9)]
    records.write_bytes(header + b"".join(steps))
    assert "<td>0-8</td>" in report(run)


def test_a_run_that_never_began_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / layout.CONFIG).write_text("name: x\n")
    assert not Checked(report(tmp_path)).open


def test_a_rank_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    run = generate(tmp_path / "moe" / "20251122-slow", Shape((Try(0, 100),), world_size=4))
    waits_for_data(run, rank=2, seconds=0.31)
    text = report(run)
    assert (
        "data_s: rank 2 on n2gpu1202 takes 0.30 of a step longer, by rank" in text and "optimizer_s: rank" not in text
    )


def test_a_sweep_shows_the_best_first_and_parameters_against_the_metric(tmp_path: Path) -> None:
    members = [
        Member(
            generate(tmp_path / str(n), Shape((Try(0, 40),), layers=())),
            f"run-{n}",
            "finished",
            {"lr": lr, "x": "<b>"},
            value,
        )
        for n, (lr, value) in enumerate([(1e-3, 3.0), (3e-3, 2.5), (1e-2, None)])
    ]
    found = Checked(text := sweep_report("s/1", members, "loss"))
    assert not found.open and "<b>" not in text
    rows = re.findall(r"<td>(run-\d)</td>", text)
    assert rows == ["run-1", "run-0", "run-2"]
    assert "loss over lr" in found.text and text.count("<circle") == 2
    judged = Checked(sweep_report("s/1", members, "grad_norm")).text
    assert "The best by grad_norm" in judged and "grad_norm over steps" in judged
    assert "loss over steps" in Checked(sweep_report("s/1", members, "score")).text  # which is no curve


def test_a_plot_has_its_names_beside_it_and_marks_what_is_not_finite(tmp_path: Path) -> None:
    runs = []
    for number in range(12):
        folder = generate(tmp_path / str(number), Shape((Try(0, 20),), steps=20, layers=(), world_size=1))
        runs.append((f"optim.lr={number} " * 12, folder))
    records = layout.rank_records(layout.attempt_folder(runs[0][1], 0), 0)
    records.write_text(re.sub(r'"loss":[\d.]+', '"loss":"NaN"', records.read_text(), count=3))
    draw(runs, "loss", tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert text.count("optim.lr=11") == 12 and "NaN or infinite" in text
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None and float(size[2]) > 72 * (HEIGHT + 12 * 0.3)  # higher, by the names
    dashes = re.findall(r"stroke-dasharray: ([\d., ]+)", text)
    assert len(dashes) >= 2  # of the eleventh and the twelfth, whose colours are those of the first two


def test_ticks_of_a_parameter_are_the_values_that_were_tried() -> None:
    tried = {1e-4: "0.0001", 3e-4: "0.0003", 1e-3: "0.001", 3e-3: "0.003"}
    drawn = dots([Dot(x, y, "<run>") for y, x in enumerate(tried)], "loss", "<lr>")
    assert set(re.findall(r'y="221" text-anchor="middle">([^<]*)<', drawn)) == set(tried.values())
    places = [float(at) for at in re.findall(r'cx="([\d.]+)"', drawn)]
    assert places[2] - places[0] == pytest.approx(places[3] - places[1], abs=0.2)  # by their powers
    assert "<run>" not in drawn and "<lr>" not in drawn
    assert [exact(value) for value in (1048576.0, 20000.0, 0.5, 1.5e-5)] == ["1048576", "20k", "0.5", "1.5e-05"]


def test_the_command_writes_a_file_and_tells_of_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    run = generate(tmp_path / "runs" / "demo" / "20260309-115900-0000", Shape((Try(0, 60, "finished"),), 60, layers=()))
    assert main(["report", "demo"]) == 0
    assert Path(f"{run.name}.html").read_text().startswith("<!doctype html>")
    for name in ("loss.svg", "loss.png", "loss.pdf"):
        assert main(["report", "demo", "-o", name, "--metric", "grad_norm"]) == 0
        assert Path(name).stat().st_size > 1000
    capsys.readouterr()
    assert main(["report", "demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"run": run.name, "name": "demo", "file": str(tmp_path / f"{run.name}.html")}
    for words, said in ((["-o", "x.docx"], "-o x.html"), (["-o", "x.svg", "--metric", "nope"], "Recorded are: loss")):
        assert main(["report", "demo", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["report", "demo", "-o", "no/such/folder/x.html"]) == 2
    assert "there is no folder no/such/folder" in capsys.readouterr().err
    (tmp_path / "f.html").mkdir()
    assert main(["report", "demo", "-o", "f.html"]) == 2
    (tmp_path / "f.html").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{run.name}.html",
        "loss.pdf",
        "loss.png",
        "loss.svg",
        "runs",
    ]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(1, 12))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    found = plot.ticks(low, low + span, most)
    assert len(found) <= most + 2
    assert all(low - 1e-6 * span <= tick <= low + span * 1.000001 + abs(low) * 1e-9 for tick in found[1:])
    assert found == sorted(found)


@given(st.integers(1, 40), st.integers(1, 1300))
def test_pictures_are_png_files(rows: int, columns: int) -> None:
    values = np.random.default_rng(0).random((rows, columns))
    values[0, 0] = np.nan
    data = plot.png(np.zeros((rows, columns), np.uint8), np.zeros((2, 3), np.uint8))
    assert struct.unpack(">II", data[16:24]) == (columns, rows)
    begin = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[begin - 4 : begin])
    assert len(zlib.decompress(data[begin + 4 : begin + 4 + size])) == rows * (columns + 1)
    assert plot.heat_map(values, "<x>", 0, 1).startswith("<img")


def test_the_highest_of_neighbours_stays_when_a_picture_is_made_narrower() -> None:
    values = np.zeros((1, 5000))
    values[0, 777] = 9.0
    assert plot._narrower(values, 600).max() == 9.0
