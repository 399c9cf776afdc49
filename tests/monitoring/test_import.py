"""Imports: logs, TensorBoard's files and CSV as runs that stand beside new ones."""

from __future__ import annotations

import csv
import io
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc import runs
from hpc.errors import Refused
from hpc.imported import Imported, Request, import_run, name_for
from monitoring import load, tfevents
from monitoring.export import About, Export
from monitoring.importing import Begin, End, Step, Tally, name_of, read, stamp
from monitoring.importing.records import Writer
from monitoring.reader import Reader
from tests.monitoring.generate import generate

# 25 July 2023, 15:20 UTC
T0 = 1_690_298_400.0


def iteration(step: int, value: float, total: int = 1000) -> str:
    """A line of Megatron-DeepSpeed's, of which each rank's has a prefix by torchrun."""
    return (
        f"[default7]: iteration {step:8d}/{total:8d} | consumed samples: {step * 64:12d} | consumed tokens:"
        f" {step * 131072:15d} | elapsed time per iteration (ms): 2000.0 | learning rate: 6.291E-07 |"
        f" global batch size:    64 | lm loss: {value:.6E} | moe loss: 1.349358E-01 | loss scale: 2048.0 |"
        f" actual seqlen:  2048 | number of skipped iterations:   0 | number of nan iterations:   0 |"
        f" samples per second: 2.065 | TFLOPs: 3.76 |\n"
    )


def log(file: Path, first: int, last: int, *, loaded: int | None = None, begin: str = "", end: str = "") -> Path:
    """A log that prints every fifth iteration."""
    lines = [f"[default0]:[{begin},000] [INFO] [config.py:1] max_tokens_to_oom 3\n"] if begin else []
    lines += ["[default0]:using world size: 96, data-parallel-size: 96\n"]
    lines += ["[default0]:  num_layers ...................................... 24\n"]
    lines += [f"[default3]:  successfully loaded checkpoint from /x at iteration {loaded}\n"] if loaded else []
    lines += [iteration(step, 12 - step / 100) for step in range(first, last + 1, 5)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines) + end)
    return file


TIME_LIMIT = "slurmstepd: error: *** JOB 4471 ON n2gpu1211 CANCELLED AT 2023-07-25T15:37:30 DUE TO TIME LIMIT ***\n"


def imported(root: Path, form: str, *sources: Path, **said: Any) -> Imported:
    return import_run(root, Request(sources, form, said.pop("name", "old"), **said))


def items(form: str, *paths: Path) -> tuple[list[Begin | Step | End], Tally]:
    tally = Tally()
    return list(read(form, list(paths), tally)), tally


# -- Megatron and DeepSpeed ------------------------------------------------------------------------------------------


def test_several_logs_are_several_attempts_and_what_was_done_again_is_lost_work(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    log(logs / "slurm-9.out", 5, 500, begin="2023-07-25 15:20:00", end=TIME_LIMIT)
    end = "srun: error: n2gpu1203: task 0: Exited with exit code 1\n"
    log(logs / "slurm-10.out", 455, 700, loaded=450, begin="2023-07-25 18:00:00", end=end)
    log(logs / "slurm-11.out", 705, 1000, begin="2023-07-25 19:00:00", end="[default7]:[after training is done] x\n")
    (logs / "slurm-12.out").write_text("salloc: Granted\n")
    found = imported(tmp_path / "runs", "megatron", logs, cluster="noctua2")
    frames = load(found.run.folder)
    assert frames.history["step"].tolist() == list(range(5, 1001, 5))
    assert frames.history["loss"].tolist() == [pytest.approx(12 - step / 100) for step in range(5, 1001, 5)]
    assert frames.history["tokens"].iloc[-1] == 1000 * 131072
    assert frames.attempts["cause"].tolist() == ["time_limit", "crash", "finished"]
    assert frames.attempts["job_id"].tolist()[0] == "4471"
    assert frames.lost["step"].tolist() == list(range(455, 501, 5))
    assert found.tally.without_steps == ["slurm-12.out"] and found.tally.damaged == 0
    assert found.run.finished and found.run.state()["state"] == "finished"
    assert found.run.id.startswith("20230725-152000")


def test_an_imported_run_stands_beside_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path / "a.log", 5, 500, begin="2023-07-25 15:20:00", end=TIME_LIMIT)
    found = imported(tmp_path / "runs", "megatron", tmp_path / "a.log", cluster="noctua2")
    snapshot = Reader(found.run.folder).read()
    assert (snapshot.state, snapshot.step, snapshot.target_steps, snapshot.cluster) == (
        "cancelled",
        500,
        1000,
        "noctua2",
    )
    assert snapshot.reason == "imported from a.log, which ends by time limit"
    assert snapshot.tokens_per_s == pytest.approx(131072 / 2)
    from hpc.listing import read as rows

    (row,) = rows([found.run])
    assert (row.state, row.step, row.attempt) == ("cancelled", 500, 0)
    config = (found.run.config_file).read_text()
    assert "num_layers: 24" in config and "world_size: 96" in config
    manifest = runs.read_json(found.run.manifest_file) or {}
    assert manifest["imported"]["as"] == "megatron"
    assert list(manifest["imported"]["files"]) == [str(tmp_path / "a.log")]
    with pytest.raises(Refused, match="was imported"):
        found.run.config()


