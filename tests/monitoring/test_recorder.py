"""The writer keeps the protocol, loses nothing that was written, and never disturbs the training thread."""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import recorder as record
from monitoring.layout import experts_records, rank_records
from monitoring.recorder import LINE, PROTOCOL, Recorder, encode, metric, number

FIXED = ("seq", "t", "kind", "step", "tokens")


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def new(folder: Path) -> Recorder:
    return Recorder(folder, 0, 4, "demo/1", 3)


def test_the_first_line_is_a_header_and_the_rest_count_on(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=4096, loss=9.5)
    recorder.rank(step=1, step_s=0.5)
    recorder.event("checkpoint", step=1, path="step-1", took_s=0.25)
    assert recorder.close()
    header, step, rank, event = read(rank_records(tmp_path, 0))
    assert header["kind"] == "header" and header["protocol"] == PROTOCOL
    assert (header["run"], header["attempt"], header["rank"], header["world_size"]) == ("demo/1", 3, 0, 4)
    assert step["kind"] == "step" and (step["step"], step["tokens"], step["loss"]) == (1, 4096, 9.5)
    assert rank["kind"] == "rank" and rank["step_s"] == 0.5
    assert event["kind"] == "event" and (event["event"], event["path"]) == ("checkpoint", "step-1")
    assert [line["seq"] for line in (header, step, rank, event)] == [0, 1, 2, 3]
    assert abs(step["t"] - time.time()) < 60


def test_loads_of_experts_are_integer_arrays_in_a_file_of_their_own(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    load = [10_000_000_000 + n for n in range(700)]
    recorder.experts(step=10, layers={2: [5, 6], 4: load})
    assert recorder.close()
    header, first, *rest = read(experts_records(tmp_path))
    assert header["kind"] == "header"
    assert (first["step"], first["layer"], first["first"], first["load"]) == (10, 2, 0, [5, 6])
    assert sum((line["load"] for line in rest), []) == load  # noqa: RUF017 (three short lists)
    assert [line["first"] for line in rest] == [0, 256, 512]
    assert all(len(line) < LINE for line in experts_records(tmp_path).read_bytes().splitlines(keepends=True))


def test_entropy_and_dropped_rows_stand_on_the_first_line_of_their_layer(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.experts(step=10, layers={2: [5] * 300, 4: [6]}, entropy={2: 1.5, 4: math.nan}, dropped={2: 7})
    assert recorder.close()
    _, first, more, other = read(experts_records(tmp_path))
    assert (first["entropy"], first["dropped"], first["first"]) == (1.5, 7, 0)
    assert more["first"] == 256 and not {"entropy", "dropped"} & more.keys()
    assert other["entropy"] == "NaN" and "dropped" not in other


def test_what_is_not_finite_stays_distinct_from_what_is_missing(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=1, loss=math.nan, grad_norm=math.inf, low=-math.inf)
    recorder.step(step=2, tokens=2, loss=1)
    recorder.close()
    text = rank_records(tmp_path, 0).read_bytes()
    assert b"null" not in text
    _, first, second = read(rank_records(tmp_path, 0))
    assert (first["loss"], first["grad_norm"], first["low"]) == ("NaN", "Infinity", "-Infinity")
    assert "grad_norm" not in second and type(second["loss"]) is float


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_metric_comes_back_as_it_was(value: float) -> None:
    back = metric(orjson.loads(orjson.dumps(number(value))))
    assert back is not None and (back == value or (math.isnan(back) and math.isnan(value)))


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda name: name not in FIXED)
values = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30)
@given(st.integers(0, 3), st.dictionaries(names, values, max_size=40))
def test_every_line_is_short_and_no_metric_is_lost(wide: int, metrics: dict[str, float]) -> None:
    metrics = metrics | {f"{n} of {'many ' * wide}": 1.0 / (n + 1) for n in range(100 * wide)}
    found = encode(7, 1.0, "step", {"step": 5, "tokens": 50, **metrics})
    joined: dict[str, Any] = {}
    for number_, line in enumerate(found):
        assert len(line) < LINE and line.endswith(b"\n") and line.count(b"\n") == 1
        value = orjson.loads(line)
        assert (value["seq"], value["kind"], value["step"]) == (7 + number_, "step", 5)
        joined |= value
    assert joined.items() >= metrics.items()


