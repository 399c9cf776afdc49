"""What the page is told: values as they are, parts of logs, and of a stream only what changed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from monitoring import layout
from monitoring.recorder import Recorder
from monitoring.request import shown
from monitoring.web import logs
from monitoring.web.encode import dumps, numbers
from monitoring.web.hub import Hub
from monitoring.web.pages import Pages, application
from monitoring.web.security import Guard
from monitoring.web.threads import Shared, in_thread
from monitoring.web.watched import binned
from tests.monitoring.generate import BATCH, Shape, Try, finish, generate, hours_of_devices, loss
from tests.monitoring.web import (
    DONE,
    HOSTILE,
    RUN,
    SETTINGS,
    SWEEP,
    TOKEN,
    Called,
    browser,
    guarded,
    source,
    tree,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "runs")


@pytest.fixture
def viewer(root: Path) -> TestClient:
    client = browser(guarded(root))
    client.headers["authorization"] = f"Bearer {TOKEN}"
    return client


# -- values --


def test_what_is_not_finite_is_named_and_what_is_missing_is_not() -> None:
    value = {
        "nan": math.nan,
        "up": math.inf,
        "down": np.float64(-math.inf),
        "none": None,
        "array": np.array([1.5, math.nan]),
    }
    assert json.loads(dumps(value)) == {
        "nan": "NaN",
        "up": "Infinity",
        "down": "-Infinity",
        "none": None,
        "array": [1.5, "NaN"],
    }


def test_text_is_made_safe_and_html_is_left_as_text() -> None:
    said = json.loads(dumps({"<b>\x1b[31m": "one\ntwo\x07 \u202eback", "path": Path("/a/\udcff")}))
    assert said == {"<b>": "one\ntwo\ufffd \ufffdback", "path": "/a/?"}


@given(st.lists(st.floats(width=64), max_size=30))
def test_numbers_keep_seven_digits(values: list[float]) -> None:
    for given_value, sent in zip(values, numbers(np.array(values, float)), strict=True):
        if math.isfinite(given_value):
            assert sent == pytest.approx(given_value, rel=1e-6, abs=0)
        else:
            assert isinstance(sent, str)


# -- logs --


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A log of a gigabyte, most of it a hole; its last lines, and one in its middle, are text."""
    path = tmp_path / "rank-0.log"
    with path.open("wb") as file:
        file.write(b"first line\n")
        file.seek(1 << 30)
        file.write(b"\n" + b"".join(b"line %d <b>\n" % n for n in range(5000)) + b"Needle at the END\nlast")
    return path


def test_of_a_large_log_only_parts_are_read(big: Path) -> None:
    read = []
    pread = os.pread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, size, at: read.append(size) or pread(fd, size, at))
        part = logs.before(big)
        assert part.lines[-1].text == "last" and part.lines[-2].text == "Needle at the END"
        earlier = logs.before(big, part.begin)
        assert earlier.end == part.begin and earlier.lines[-1].text.startswith("line ")
        assert sum(read) <= 3 * logs.PART
        found = logs.search(big, "needle")
        assert [line.text for line in found.lines] == ["Needle at the END"]
        assert found.begin > 0 and sum(read) < logs.SEARCHED + 8 * logs.BLOCK


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20), max_size=60),
    st.integers(1, 40),
    st.integers(5, 60),
)
def test_parts_join_to_the_whole_log(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], part: int, block: int
) -> None:
    file = tmp_path_factory.mktemp("log") / "x.log"
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="")
    whole = [line for line in file.read_bytes().decode().split("\n") if line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "PART", 200 + part)
        patch.setattr(logs, "BLOCK", 200 + block)
        found: list[logs.Line] = []
        end: int | None = None
        while end is None or end > 0:
            one = logs.before(file, end)
            found = [*one.lines, *found]
            assert one.begin < (one.size if end is None else end) or one.begin == 0
            end = one.begin
        assert [line.at for line in found] == sorted({line.at for line in found})
        assert len(found) == len(whole)
        hits = logs.search(file, "a").lines
        assert [line.at for line in hits] == [line.at for line in found if "a" in line.text.casefold()]