def test_the_time_of_steps_that_were_not_printed_counts_as_training(tmp_path: Path) -> None:
    log(tmp_path / "a.log", 5, 500, begin="2023-07-25 15:20:00", end=TIME_LIMIT)
    found = imported(tmp_path / "runs", "megatron", tmp_path / "a.log")
    seconds = {bucket.value: value for bucket, value in Reader(found.run.folder).read().outlook.seconds.items()}
    assert seconds["training"] == pytest.approx(1000, abs=12)
    assert seconds["unknown"] == 0


def test_logs_of_any_name_are_taken_in_their_order(tmp_path: Path) -> None:
    for number, name in enumerate(["lauf-9-ä.out", "lauf-10-a.out", "lauf-b-2.out", "lauf-ä-1.out", "٣.out"]):
        log(tmp_path / "logs" / name, 100 * number + 5, 100 * number + 50)
    found, _ = items("megatron", tmp_path / "logs")
    starts = [each.source for each in found if isinstance(each, Begin)]
    assert starts == ["lauf-9-ä.out", "lauf-10-a.out", "lauf-b-2.out", "lauf-ä-1.out", "٣.out"]


@pytest.mark.parametrize("length", ["nan", "inf", "1e300"])
def test_a_length_of_samples_that_is_none_gives_no_tokens(length: str, tmp_path: Path) -> None:
    line = f" iteration 10/ 100 | consumed samples: 640 | actual seqlen: {length} | lm loss: 1.06E+01 |\n"
    (tmp_path / "a.out").write_text(line)
    found, _ = items("megatron", tmp_path / "a.out")
    assert [each.tokens for each in found if isinstance(each, Step)] == [None]


def test_one_log_that_goes_back_is_two_attempts(tmp_path: Path) -> None:
    first = log(tmp_path / "a.log", 5, 100, begin="2023-07-25 15:20:00").read_text()
    second = log(tmp_path / "b.log", 60, 120, begin="2023-07-25 16:00:00").read_text()
    third = log(tmp_path / "c.log", 125, 140, loaded=120, begin="2023-07-25 17:00:00").read_text()
    (tmp_path / "all.log").write_text(first + second + third)
    found, _ = items("megatron", tmp_path / "all.log")
    assert [each.resumed_from for each in found if isinstance(each, Begin)] == [None, None, 120]
    written = imported(tmp_path / "runs", "megatron", tmp_path / "all.log")
    assert load(written.run.folder).history["step"].tolist() == list(range(5, 141, 5))


def test_a_log_without_times_is_counted_back_from_its_last_change(tmp_path: Path) -> None:
    file = log(tmp_path / "a.log", 5, 100)
    os.utime(file, (T0, T0))
    found, tally = items("megatron", file)
    assert isinstance(found[0], Begin) and found[0].t == pytest.approx(T0 - 192, abs=1)
    assert found[-1].t == pytest.approx(T0, abs=1)
    assert "counted back" in tally.clock


def test_damaged_lines_are_counted_and_never_become_numbers(tmp_path: Path) -> None:
    good = [iteration(step, 10.0) for step in (5, 10, 15)]
    torn = iteration(20, 1.23456789e5)
    torn = torn[: torn.index("E+05")]  # the loss lacks its exponent
    holed = iteration(25, 10.0).replace("consumed samples", "consumed\0samples")
    beyond = iteration(30_000, 10.0)
    (tmp_path / "a.log").write_text("".join([*good, torn + "\n", holed, beyond, iteration(30, 9.0)]) + torn)
    found, tally = items("megatron", tmp_path / "a.log")
    losses = {each.step: each.metrics["loss"] for each in found if isinstance(each, Step) and "loss" in each.metrics}
    assert {step: value for step, value in losses.items() if step != 25} == {5: 10.0, 10: 10.0, 15: 10.0, 30: 9.0}
    assert tally.damaged == 4
    assert tally.first_damaged.startswith("a.log: [default7]: iteration")


