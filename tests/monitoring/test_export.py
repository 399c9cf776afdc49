"""Exports: opened by the readers of those programs, and never holding a stretch of steps twice."""

from __future__ import annotations

import contextlib
import json
import math
import random
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import layout, load, tfevents
from monitoring.export import About, Export, Missing
from monitoring.export.increments import Cursor
from monitoring.history import History
from monitoring.recorder import encode
from tests.monitoring.generate import Shape, Try, generate, loss

ABOUT = About("tiny", "20260101-000000-abcd", {"optim": {"lr": 0.1}}, {"optim.lr": 0.1, "moe": True}, ("good",), "why")
FORMATS = ("tensorboard", "csv", "parquet")


def append(run: Path, attempt: int, *records: tuple[str, dict[str, Any]]) -> None:
    """Records of rank 0, as a writer would append them."""
    folder = layout.attempt_folder(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    path = layout.rank_records(folder, 0)
    known = path.read_bytes().count(b"\n") if path.exists() else 0
    with path.open("ab") as file:
        for seq, (kind, fields) in enumerate(records, known):
            file.writelines(encode(seq, 1e9 + fields.get("step", 0), kind, fields))


def steps(first: int, last: int, value: float = 0.0) -> list[tuple[str, dict[str, Any]]]:
    return [("step", {"step": n, "tokens": 8 * n, "loss": n + value}) for n in range(first, last + 1)]


def exported(to: str, folder: Path) -> dict[int, float]:
    """Step -> loss, as the format's own reader sees it; a step that is there twice fails."""
    place = folder / ABOUT.name / ABOUT.id
    if to == "tensorboard":
        found = [(each.step, each.value) for each in events(place).Scalars("loss")]
    else:
        read = pd.read_csv if to == "csv" else pd.read_parquet
        frame = read(place / f"history.{to}")
        found = list(zip(frame["step"].tolist(), frame["loss"].tolist(), strict=True))
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    return dict(found)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("to", FORMATS)
def test_the_curve_is_exported_without_what_was_lost(to: str, tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    export = Export(to, tmp_path / "out", run, ABOUT)
    assert export.look(over=True) == 290
    export.close("running")
    found = exported(to, tmp_path / "out")
    assert list(found) == list(range(1, 291))
    assert found[180] == pytest.approx(loss(180), rel=1e-6)


@pytest.mark.parametrize("to", FORMATS)
def test_followed_over_requeues_it_never_holds_a_lost_stretch(to: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    export = Export(to, tmp_path / "out", run, ABOUT)
    append(run, 0, *steps(1, 20))
    assert export.look(over=False) == 19  # more may be said of the newest step
    append(run, 0, *steps(21, 30))
    export.look(over=False)
    append(run, 1, ("event", {"event": "resumed", "fields": {"step": 15}}))
    export.look(over=False)
    append(run, 1, *steps(16, 18, 0.5))
    export.look(over=False)
    append(run, 1, ("event", {"event": "rewound", "fields": {"to_step": 16}}), *steps(17, 40, 0.25))
    export.look(over=True)
    export.close("finished")
    expected = {n: n + (0.25 if n > 16 else 0.5 if n > 15 else 0) for n in range(1, 41)}
    assert exported(to, tmp_path / "out") == expected


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_takes_the_place_of_the_one_before(to: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for last in (10, 20):
        append(run, 0, *steps(last - 9, last))
        export = Export(to, tmp_path / "out", run, ABOUT)
        export.look(over=True)
        export.close("running")
    assert list(exported(to, tmp_path / "out")) == list(range(1, 21))
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("to", FORMATS)
def test_nan_and_infinity_are_kept_apart_from_what_is_missing(to: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    append(run, 0, ("step", {"step": 1, "tokens": 1, "loss": math.nan}))
    append(run, 0, ("step", {"step": 2, "tokens": 2, "lr": 0.1}), ("step", {"step": 3, "tokens": 3, "loss": math.inf}))
    export = Export(to, tmp_path / "out", run, ABOUT)
    export.look(over=True)
    export.close("running")
    place = tmp_path / "out" / ABOUT.name / ABOUT.id
    if to == "tensorboard":
        found = events(place).Scalars("loss")
        assert [each.step for each in found] == [1, 3]
        assert math.isnan(found[0].value) and found[1].value == math.inf
    elif to == "csv":
        lines = (place / "history.csv").read_text().splitlines()
        assert lines[0] == "step,tokens,attempt,t,loss,lr"
        assert [line.split(",")[4] for line in lines[1:]] == ["nan", "", "inf"]
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(place / "history.parquet")["loss"].null_count == 1
        values = pyarrow.parquet.read_table(place / "history.parquet")["loss"].to_pylist()
        assert math.isnan(values[0]) and values[1] is None and values[2] == math.inf


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_the_other_tables_stand_beside_the_curve(to: str, tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    export = Export(to, tmp_path / "out", run, ABOUT, lost=True)
    export.look(over=True)
    export.close("running")
    place = tmp_path / "out" / ABOUT.name / ABOUT.id
    read = pd.read_csv if to == "csv" else pd.read_parquet
    frames, whole = {name: read(place / f"{name}.{to}") for name in ("attempts", "ranks", "experts", "lost")}, load(run)
    assert frames["attempts"]["cause"].tolist()[:2] == ["time_limit", "node_failure"]
    assert len(frames["ranks"]) == len(whole.ranks) and len(frames["experts"]) == len(whole.experts)
    assert frames["lost"]["step"].tolist() == list(range(151, 202))


def test_lost_stretches_are_runs_of_their_own_in_tensorboard(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    export = Export("tensorboard", tmp_path / "out", run, ABOUT, lost=True)
    export.look(over=True)
    export.close("running")
    place = tmp_path / "out" / ABOUT.name / ABOUT.id
    assert [each.name for each in place.iterdir() if each.is_dir()] == ["lost-attempt-1"]
    assert [each.step for each in events(place / "lost-attempt-1").Scalars("loss")] == list(range(151, 202))


def test_tensorboard_has_wall_times_and_hparams(tmp_path: Path) -> None:
    Plugin = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData

    run = generate(tmp_path / "run")
    export = Export("tensorboard", tmp_path, run, ABOUT)
    export.look(over=True)
    export.close("failed")
    found = events(tmp_path / ABOUT.name / ABOUT.id)
    frame = load(run).history
    assert [each.wall_time for each in found.Scalars("loss")] == frame["t"].tolist()
    content = found.PluginTagToContent("hparams")
    start = Plugin.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["optim.lr"].number_value == 0.1 and start.hparams["moe"].bool_value is True
    end = Plugin.FromString(content["_hparams_/session_end_info"]).session_end_info
    assert end.status == 2  # STATUS_FAILURE


def test_a_csv_of_a_run_with_a_late_metric_has_it_for_all_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    export = Export("csv", tmp_path / "out", run, ABOUT)
    append(run, 0, *steps(1, 5))
    export.look(over=False)
    append(run, 0, ("step", {"step": 6, "tokens": 48, "loss": 6.0, 'odd, "name"\n': 1.5}))
    export.look(over=True)
    export.close("running")
    frame = pd.read_csv(tmp_path / "out" / ABOUT.name / ABOUT.id / "history.csv")
    assert str(frame['odd, "name" '].tolist()) == "[nan, nan, nan, nan, nan, 1.5]"
    assert frame["loss"].tolist() == [1, 2, 3, 4, 5, 6]


def test_what_is_missing_is_named_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Missing, match=r"pip install 'hpc\[parquet\]'"):
        Export("parquet", tmp_path, tmp_path, ABOUT)


# -- what is new ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 10**9))
def test_whatever_became_of_a_run_the_increments_add_up_to_its_curve(tmp_path_factory: Any, seed: int) -> None:
    chance = random.Random(seed)
    run = tmp_path_factory.mktemp("run")
    history, cursor, found = History(run), Cursor(), {}
    at = 0
    for attempt in range(chance.randint(1, 4)):
        at = chance.randint(0, at)
        append(run, attempt, ("event", {"event": "resumed", "fields": {"step": at}}))
        for _ in range(chance.randint(1, 4)):
            if chance.random() < 0.3:
                at = chance.randint(0, at)
                append(run, attempt, ("event", {"event": "rewound", "fields": {"to_step": at}}))
            more = chance.randint(0, 6)
            append(run, attempt, *steps(at + 1, at + more, chance.random()))
            at += more
            history.refresh()
            take(cursor, history, found, over=False)
    for _ in range(25):  # older attempts are looked at seldom
        history.refresh()
    take(cursor, history, found, over=True)
    frame = history.frame()
    curve = dict(zip(frame["step"], frame["loss"], strict=True)) if "loss" in frame else {}
    assert found == curve


def take(cursor: Cursor, history: History, found: dict[int, float], *, over: bool) -> None:
    increment = cursor.take(history, over=over)
    if increment.back_to is not None:
        for step in [each for each in found if each > increment.back_to]:
            del found[step]
    for chunk in increment.chunks:
        for step, _, _, metrics in chunk.rows():
            assert step > max(found, default=-1)
            found[step] = metrics["loss"]


# -- TensorBoard's records ------------------------------------------------------------------------------------------


def test_the_checksum_is_castagnolis() -> None:
    assert tfevents.crc32c(b"123456789") == 0xE3069283
    assert tfevents.crc32c(b"") == 0


@given(st.lists(st.binary(max_size=80), max_size=60))
def test_checksums_of_many_are_those_of_each(pieces: list[bytes]) -> None:
    assert tfevents.crc32cs(pieces) == [tfevents.crc32c(piece) for piece in pieces]


@given(
    st.floats(allow_nan=False),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.dictionaries(st.text(min_size=1, max_size=8), st.floats(width=32, allow_nan=False), max_size=4),
)
def test_an_event_comes_back_as_it_was_written(t: float, step: int, values: dict[str, float]) -> None:
    coded = [tfevents.value_head(tag) + struct.pack("<f", value) for tag, value in values.items()]
    found = tfevents.event(tfevents.scalars(t, step, coded))
    assert (found.t, found.step, dict(found.scalars)) == (t, step, values)


@given(st.binary(max_size=200))
def test_no_event_is_too_strange(data: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError, struct.error):
        tfevents.event(data)


def test_damage_costs_the_record_it_is_in(tmp_path: Path) -> None:
    file = tmp_path / "events"
    whole = [tfevents.scalars(1.0, n, [tfevents.value_head("a") + struct.pack("<f", n)]) for n in range(30)]
    data = bytearray(tfevents.framed(whole))
    data[12 + 4] ^= 1
    file.write_bytes(data[:-3])
    found = tfevents.EventFile(file)
    assert [each.step for each in found] == list(range(1, 29))
    assert found.bad == 2


# -- Weights & Biases ------------------------------------------------------------------------------------------------


def test_wandb_gets_an_offline_run_without_asking_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    pytest.importorskip("wandb")
    asked: list[bool] = []
    proxy = socket.create_server(("127.0.0.1", 0))

    def count() -> None:
        try:
            while True:
                proxy.accept()[0].close()
                asked.append(True)
        except OSError:
            return

    threading.Thread(target=count, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "WANDB_SILENT", "WANDB_CONSOLE"):
        monkeypatch.setenv(name, "")  # what the export sets does not stay
    run = tmp_path / "run"
    append(run, 0, *steps(1, 12))
    export = Export("wandb", tmp_path / "out", run, ABOUT)
    export.look(over=False)
    append(run, 1, ("event", {"event": "resumed", "fields": {"step": 8}}), *steps(9, 20, 0.5))
    append(run, 1, ("step", {"step": 21, "tokens": 168, "loss": math.nan}))
    export.look(over=True)
    export.close("finished")
    proxy.close()
    assert not asked
    (file,) = (tmp_path / "out").rglob("*.wandb")
    records = list(wandb_records(file.read_bytes()))
    rows = [
        {"/".join(i.nested_key) or i.key: i.value_json for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [int(row["_step"]) for row in rows] == list(range(1, 22))
    values = [json.loads(row["loss"]) for row in rows[:-1]]
    assert values == [n + (0.5 if n > 8 else 0) for n in range(1, 21)]
    assert math.isnan(float(json.loads(rows[-1]["loss"])))
    assert float(rows[4]["_timestamp"]) == 1e9 + 5
    (about,) = [record.run for record in records if record.HasField("run")]
    assert (about.run_id, about.display_name, about.notes) == (ABOUT.id, f"{ABOUT.name}/{ABOUT.id}", "why")
    assert list(about.tags) == ["good"]
    assert {u.key: json.loads(u.value_json) for u in about.config.update if u.key == "optim"} == {"optim": {"lr": 0.1}}


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log of 32 KiB blocks, W&B's own protocol buffers in it.

    W&B reads it in its compiled core alone since it dropped its reader in Python.
    """
    Record = import_module("wandb.proto.wandb_internal_pb2").Record

    assert data[:4] == b":W&B"
    at, part = 7, b""
    while at < len(data):
        if (left := (1 << 15) - at % (1 << 15)) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(part)
            part = b""


def test_a_chunk_has_a_row_for_each_step(tmp_path: Path) -> None:
    run = generate(tmp_path / "run", Shape(tries=(Try(0, 60, "finished"),)))
    history = History(run)
    history.refresh()
    (chunk,) = Cursor().take(history, over=True).chunks
    rows = list(chunk.rows())
    assert [step for step, *_ in rows] == list(range(1, 61))
    assert [step for step, _, _, metrics in rows if "validation_loss" in metrics] == [50]
    assert np.array_equal(chunk.steps, np.arange(1, 61))