fields = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9000) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5000), fields, max_size=5))
def test_any_event_becomes_short_lines(given_: dict[str, Any]) -> None:
    found = encode(0, 1.0, "event", {"event": "odd", "fields": given_})
    assert found and all(len(line) < LINE and orjson.loads(line)["event"] == "odd" for line in found)


def test_a_metric_that_is_called_like_a_field_gives_way(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=2, kind=3.0, seq=4.0, t=5.0, loss=6.0)
    recorder.close()
    step = read(rank_records(tmp_path, 0))[1]
    assert (step["kind"], step["seq"], step["loss"]) == ("step", 1, 6.0) and step["t"] > 5


def test_what_cannot_be_a_record_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step="one", tokens=1)  # pyright: ignore[reportArgumentType]
    recorder.event("\ud800")
    recorder.step(step=2, tokens=2, loss=1.0, name="no metric")  # pyright: ignore[reportArgumentType]
    recorder.close()
    kinds = [line["kind"] for line in read(rank_records(tmp_path, 0))]
    assert kinds == ["header", "step", "dropped"]
    assert read(rank_records(tmp_path, 0))[-1]["count"] == 2


def test_a_hand_over_costs_less_than_ten_microseconds(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    taken = []
    for step in range(5000):
        begin = time.perf_counter_ns()
        recorder.step(step=step, tokens=step, loss=1.0, lr=1e-3, grad_norm=1.0, step_s=0.5, tokens_per_s=1e5)
        taken.append(time.perf_counter_ns() - begin)
    recorder.close()
    assert statistics.median(taken) < 10_000  # the machine's other work shows in the mean


def test_many_records_are_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    write = os.write
    monkeypatch.setattr(record.os, "write", lambda handle, data: calls.append(data) or write(handle, data))
    recorder = new(tmp_path)
    for step in range(1000):
        recorder.step(step=step, tokens=step, loss=1.0)
    recorder.close()
    assert len(read(rank_records(tmp_path, 0))) == 1001
    assert len(calls) < 10 and all(data.endswith(b"\n") for data in calls)


def test_records_appear_within_a_second_by_themselves(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=1)
    ends = time.monotonic() + 3.0
    while time.monotonic() < ends and b'"step"' not in _bytes(rank_records(tmp_path, 0)):
        time.sleep(0.02)
    assert b'"step"' in _bytes(rank_records(tmp_path, 0))
    recorder.close()


def test_a_full_disk_is_waited_for_and_what_could_not_be_kept_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "WAITING", 50)
    path = rank_records(tmp_path, 0)
    path.symlink_to("/dev/full")
    recorder = new(tmp_path)
    recorder.step(step=0, tokens=0)
    assert not recorder.sync()
    for step in range(1, 501):
        recorder.step(step=step, tokens=step)
    path.unlink()  # there is room again
    assert recorder.sync() and recorder.close()
    lines = read(path)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    dropped = [line for line in lines if line["kind"] == "dropped"]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert len(steps) >= 51 and steps == list(range(len(steps)))  # the oldest were kept
    assert sum(line["count"] for line in dropped) == 501 - len(steps)
    assert "No space left" in dropped[0]["error"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("no memory")])
def test_an_error_while_the_loss_is_noted_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write, fail = os.write, [error]

    def refuse_once(handle: int, data: bytes) -> int:
        if b'"kind":"dropped"' in data and fail:
            raise fail.pop()
        return write(handle, data)

    monkeypatch.setattr(record.os, "write", refuse_once)
    recorder = new(tmp_path)
    recorder.step(step="one", tokens=1)  # pyright: ignore[reportArgumentType]
    recorder.step(step=2, tokens=2)
    assert not recorder.sync() and not fail
    recorder.step(step=3, tokens=3)
    assert recorder.sync() and recorder.close()
    lines = read(rank_records(tmp_path, 0))
    assert [line["kind"] for line in lines] == ["header", "step", "dropped", "step"]
    assert [line["seq"] for line in lines] == [0, 1, 2, 3] and lines[2]["count"] == 1


