"""What is of another type than it should be, in any file of a run, costs what it said and no view."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc import listing
from hpc.runs import Run
from monitoring import fields, layout
from monitoring.experts import Experts
from monitoring.export import openmetrics
from monitoring.export.tables import tables
from monitoring.history import History
from monitoring.reader import Reader
from monitoring.report.run import report
from monitoring.terminal.plain import plain, summary, to_json
from monitoring.words import clock
from tests.monitoring.generate import Shape, Try, generate

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def said(file: Callable[[Path], Path], **changed: Any) -> Callable[[Path], None]:
    """Changes a JSON document."""

    def change(run: Path) -> None:
        path = file(run)
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changed}))

    return change


def recorded(file: Callable[[Path], Path], **fields: Any) -> Callable[[Path], None]:
    """Adds a record."""

    def change(run: Path) -> None:
        with file(run).open("a") as records:
            records.write(json.dumps({"seq": 10_000, "t": 1_763_800_090.0, **fields}) + "\n")

    return change


def attempt(run: Path) -> Path:
    return layout.attempt_info(layout.attempt_folder(run, 1))


def rank_0(run: Path) -> Path:
    return layout.rank_records(layout.attempt_folder(run, 1), 0)


def experts(run: Path) -> Path:
    return layout.experts_records(layout.attempt_folder(run, 1))


def manifest(run: Path) -> Path:
    return run / layout.MANIFEST


def finished(run: Path) -> Path:
    return run / layout.FINISHED


def config(text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / layout.CONFIG).write_text(text)

    return change


CHANGES = [
    *(said(attempt, **{key: odd}) for key in ("cause", "evidence") for odd in ([], {"a": 1}, 5)),
    *(said(attempt, world_size=odd) for odd in ("x", -1, 1 << 62, [])),
    *(said(attempt, **{key: odd}) for key in ("began", "ended") for odd in (1e18, 1e300, "x", True, -5)),
    *(said(attempt, nodes=odd) for odd in (7, "n1", [7, None, {}], {})),
    *(said(attempt, **{key: odd}) for key in ("resumed_from", "action", "exit_code", "job_id") for odd in ([], 0.5)),
    *(recorded(rank_0, kind="event", event=odd) for odd in ({}, [], 1, None)),
    recorded(rank_0, kind="event", event="resumed", step=1 << 63),
    recorded(rank_0, kind="header", world_size="x", start=[]),
    *(recorded(rank_0, kind="step", step=100, tokens=1, loss=value) for value in (1e300, 1e308, -1e308, [], {})),
    recorded(rank_0, kind="step", step=100, tokens=1, t=1e300),
    *(recorded(experts, kind="experts", step=1, first=0, load=[1], layer=odd) for odd in ([], {}, "x")),
    recorded(experts, kind="experts", step=1, first=0, layer=2, load=[1 << 63]),
    *(said(manifest, submitted=odd) for odd in (1e18, 1e300, "x", [])),
    *(said(manifest, git=odd, command=[1]) for odd in (-5, [], "x")),
    said(finished, step="x", tokens=[], loss_last={}),
    *(config(text) for text in ("name: x\njob: hello\n", "train: [1]\n", "cluster: noctua2\n", "train:\n  watch: 3\n")),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape((Try(0, 20, "time_limit"), Try(15, 30)), steps=40, layers=(2,), world_size=2)
    return generate(tmp_path_factory.mktemp("runs") / "tiny" / "20251122-1f2e", shape)


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_every_view_shows_the_rest(change: Callable[[Path], None], sound: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sound, tmp_path / "tiny" / sound.name)
    change(run)
    snapshot = Reader(run).read()
    assert snapshot.attempts and snapshot.step is not None and snapshot.step >= 30
    assert plain(snapshot) and summary(snapshot) and json.dumps(to_json(snapshot))
    assert "hpc_run_step{" in openmetrics.render([snapshot])
    assert report(run)
    assert Experts(run).layers() == [2]
    (history := History(run)).refresh()
    assert "attempts" in dict(tables(history, lost=True))
    row = listing.row(Run(run), None)
    assert not isinstance(row.tokens_per_s, str) and isinstance(row.step, int | None)


@given(ODD)
def test_a_field_is_of_its_type_or_not_there(odd: Any) -> None:
    names = ("began", "ended", "start", "job_id", "cause", "evidence", "action", "resumed_from", "exit_code")
    found = fields.attempt(dict.fromkeys((*names, "world_size", "nodes"), odd))
    assert all(found[name] is None or 0 <= found[name] < fields.LATEST for name in names[:3])
    assert all(isinstance(found[name], str | None) for name in names[3:7])
    assert all(found[name] is None or found[name] in fields.INT64 for name in names[7:])
    assert found["world_size"] is None or 0 < found["world_size"] <= fields.MOST_RANKS
    assert isinstance(found["nodes"], list) and all(isinstance(node, str) and node for node in found["nodes"])
    assert (number := fields.number(odd)) is None or math.isfinite(number)
    assert isinstance(fields.part(odd, "a"), dict)


def test_a_damaged_field_says_nothing_and_a_sound_one_what_it_says() -> None:
    assert fields.attempt({"began": 1.5, "job_id": 17, "nodes": "n1", "world_size": 4, "other": []}) == {
        **{"began": 1.5, "job_id": "17", "nodes": ["n1"], "world_size": 4, "other": []}
    }
    assert clock(1e300, 0.0) == clock(1e18, 0.0) == "?"
    assert fields.seconds(True) is fields.seconds(1e18) is fields.seconds("1") is fields.whole(1.0) is None
