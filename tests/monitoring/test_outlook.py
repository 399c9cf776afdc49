"""The goodput and the forecast of a generated run, as people and programs see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitoring import layout
from monitoring.goodput import Bucket
from monitoring.reader import Reader
from monitoring.terminal.plain import finish, goodput, plain, to_json
from tests.monitoring.generate import START, Shape, Try, generate

SHAPE = Shape(tries=(Try(0, 120, "time_limit"), Try(120, 201, "node_failure"), Try(150, 290)))


def asked(folder: Path) -> Path:
    run = generate(folder, SHAPE)
    (run / layout.MANIFEST).write_text(json.dumps({"submitted": START - 30}))
    return run


def test_a_run_that_goes_on_has_its_time_accounted_for_and_an_end(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    now = Reader(run).read().updated
    assert now is not None
    found = Reader(run).read(now=now + 1)
    seconds = found.outlook.seconds
    assert sum(seconds.values()) == pytest.approx(now + 1 - (START - 30), abs=1.0)
    assert seconds[Bucket.repeated] == pytest.approx(51 * SHAPE.step_s, rel=0.1)
    assert seconds[Bucket.queue] == pytest.approx(30 + 2 * 12, abs=1)
    assert found.outlook.failures == 1
    assert found.outlook.left is not None
    assert found.outlook.left.low <= 210 * SHAPE.step_s * 1.1 <= found.outlook.left.high * 1.2
    assert goodput(found) in plain(found) and "repeated" in goodput(found)
    assert finish(found) in plain(found)


def test_programs_get_the_same_in_seconds(tmp_path: Path) -> None:
    found = to_json(Reader(asked(tmp_path / "run")).read(now=START + 1000))["goodput"]
    assert json.loads(json.dumps(found)) == found
    assert found["seconds"]["repeated"] > 0
    assert 0 < found["ettr"] < found["ettr_on_nodes"] <= 1


def test_a_run_that_never_began_has_no_goodput(tmp_path: Path) -> None:
    (tmp_path / layout.CONFIG).write_text("name: x\n")
    found = Reader(tmp_path).read()
    assert (found.outlook.ettr, goodput(found), finish(found)) == (None, "", "")