def test_a_torn_line_is_counted_and_does_not_take_the_numbers_of_the_next_one(tmp_path: Path) -> None:
    one, two, three, four = (iteration(step, step / 10) for step in (5, 10, 15, 20))
    (tmp_path / "a.log").write_text(one + two[: two.index(" learning")] + three + four)
    found, tally = items("megatron", tmp_path / "a.log")
    steps = [(each.step, each.metrics["loss"], each.tokens) for each in found if isinstance(each, Step)]
    assert steps == [(step, step / 10, step * 131072) for step in (5, 15, 20)]
    assert tally.damaged == 1 and "10/" in tally.first_damaged


def test_deepspeed_alone(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(
        "[2023-07-25 15:20:00,100] [INFO] [engine.py:1] init\n"
        "[2023-07-25 15:20:41,415] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=4, lr=[5.1e-07, 5.1e-07],"
        " mom=[(0.9, 0.95), (0.9, 0.95)]\n"
        "[2023-07-25 15:20:41,417] [INFO] [timer.py:260:stop] epoch=0/micro_step=40/global_step=10,"
        " RunningAvgSamplesPerSec=25.0, CurrSamplesPerSec=25.7, MemAllocated=4.32GB, MaxMemAllocated=38.49GB\n"
        "[2023-07-25 15:20:41,418] [INFO] [logging.py:96:log_dist] [Rank 0] rank=0 time (ms) | fwd: 2.50 | bwd: 5.00\n"
    )
    found = imported(tmp_path / "runs", "deepspeed", tmp_path / "a.log")
    row = load(found.run.folder).history.iloc[0]
    assert (row["step"], row["lr"], row["skipped_steps"], row["samples_per_s"]) == (10, 5.1e-7, 4, 25.7)
    assert (row["peak_memory_gib"], row["fwd_s"], row["bwd_s"]) == (38.49, 0.0025, 0.005)
    assert row["t"] == pytest.approx(T0 + 41.415, abs=1)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (TIME_LIMIT, "time_limit"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2023-07-25T20:03:49 DUE TO PREEMPTION ***\n", "preemption"),
        (
            "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2023-07-25T20:03:49 DUE TO NODE FAILURE ***\n",
            "node_failure",
        ),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2023-07-25T20:03:49 ***\n", "cancelled"),
        ("[default1]:torch.cuda.OutOfMemoryError: CUDA out of memory. Tried\nExited with exit code 1\n", "gpu_memory"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=1.0\n", "host_memory"),
        ("[E ProcessGroupNCCL.cpp:475] [Rank 3] Watchdog caught collective operation timeout\n", "network"),
        ("srun: error: n2gpu1203: task 0: Exited with exit code 1\n", "crash"),
        ("[default7]:max_tokens_to_oom 7\n", "unknown"),
    ],
)
def test_how_a_log_ends_is_why_the_attempt_ended(line: str, cause: str, tmp_path: Path) -> None:
    found, _ = items("megatron", log(tmp_path / "a.log", 5, 50, begin="2023-07-25 15:20:00", end=line))
    assert isinstance(found[-1], End) and found[-1].cause == cause


def test_what_is_no_log_of_that_kind_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(os.urandom(10_000))
    for form in ("megatron", "deepspeed", "tensorboard", "lit-gpt", "csv"):
        with pytest.raises(Refused):
            imported(tmp_path / "runs", form, tmp_path / "a.log")
    assert not list((tmp_path / "runs").rglob("*"))


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=120) | st.integers(0, 200).map(lambda n: iteration(n, 1.0).encode()), max_size=12))
def test_no_log_is_too_strange(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    file = tmp_path_factory.mktemp("log") / "a.log"
    file.write_bytes(b"\n".join([iteration(1, 1.0).encode(), *parts]))
    found, _ = items("megatron", file)
    ascending(found)


def ascending(found: Sequence[Begin | Step | End]) -> None:
    """Attempts follow each other, and in each the steps ascend."""
    last: int | None = None
    running = False
    for item in found:
        if isinstance(item, Begin):
            assert not running
            running, last = True, None
        elif isinstance(item, End):
            assert running
            running = False
        else:
            assert running and (last is None or item.step >= last)
            last = item.step
    assert not running


def test_a_large_log_is_read_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "big.log"
    noise = "[default3]:" + "x" * 900 + "\n"
    with file.open("w") as out:
        for step in range(1, 40_001):
            out.write(noise + iteration(step, 5.0, 100_000) if step % 20 == 0 else noise)
    assert file.stat().st_size > 36_000_000
    code = (
        "import resource, sys; from pathlib import Path; from monitoring.importing import Tally, read\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in read('megatron', [Path(sys.argv[1])], Tally()))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True, timeout=60
    )
    count, grown = map(int, done.stdout.split())
    assert count == 2002 and grown < 16_000  # KiB


# -- CSV -----------------------------------------------------------------------------------------------------------


def test_lightnings_sparse_rows_are_joined_by_step(tmp_path: Path) -> None:
    for version, text in enumerate(
        (
            "epoch,lr-AdamW,step,train_loss,val_loss\n0,,9,4.5,\n0,,19,4.0,\n0,,19,,4.25\n0,,29,nan,\n",
            "epoch,lr-AdamW,step,train_loss,val_loss\n0,,29,3.5,\n0,1e-4,39,3.0,\n",
        )
    ):
        folder = tmp_path / f"lightning_logs/version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
        (folder / "hparams.yaml").write_text(
            "lr: 0.001\nx: !!python/object/apply:os.system [false]\n" if version else "a: 1\n"
        )
    found = imported(tmp_path / "runs", "lit-gpt", tmp_path / "lightning_logs")
    frame = load(found.run.folder).history
    assert frame["step"].tolist() == [9, 19, 29, 39]
    assert frame["loss"].tolist() == [4.5, 4.0, 3.5, 3.0]
    assert frame["validation_loss"].dropna().tolist() == [4.25]
    assert found.written.attempts == 2 and found.tally.damaged == 0


def test_our_own_export_comes_back(tmp_path: Path) -> None:
    run = generate(tmp_path / "run")
    for to in ("csv", "tensorboard"):
        export = Export(to, tmp_path / to, run, About("a", "1"), lost=True)
        export.look(over=True)
        export.close("running")
        source = tmp_path / to / "a" / "1" / ("history.csv" if to == "csv" else "")
        again = load(imported(tmp_path / "runs", to, source, name=to).run.folder).history
        before = load(run).history
        for name in ("step", "tokens", "t", "loss", "validation_loss", "lr"):
            assert again[name].dropna().tolist() == pytest.approx(before[name].dropna().tolist(), rel=1e-6)


def test_what_tensorboard_downloads_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"Wall time,Step,Value\n{T0},1,2.5\n")
    found, _ = items("csv", tmp_path / "a.csv")
    assert found[1] == Step(1, T0, {"Value": 2.5})