def test_a_line_longer_than_a_part_is_shown_passed_and_searched(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    bar = "".join(f"\r{n:6} of 30000" for n in range(30_000))
    file.write_text(f"first\n{bar}\nneedle {'x' * 3 * logs.LONGEST}\n", newline="")
    assert len(logs.before(file).lines) == 1 and len(bar) > 4 * logs.PART
    ends: list[str] = []
    end: int | None = None
    while end is None or end > 0:
        part = logs.before(file, end)
        assert part.lines
        ends, end = [part.lines[0].text, *ends], part.begin
    assert ends[0] == "first" and " 29999 of 30000" in ends
    (found,) = logs.search(file, "Needle").lines
    assert found.at == file.read_bytes().index(b"needle") and len(found.text) == logs.LONGEST
    assert [line.text for line in logs.search(file, "29999 OF").lines] == [" 29999 of 30000"]


@pytest.mark.parametrize("before", range(-7, 8, 2))
def test_a_match_is_found_wherever_blocks_begin(tmp_path: Path, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BLOCK", 1000)
    file = tmp_path / "x.log"
    for behind in (b"\nlast\n", b"y" * (3000 + before), b"y" * (5000 + before) + b"\n"):
        file.write_bytes(b"first\n" + b"x" * 7000 + b"Needle" + behind)
        (found,) = logs.search(file, "needle").lines
        assert found.at <= 7006 and logs.search(file, "needles").lines == ()
        assert [line.at for line in logs.search(file, "first").lines] == [0]


def test_a_log_that_grows_is_followed_and_one_that_shrank_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    assert logs.before(file).lines == ()
    file.write_text("one\ntwo\ntor")
    first = logs.before(file)
    with file.open("a") as more:
        more.write("n\nthree\nhal")
    grown = logs.after(file, 8)
    assert [line.text for line in grown.lines] == ["torn", "three"] and first.size == 11
    assert logs.after(file, grown.end).lines == ()
    file.write_text("new\n")
    assert [line.text for line in logs.after(file, grown.end).lines] == ["new"]


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank-0.log")
    assert logs.before(tmp_path / "rank-0.log").size == 0


# -- data --


def test_a_curve_comes_in_bins_and_then_only_its_end(viewer: TestClient, root: Path) -> None:
    asked = {"run": RUN, "metric": "loss", "most": 50}
    first = viewer.get("/api/curve", params=asked).json()
    curve = first["curve"]
    assert curve["place"] == 0 and 25 <= len(curve["x"]) <= 50 and curve["bad"] == []
    assert max(curve["high"]) > 10 and any(high > 7 for high in curve["high"][5:])  # the spike at step 80
    assert [ghost["attempt"] for ghost in first["ghosts"]] == [1]
    recorder = Recorder(layout.attempt_folder(root / RUN, 2), 0, 4, "tiny", 2)
    recorder.step(step=291, tokens=291 * BATCH, loss=math.nan)
    recorder.close()
    place = len(curve["x"]) - 1
    had = asked | {"history": first["history"], "first": curve["x"][0], "since": curve["x"][place], "place": place}
    later = _until(lambda: viewer.get("/api/curve", params=had).json(), lambda said: said["curve"]["bad"])
    assert later["curve"]["place"] == place and len(later["curve"]["x"]) <= 2
    assert later["curve"]["bad"] == [place + len(later["curve"]["x"]) - 1]
    assert viewer.get("/api/curve", params=had | {"history": "other"}).json()["curve"]["place"] == 0
    refused = viewer.get("/api/curve", params=had | {"smooth": 0.9})
    assert refused.status_code == 400
    assert refused.text.startswith("smooth: there is no such parameter. Allowed: run, metric, axis, low, high")
    zoomed = viewer.get("/api/curve", params=asked | {"low": 75, "high": 85}).json()["curve"]
    assert len(zoomed["x"]) >= 11 and zoomed["low"] == zoomed["high"]


def _until(ask: Any, good: Any) -> Any:
    for _ in range(60):
        if good(said := ask()):
            return said
        threading.Event().wait(0.1)
    raise AssertionError(said)


@pytest.mark.parametrize(
    "asked", [{"axis": "time"}, {"low": "x"}, {"smoothing": 1}, {"smoothing": -1}, {"most": "nan"}, {"high": "inf"}]
)
def test_a_question_that_makes_no_sense_is_answered_in_words(viewer: TestClient, asked: dict[str, Any]) -> None:
    answer = viewer.get("/api/curve", params={"run": RUN} | asked)
    assert answer.status_code == 400 and "must be" in answer.text


def test_ranks_experts_and_devices(viewer: TestClient) -> None:
    ranks = viewer.get("/api/ranks", params={"run": RUN}).json()
    assert ranks["ranks"] == [0, 1, 2, 3] and ranks["nodes"][3] == "n2gpu1205"
    assert len(ranks["seconds"]) == len(ranks["late"]) == 4 and len(ranks["seconds"][0]) == len(ranks["steps"])
    assert (ranks["part"], ranks["parts"]) == ("step_s", ["step_s"])
    part = viewer.get("/api/ranks", params={"run": RUN, "part": "data_s"}).json()
    assert part["part"] == "data_s" and {value for row in part["late"] for value in row} == {"NaN"}
    refused = viewer.get("/api/ranks", params={"run": RUN, "part": "<b>"})
    assert refused.status_code == 400 and "part: one of step_s, data_s" in refused.text
    assert viewer.get("/api/experts", params={"run": RUN}).json() == {"layers": [2, 4]}
    loads = viewer.get("/api/experts", params={"run": RUN, "layer": 2}).json()
    assert len(loads["share"]) == 16 and len(loads["entropy"]) == len(loads["steps"])
    assert viewer.get("/api/experts", params={"run": DONE, "layer": 99}).json()["steps"] == []
    assert [each["rank"] for each in viewer.get("/api/devices", params={"run": RUN}).json()["ranks"]] == [0, 1, 2, 3]


def test_devices_over_time(root: Path, viewer: TestClient) -> None:
    hours_of_devices(root / RUN)
    found = viewer.get("/api/devices", params={"run": RUN, "metric": ""}).json()
    assert found["metric"] == "gpu_util" and found["span"] == [0, 1] and not found["highest"]
    assert {"id": "power_w", "name": "power", "unit": "W"} in found["metrics"] and len(found["metrics"]) == 10
    assert found["ranks"] == [0, 1, 2, 3] and found["nodes"][3] == "n2gpu1205"
    assert len(found["times"]) == len(found["values"][2]) <= 400 and found["end"] == pytest.approx(36000, abs=200)
    assert "NaN" in found["values"][2]  # between two attempts
    hot = viewer.get("/api/devices", params={"run": RUN, "metric": "temperature_c"}).json()
    assert hot["highest"] and hot["peak"][1] > 90 and hot["newest"][0] < 65
    assert viewer.get("/api/devices", params={"run": RUN, "metric": "host_cpu_util"}).json()["ranks"] == [0, 2]
    refused = viewer.get("/api/devices", params={"run": RUN, "metric": "<b>"})
    assert refused.status_code == 400 and "metric: one of gpu_util, power_w" in refused.text
    none = viewer.get("/api/devices", params={"run": DONE, "metric": ""}).json()
    assert none["metrics"] == none["times"] == [] and none["end"] == 0
    newest = viewer.get("/api/devices", params={"run": RUN}).json()["ranks"]
    assert [each["temperature_c"] for each in newest] == hot["newest"]


def test_a_sweep_has_a_row_for_each_run_begun_or_not(viewer: TestClient) -> None:
    found = viewer.get("/api/sweep", params={"sweep": SWEEP}).json()
    assert [each["state"] for each in found["members"]] == ["finished", "finished", "not begun"]
    assert found["members"][1]["settings"] == SETTINGS[1]
    assert found["members"][0]["loss"] is not None and found["members"][2]["loss"] is None


def test_a_run_that_ends_while_it_is_watched_is_shown_as_it_ended(root: Path) -> None:
    member = generate(root / f"{SWEEP}.2", Shape((Try(0, 60),), steps=120, layers=()))
    hub = Hub(source(root))

    def seen() -> list[Any]:
        line, row = hub.overview()[f"run:{SWEEP}.2"], hub.sweep(SWEEP)["members"][2]
        return [line["state"], line["share"], line["loss"], row["state"], row["step"], row["loss"]]

    assert seen() == ["running", 0.5, pytest.approx(loss(60)), "running", 60, pytest.approx(loss(60))]
    recorder = Recorder(layout.attempt_folder(member, 0), 0, 4, "tiny_moe", 0)
    for step in range(61, 121):
        recorder.step(step=step, tokens=step * BATCH, loss=loss(step))
    recorder.close()
    finish(member, Shape())
    assert seen() == ["finished", 1.0, pytest.approx(loss(120)), "finished", 120, pytest.approx(loss(120))]
    with pytest.MonkeyPatch.context() as patch:  # once it has ended, it is not read again

        def never(*_: object) -> None:
            raise AssertionError("read again")

        patch.setattr("monitoring.web.hub.last_value", never)
        patch.setattr("monitoring.web.watched.Reader", never)
        assert seen()[2] == pytest.approx(loss(120))


def test_whoever_looks_at_a_sweep_takes_no_job_from_other_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.web.hub.JOBS_EVERY", 0.0)
    hub = Hub(source(root))
    hub.sweep(SWEEP)
    monkeypatch.setattr("monitoring.web.hub.JOBS_EVERY", 60.0)
    assert hub.run(RUN)["head"]["job"] is not None


def test_slurm_is_asked_of_a_run_that_is_resumed_whoever_looks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.web.hub.JOBS_EVERY", 0.0)
    for ended_every in (60.0, 0.0):  # just now, and after the overview was not looked at for long
        hub = Hub(source(root))
        finish(root / RUN, Shape())
        hub.overview()
        (root / RUN / layout.FINISHED).unlink()
        monkeypatch.setattr("monitoring.web.hub.ENDED_EVERY", ended_every)
        if ended_every:
            hub.run(RUN)
        assert hub.run(RUN)["head"]["job"] is not None


def test_prometheus_is_told_of_the_runs_that_have_not_ended(viewer: TestClient) -> None:
    answer = viewer.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    steps = [line for line in answer.text.splitlines() if line.startswith("hpc_run_step{")]
    assert len(steps) == 1 and RUN.split("/")[1] in steps[0] and steps[0].endswith(" 290.0")
    assert answer.text.endswith("# EOF\n")


DAMAGE = {
    "config.yaml": b"\xff\x00: [",
    "state.json": b'{"state": ["running"], "job_id": {}, "reason": 3, "cluster": []}',
    "FINISHED": b"[1, 2]",
    "manifest.json": b'{"submitted": "yesterday", "resumed": [1, null], "sweep": 7}',
    "silenced.json": b'{"stall": 5}',
    "notes.json": b'{"tags": {"a": 1}, "note": []}',
    "attempts/2/attempt.json": b'{"nodes": 5, "began": "x", "world_size": "y", "ended": [], "cause": 9}',
    "attempts/2/rank-0.jsonl": b'\x00{"seq":1}\n{"seq":0,"t":1,"kind":"step","step":"a","tokens":null}\n[]\n{',
    "attempts/2/experts.jsonl": b'{"seq":0,"t":1,"kind":"experts","step":1,"layer":0,"first":0,"load":[-1]}\n',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_of_damaged_files_is_shown_as_far_as_it_can_be(root: Path, name: str) -> None:
    from hpc.cli import serve

    (root / RUN / name).write_bytes(DAMAGE[name])

    runs = replace(serve.source(root), jobs=lambda folders, known: {})

    async def listen() -> None:
        pages = Pages(runs, asyncio.Event())
        one = Listener(pages, RUN, "2/0")
        await one.hear()
        assert one.state.get("head") or one.state["trouble"]
        pages.hub.overview()
        rows = pages.hub.overview()
        assert f"run:{RUN}" in rows and rows[f"run:{DONE}"]["spark"]

    asyncio.run(listen())
    client = browser(Guard(application(runs), TOKEN))
    for data in ("curve", "ranks", "experts", "devices", "metrics", "log", "differences", "request"):
        answer = client.get(f"/api/{data}", params={"run": RUN}, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code in (200, 400, 503), data


def test_one_row_that_cannot_be_read_takes_no_other_with_it(root: Path) -> None:
    whole = source(root)

    def some(folders: Any, jobs: Any) -> Any:
        if any(folder.name in RUN for folder in folders):
            raise PermissionError(13, "Permission denied")
        return whole.rows(folders, jobs)

    said = Hub(replace(whole, rows=some)).overview()
    assert said[f"run:{RUN}"]["state"] == "unknown" and "Permission denied" in said[f"run:{RUN}"]["reason"]
    assert said[f"run:{DONE}"]["state"] == "finished"


def test_what_was_asked_for_is_told_as_it_can_be_typed_again(viewer: TestClient, root: Path) -> None:
    manifest = {
        "command": ["hpc", "submit", "name=a b", "notify.webhook=https://host/secret"],
        "git": {"commit": "f589", "branch": "main", "changed": ["x.py"]},
        "resumed": [{"typed": ["optim.lr=1"], "git": None}, 7],
        "packages": {"torch": "2.13"},
        "python": {"version": "3.11"},
    }
    (root / DONE / "manifest.json").write_text(json.dumps(manifest))
    found = viewer.get("/api/request", params={"run": DONE}).json()
    assert found["told"] == [
        ["typed", "hpc submit 'name=a b' 'notify.webhook=(set)'"],
        ["then", f"hpc resume {DONE.split('/')[1]} optim.lr=1"],
        ["code", "f589 of main, and 1 file differs from it"],
        ["versions", "Python 3.11, torch 2.13"],
    ]
    assert found["settings"]["same"] == 1
    assert (shown("a.webhook", "https://x/secret"), shown("a.webhook", None), shown("lr", 1)) == ("(set)", None, 1)


def test_configurations_are_compared(viewer: TestClient) -> None:
    found = viewer.get("/api/differences", params={"run": [RUN, SWEEP + ".0"]}).json()
    assert [row["path"] for row in found["differences"]] == ["name", "id"]
    assert viewer.get("/api/differences", params={"run": [RUN] * 13}).status_code == 400
    found = viewer.get("/api/differences", params={"run": [RUN, "no/such", SWEEP + ".0"]}).json()
    assert found["runs"] == [RUN, SWEEP + ".0"] and found["unknown"] == ["no/such"]
    assert [len(row["values"]) for row in found["differences"]] == [2, 2]


def test_a_finding_is_silenced_and_told_again(viewer: TestClient, root: Path) -> None:
    own = {"origin": "http://localhost"}

    def findings() -> list[dict[str, Any]]:
        return Hub(source(root)).run(RUN)["findings"]

    def silent(key: str) -> bool:
        return next(each["silenced"] for each in findings() if each["key"] == key)

    found = findings()
    assert found and not any(each["silenced"] for each in found)  # nothing was recorded for very long
    body = {"run": RUN, "finding": found[0]["key"]}
    for how, quiet in (("silence", True), ("speak", False), ("acknowledge", True), ("speak", False)):
        assert viewer.post("/api/findings", json=body | {"how": how}, headers=own).status_code == 200
        assert silent(body["finding"]) is quiet
    refused = viewer.post("/api/findings", json=body | {"how": "shout"}, headers=own)
    assert refused.status_code == 400 and "acknowledge" in refused.text


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 10**6))
def test_a_slow_step_is_seen_in_whatever_bins(columns: int, most: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((3, columns))
    values[values < 0.1] = np.nan
    values[1, seed % columns] = 9.0
    shown = binned(np.arange(columns) * 10, values, -math.inf, math.inf, most)
    assert (
        shown.values.shape[1] <= most
        and np.nanmax(shown.values[1]) == 9.0
        and len(shown.steps) == shown.values.shape[1]
    )


# -- streams --


class Listener:
    """Somebody at a stream."""

    def __init__(self, pages: Pages, run: str | None, log: str | None = None) -> None:
        self.pages, self.run, self.log = pages, run, log
        self.state: dict[str, Any] = {}
        self.stream: AsyncIterator[bytes] | None = None

    async def hear(self) -> tuple[str, dict[str, Any]]:
        if self.stream is None:
            self.stream = self.pages._stream(self.run, await self.pages._follow(self.run, self.log))
        async with asyncio.timeout(20):
            said = await anext(self.stream)
        kind, data = said.decode().removesuffix("\n\n").split("\n")
        message = json.loads(data.removeprefix("data: "))
        if kind == "event: state":
            for name in message["gone"]:
                del self.state[name]
            self.state |= message["set"]
        return kind.removeprefix("event: "), message


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.web.pages.EVERY", 0.02)
    monkeypatch.setattr("monitoring.web.watched.FRESH", 0.0)
    monkeypatch.setattr("monitoring.web.hub.LIST_EVERY", 0.0)
    monkeypatch.setattr("monitoring.web.threads.PACE", 0.0)


def test_a_stream_sends_all_once_and_then_what_changed(root: Path) -> None:
    async def listen() -> None:
        one = Listener(Pages(source(root), asyncio.Event()), RUN, "2/0")
        kind, _ = await one.hear()
        assert kind == "state" and one.state["progress"]["step"] == 290 and one.state["head"]["state"] == "running"
        kind, log = await one.hear()
        assert kind == "log" and log["anew"] and "<script>alert(2)</script> red \ufffdback" in log["lines"][-1]["text"]
        recorder = Recorder(layout.attempt_folder(root / RUN, 2), 0, 4, "tiny", 2)
        recorder.step(step=291, tokens=291 * BATCH, loss=3.125)
        recorder.close()
        with layout.rank_log(layout.attempt_folder(root / RUN, 2), 0).open("a") as log_file:
            log_file.write("new line\n")
        kinds: dict[str, dict[str, Any]] = {}
        while set(kinds) != {"state", "log"} or one.state["progress"]["step"] != 291:
            kind, message = await one.hear()
            kinds[kind] = message
            assert "end" not in message.get("set", {})  # nothing was said twice
        assert [line["text"] for line in kinds["log"]["lines"]] == ["new line"] and not kinds["log"]["anew"]
        assert one.state["metrics"]["loss"] == 3.125

    asyncio.run(listen())


def test_a_run_deleted_while_watched_is_said_to_be_gone_and_may_come_back(root: Path, tmp_path: Path) -> None:
    async def listen() -> None:
        pages = Pages(source(root), asyncio.Event())
        one = Listener(pages, RUN)
        await one.hear()
        shutil.move(root / RUN, tmp_path / "away")
        while "gone" not in one.state:
            await one.hear()
        shutil.move(tmp_path / "away", root / RUN)
        while "gone" in one.state:
            await one.hear()
        assert one.state["progress"]["step"] == 290

    asyncio.run(listen())


def test_the_overview_has_every_run_and_learns_more_about_them(root: Path) -> None:
    async def listen() -> None:
        one = Listener(Pages(source(root), asyncio.Event()), None)
        await one.hear()
        assert set(one.state["order"]) == {RUN, DONE, HOSTILE, f"{SWEEP}.0", f"{SWEEP}.1"}
        assert one.state["sweeps"][0] == {"key": SWEEP, "id": SWEEP.split("/")[1], "runs": 3, "begun": 2}
        while "spark" not in one.state[f"run:{HOSTILE}"]:
            await one.hear()
        assert one.state[f"run:{RUN}"]["ettr"] is not None and one.state[f"run:{RUN}"]["findings"]
        finish(root / RUN, Shape())
        while one.state[f"run:{RUN}"]["state"] != "finished":
            _, message = await one.hear()
            assert f"run:{DONE}" not in message["set"]  # of which there was nothing new

    asyncio.run(listen())


def test_all_viewers_share_one_reader_and_one_squeue(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called, made = Called(), []
    from monitoring.web import watched

    original = watched.Reader
    monkeypatch.setattr(watched, "Reader", lambda folder: made.append(folder) or original(folder))

    async def listen() -> None:
        pages = Pages(source(root, called), asyncio.Event())
        everybody = [Listener(pages, RUN) for _ in range(5)] + [Listener(pages, None) for _ in range(5)]
        await asyncio.gather(*(each.hear() for each in everybody))

    asyncio.run(listen())
    assert len(called.jobs) == 1
    assert made.count(root / RUN) == 1


def test_a_reader_that_nobody_needs_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(source(root))
    one = hub.watched(RUN)
    assert hub.watched(RUN) is one
    monkeypatch.setattr("monitoring.web.hub.KEPT", -1.0)
    hub.watched(DONE)
    assert hub.watched(RUN) is not one


def test_a_stream_ends_with_the_program(root: Path) -> None:
    async def listen() -> None:
        closing = asyncio.Event()
        one = Listener(Pages(source(root), closing), None)
        await one.hear()
        closing.set()
        with pytest.raises(StopAsyncIteration):
            while True:
                await one.hear()

    asyncio.run(listen())


def test_a_read_that_hangs_keeps_nobody_from_ending() -> None:
    block = threading.Event()

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread(block.wait)
        assert await in_thread(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 / 0)
        made = []

        async def make() -> int:
            made.append(1)
            await asyncio.sleep(0.01)
            return len(made)

        shared = Shared(make, 10.0)
        assert await asyncio.gather(*(shared.get() for _ in range(9))) == [1] * 9

    asyncio.run(ask())
    assert any(each.name == "read" and each.daemon for each in threading.enumerate())
    block.set()