LIMITED = """
import resource, sys, time
from pathlib import Path
from monitoring.recorder import Recorder
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_001, hard))  # in the middle of a line
recorder = Recorder(Path(sys.argv[1]), 0, 1, "demo", 0)
for step in range(1, 401):
    recorder.step(step=step, tokens=step, loss=1.0 / step)
full = recorder.sync()
text = (Path(sys.argv[1]) / "rank-0.jsonl").read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
recorder.step(step=401, tokens=401)
print(full, text.endswith(b"\\n"), len(text) > 9000, recorder.close())
"""


def test_a_quota_cuts_no_line_and_nothing_is_lost_once_there_is_room(tmp_path: Path) -> None:
    assert _python(LIMITED, tmp_path).split() == ["False", "True", "True", "True"]
    steps = [line["step"] for line in read(rank_records(tmp_path, 0)) if line["kind"] == "step"]
    assert steps == list(range(1, 402))


def test_a_handle_that_went_stale_is_opened_again(tmp_path: Path) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=1)
    assert recorder.sync()
    handle = recorder._records.handle
    assert handle is not None
    os.close(handle)
    recorder.step(step=2, tokens=2)
    recorder.sync()
    assert recorder.close()
    assert [line["step"] for line in read(rank_records(tmp_path, 0)) if line["kind"] == "step"] == [1, 2]


def test_a_folder_that_cannot_be_written_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "attempt", 0, 1, "demo", 0)
    for step in range(100):
        recorder.step(step=step, tokens=step)
    recorder.experts(step=1, layers={1: [1]})
    assert not recorder.sync() and not recorder.close()


def test_a_line_that_a_dead_writer_left_torn_is_ended(tmp_path: Path) -> None:
    rank_records(tmp_path, 0).write_bytes(b'{"seq":0,"t":1.0,"ki')
    recorder = new(tmp_path)
    recorder.close()
    torn, header = rank_records(tmp_path, 0).read_bytes().splitlines()
    assert torn == b'{"seq":0,"t":1.0,"ki' and orjson.loads(header)["kind"] == "header"


KILLED = """
import sys, itertools
from pathlib import Path
from monitoring.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), 0, 1, "demo", 0)
for step in itertools.count(1):
    recorder.step(step=step, tokens=step, loss=1.0)
    if step % 500 == 0:
        recorder.sync()
        print(step, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_written(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            synced = max(int(writer.stdout.readline()) for _ in range(5))
        finally:
            writer.send_signal(signal.SIGKILL)
    lines = rank_records(tmp_path, 0).read_bytes().split(b"\n")
    whole = [orjson.loads(line) for line in lines[:-1]]
    assert [line["seq"] for line in whole] == list(range(len(whole)))
    assert whole[-1]["step"] >= synced


def test_records_of_a_process_that_forgot_to_close_are_written(tmp_path: Path) -> None:
    _python(
        "import sys; from pathlib import Path; from monitoring.recorder import Recorder\n"
        "Recorder(Path(sys.argv[1]), 0, 1, 'demo', 0).step(step=1, tokens=1)",
        tmp_path,
    )
    assert [line["kind"] for line in read(rank_records(tmp_path, 0))] == ["header", "step"]


def _python(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def test_a_write_takes_all_records_also_those_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "WAITING", 5)
    file = record._File(tmp_path / "rank-0.jsonl", {})
    file.made.extend(("step", 0.0, {"step": n, "tokens": n}) for n in range(1, 20))
    assert file.write() and file.sync()
    file.close()
    assert [line["step"] for line in read(tmp_path / "rank-0.jsonl")[1:]] == list(range(1, 20))


def test_a_sync_that_the_disk_refuses_is_no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = new(tmp_path)
    recorder.step(step=1, tokens=1, loss=1.0)
    assert recorder.sync()

    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(record.os, "fsync", refuse)
        assert not recorder.sync()
    assert recorder.close()


def test_each_line_of_an_event_of_many_fields_tells_its_step() -> None:
    fields = {"step": 7, **{f"tokens/language-{i}": 10**12 + i for i in range(200)}}
    found = [orjson.loads(line) for line in encode(0, 1.0, "event", {"event": "sources", "fields": fields})]
    assert len(found) > 1 and all((line["event"], line["step"]) == ("sources", 7) for line in found)
    joined = {key: value for line in found for key, value in line.items() if key.startswith("tokens/")}
    assert joined | {"step": 7} == fields