def test_tokens_beyond_64_bits_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"step,loss\n{1 << 50},2.5\n")
    with pytest.raises(Refused, match="tokens_per_step=1048576 is too many"):
        imported(tmp_path / "runs", "csv", tmp_path / "a.csv", tokens_per_step=1 << 20)
    assert not list((tmp_path / "runs").iterdir())


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"step,loss\n1,2.5\nx,2.4\n2\n3,2.3,9\n\0\0,1\n4,2.25\n\n-1,2\n5,nan\n6,oops\n7,2.19"  # the last one torn
    )
    found, tally = items("csv", tmp_path / "a.csv")
    metrics = [(each.step, each.metrics["loss"]) for each in found if isinstance(each, Step)]
    assert metrics[:2] == [(1, 2.5), (4, 2.25)] and len(metrics) == 3 and math.isnan(metrics[2][1])
    assert tally.damaged == 6
    assert tally.first_damaged == "a.csv line 3: x,2.4"


@pytest.mark.parametrize(
    ("given_t", "t"),
    [
        ("1690298400.5", T0 + 0.5),
        ("1690298400500", T0 + 0.5),  # milliseconds
        ("1690298400500000000", T0 + 0.5),  # nanoseconds
        ("2023-07-25T15:20:00.25", T0 + 0.25),
        ("2023-07-25 15:20:00", T0),
    ],
)
def test_times_are_seconds_or_dates(given_t: str, t: float, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"global_step,Wall_Time,Loss\n1,{given_t},3\n")
    found, tally = items("csv", tmp_path / "a.csv")
    assert isinstance(found[1], Step) and found[1].t == t and tally.clock == "recorded"


@pytest.mark.parametrize("strange", ["", "soon", "-1", "1e300"])
def test_a_row_whose_time_is_none_is_told(strange: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"step,t,loss\n1,{T0},3\n2,{strange},2\n")
    found, tally = items("csv", tmp_path / "a.csv")
    assert [each.t for each in found if isinstance(each, Step)] == [T0, T0]
    assert tally.clock.startswith("recorded, but not of every row")


def test_an_attempt_ends_with_its_last_row_however_long_the_next_one_waits(tmp_path: Path) -> None:
    rows = [f"{step},{step // 4},{T0 + step + 86400 * (step // 4)},2\n" for step in range(1, 8)]
    (tmp_path / "a.csv").write_text("step,attempt,t,loss\n" + "".join(rows))
    found, _ = items("csv", tmp_path / "a.csv")
    assert [each.t for each in found if isinstance(each, End)] == [T0 + 3, T0 + 7 + 86400]


def test_tokens_come_from_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("iter,loss\n10,3\n")
    found = imported(tmp_path / "runs", "csv", tmp_path / "a.csv", tokens_per_step=100)
    assert load(found.run.folder).history["tokens"].tolist() == [1000]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 40), st.none() | st.floats(), st.none() | st.floats(allow_nan=False)), max_size=20
    )
)
def test_any_table_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float | None, float | None]]
) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["step", "loss", 'od"d, name'])
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_text(out.getvalue(), newline="")
    found, tally = [], Tally()
    if rows:
        found = list(read("csv", [file], tally))
        ascending(found)
    told = [
        (each.step, repr(each.metrics.get("loss")), each.metrics.get('od"d, name'))
        for each in found
        if isinstance(each, Step)
    ]
    assert told == [(step, repr(one), other) for step, one, other in rows if one is not None or other is not None]
    assert tally.damaged == 0


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_no_csv_is_too_strange(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_bytes(b"step,loss\n1,2\n" + data)
    found, _ = items("csv", file)
    ascending(found)
    run = file.parent / "run"
    Writer(run, "a", Tally()).write(found)
    load(run)


# -- TensorBoard -----------------------------------------------------------------------------------------------------


def event(step: int, tag: str, value: float, t: float | None = None) -> bytes:
    return tfevents.scalars(T0 + step if t is None else t, step, [tfevents.value_head(tag) + struct.pack("<f", value)])


def event_file(file: Path, *payloads: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(tfevents.framed([tfevents.first(T0), *payloads]))
    return file


def test_tags_of_a_step_are_joined_and_files_are_attempts(tmp_path: Path) -> None:
    board = tmp_path / "board"
    one = [event(n, tag, n + more) for n in range(1, 11) for tag, more in (("lm loss", 0), ("learning-rate", 100))]
    # A tag that lags behind the others is no step back.
    late = [event(4, "lm loss validation", 44.0), event(500, "lm loss vs samples", 1.0)]
    event_file(board / "events.out.tfevents.9.host", *one, *late)
    two = [event(n, "lm loss", n + 0.5) for n in range(8, 16)]
    event_file(board / "events.out.tfevents.10.host", *two)
    found = imported(tmp_path / "runs", "tensorboard", board)
    frame = load(found.run.folder).history
    assert frame["step"].tolist() == list(range(1, 16))
    assert frame["loss"].tolist() == [*range(1, 8), *(n + 0.5 for n in range(8, 16))]
    assert frame["lr"].dropna().tolist() == list(range(101, 108))
    assert frame["validation_loss"].dropna().tolist() == [44.0]
    assert found.written.attempts == 2 and found.tally.clock == "recorded"


def test_evaluations_of_a_writer_of_their_own_are_joined_with_the_steps(tmp_path: Path) -> None:
    board = tmp_path / "board"
    for attempt, (first, last) in enumerate([(1, 2500), (2001, 4000)]):
        begin = [tfevents.forget(T0, first)] if attempt else []
        train = [event(n, "train/loss", 3.0 + attempt) for n in range(first, last + 1)]
        evaluated = [event(n, "eval/loss", 2.0 + attempt) for n in range(first + 499, last + 1, 500)]
        for writer, payloads in enumerate((train, evaluated)):
            event_file(board / f"events.out.tfevents.{attempt}{writer}", *begin, *payloads)
    found, tally = items("tensorboard", board)
    ascending(found)
    steps = [each for each in found if isinstance(each, Step)]
    told = [(each.step, each.metrics["validation_loss"]) for each in steps if "validation_loss" in each.metrics]
    assert told == [*((n, 2.0) for n in range(500, 2501, 500)), *((n, 3.0) for n in range(2500, 4001, 500))]
    assert sum(isinstance(each, Begin) for each in found) == 2 and tally.damaged == 0 and len(steps) == 4500


def test_a_session_start_ends_what_was_beyond_it(tmp_path: Path) -> None:
    payloads = [*(event(n, "loss", n) for n in range(1, 11)), tfevents.forget(T0, 6), event(6, "loss", 60.0)]
    found, _ = items("tensorboard", event_file(tmp_path / "events.out.tfevents.1", *payloads))
    assert sum(isinstance(each, Begin) for each in found) == 2
    ascending(found)


def test_files_that_other_writers_made_are_read(tmp_path: Path) -> None:
    protos = "tensorboard.compat.proto"
    made, summary = import_module(f"{protos}.event_pb2").Event, import_module(f"{protos}.summary_pb2").Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util import tensor_util

    writer = EventFileWriter(str(tmp_path / "board"))
    for step in (1, 2):
        value = summary.Value(tag="loss", simple_value=step)
        writer.add_event(made(wall_time=T0 + step, step=step, summary=summary(value=[value])))
        tensor = tensor_util.make_tensor_proto(step * 2.0, dtype=float)
        value = summary.Value(tag="val_loss", tensor=tensor)
        writer.add_event(made(wall_time=T0, step=step, summary=summary(value=[value])))
    writer.close()
    found, tally = items("tensorboard", tmp_path / "board")
    told = [(each.step, dict(each.metrics)) for each in found if isinstance(each, Step)]
    assert told == [(1, {"loss": 1.0, "validation_loss": 2.0}), (2, {"loss": 2.0, "validation_loss": 4.0})]
    assert tally.damaged == 0


def test_pictures_are_passed_over_and_never_held(tmp_path: Path) -> None:
    scalar, size = tfevents.framed([event(1, "loss", 1.0)]), 1 << 20
    head = struct.pack("<Q", size)
    crc = tfevents.crc32c(head)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    with (tmp_path / "events.out.tfevents.1").open("wb") as file:
        file.write(scalar)
        for _ in range(32):
            file.write(head + struct.pack("<I", masked))
            file.seek(size, os.SEEK_CUR)
            file.write(bytes(4))
        file.write(scalar + head + struct.pack("<I", masked))  # the last one torn
    tracemalloc.start()
    try:
        found, tally = items("tensorboard", tmp_path / "events.out.tfevents.1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [each.metrics for each in found if isinstance(each, Step)] == [{"loss": 1.0}]
    assert tally.damaged == 1 and peak < 2 * size


def test_several_boards_are_several_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        event_file(tmp_path / name / "events.out.tfevents.1", event(1, "loss", 1.0))
    with pytest.raises(Refused, match="2 runs of TensorBoard's"):
        imported(tmp_path / "runs", "tensorboard", tmp_path)


# -- names and times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "ours"),
    [
        ("train_loss", "loss"),
        ("Train/Loss", "loss"),
        ("lm loss validation", "validation_loss"),
        ("Step", "step"),
        ("Wall time", "t"),
        ("LR", "lr"),
        ("my metric", "my metric"),
    ],
)
def test_metrics_that_programs_have_in_common_have_one_name(given_name: str, ours: str) -> None:
    assert name_of(given_name) == ours


@pytest.mark.parametrize(
    ("text", "t"),
    [("[2023-07-25 15:20:00,500] x", T0 + 0.5), ("2023-07-25T15:20:00", T0), ("2023-99-25 15:20:00", None), ("", None)],
)
def test_stamps(text: str, t: float | None) -> None:
    assert stamp(text) == t


def test_a_name_is_made_of_what_there_is(tmp_path: Path) -> None:
    assert name_for(tmp_path / "train logs (old)") == "train-logs-old"
    assert name_for(tmp_path / "日本") == "imported"


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = log(tmp_path / "a.log", 5, 500, begin="2023-07-25 15:20:00")
    root = tmp_path / "runs"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        imported(root, "megatron", file)
    assert not list(root.rglob("*"))
