"""What sacct prints, what it means for a run, and what a person is told to ask for next time."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hpc import accounting, ledger
from hpc.accounting import GIB, Allocation, Row, duration, memory, state
from hpc.cli import main
from hpc.compose import compose
from hpc.efficiency import Asked, Efficiency, Training, efficiency, nice_gb, nice_time
from hpc.ledger import Record
from hpc.request import clock, resolve, seconds
from hpc.runs import Run, write_json
from monitoring.job import OVER
from monitoring.recorder import Recorder

HOUR = 3600.0
ASKED = Asked(
    time=48 * HOUR,
    most_time=168 * HOUR,
    grace=300,
    memory_gb=None,
    node_memory_gb=480,
    gpu_memory_gb=40,
    ranks_per_node=4,
    whole_nodes=False,
)
ONE = Allocation(
    job_id="7",
    state="COMPLETED",
    submitted=1000.0,
    began=1060.0,
    ended=1060.0 + 47 * HOUR,
    seconds=47 * HOUR,
    limit=48 * HOUR,
    nodes=2,
    cpus=256,
    gpus=8,
    memory_asked=480 * GIB,
    cpu_seconds=64 * 47 * HOUR,
    memory_used=400 * GIB,
)
TRAINING = Training(
    step_seconds=45 * HOUR,
    lost_seconds=0,
    checkpoint_seconds=0,
    evaluation_seconds=0,
    mfu=0.4,
    peak_memory_gib=35,
)


# -- what sacct prints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1-02:03:04", 93784),
        ("02:03:04", 7384),
        ("02:03.456", 123.456),
        ("00:00.000", 0),
        ("365-00:00:00", 365 * 86400),
        ("", None),
        ("Unknown", None),
        ("INVALID", None),
        ("-1:00", None),
        ("1-02:03", None),
    ],
)
def test_times_are_read_as_sacct_prints_them(text: str, expected: float | None) -> None:
    assert duration(text) == expected


@given(st.integers(0, 10**8), st.integers(0, 999))
def test_every_time_that_sacct_can_print_is_read_back(whole: int, thousandths: int) -> None:
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, second = divmod(rest, 60)
    text = f"{minutes:02d}:{second:02d}"
    if days or hours:
        text = f"{hours:02d}:{text}"
    else:
        text = f"{text}.{thousandths:03d}"
    if days:
        text = f"{days}-{text}"
    expected = whole + (0 if days or hours else thousandths / 1000)
    assert duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123K", (123 * 2**10, "")),
        ("1.5G", (1.5 * 2**30, "")),
        ("35616K", (35616 * 2**10, "")),
        ("960G", (960 * 2**30, "")),
        ("4000Mn", (4000 * 2**20, "n")),
        ("2Gc", (2 * 2**30, "c")),
        ("1.25T", (1.25 * 2**40, "")),
        ("4000", (4000 * 2**20, "")),  # of no unit are megabytes
        ("0n", None),
        ("0", None),
        ("", None),
        ("?", None),
        ("16?", None),
    ],
)
def test_amounts_are_read_as_sacct_prints_them(text: str, expected: tuple[float, str] | None) -> None:
    assert memory(text) == expected


@given(st.text(max_size=20))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parser in (duration, memory, state):
        parser(text)
    accounting.gpus(accounting.resources(text))
    accounting.allocations(accounting.parse([[text] * len(accounting.NAMES)]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("CANCELLED by 1000", "CANCELLED"), ("OUT_OF_ME+", "OUT_OF_MEMORY"), ("TIMEOUT", "TIMEOUT"), ("", "")],
)
def test_a_state_is_without_what_slurm_adds(text: str, expected: str) -> None:
    assert state(text) == expected


@given(st.sampled_from(sorted(OVER)), st.integers(6, 20))
def test_a_shortened_state_is_completed(whole: str, length: int) -> None:
    shown = whole if len(whole) <= length else whole[: length - 1] + "+"
    assert state(shown) == whole


def test_gpus_are_counted_once() -> None:
    assert accounting.gpus(accounting.resources("billing=256,cpu=256,gres/gpu:a100=8,gres/gpu=8,mem=960G,node=2")) == 8
    assert accounting.gpus(accounting.resources("cpu=2,gres/gpu:a100=2,gres/gpu:h100=4")) == 6
    assert accounting.gpus(accounting.resources("cpu=2")) == 0


# As sacct of Slurm 22.05 prints a job that was requeued once, with --duplicates; then one task of an array.
PRINTED = """\
5|REQUEUED|2026-01-31T12:00:00|2026-01-31T12:00:10|2026-01-31T12:10:10|600|60|2|256|billing=256,cpu=256,gres/gpu=8,mem=960G,node=2|960G|1-00:00:00|||/r/runs/a/20260131-115959-0000
5.batch|CANCELLED|2026-01-31T12:00:10|2026-01-31T12:00:10|2026-01-31T12:10:10|600||1|128|cpu=128|||1048576K|1|
5.0|CANCELLED|2026-01-31T12:00:10|2026-01-31T12:00:10|2026-01-31T12:05:10|300||2|256|cpu=256||1-00:00:00|4194304K|8|
5.1|CANCELLED|2026-01-31T12:05:10|2026-01-31T12:05:10|2026-01-31T12:10:10|300||2|256|cpu=256||1-00:00:00|5242880K|8|
5|RUNNING|2026-01-31T12:10:10|2026-01-31T12:12:11|Unknown|30|60|2|256|billing=256,cpu=256,gres/gpu=8,mem=960G,node=2|960G|00:00:00|||/r/runs/a/20260131-115959-0000
6_3|CANCELLED by 1000|2026-01-31T12:00:00|None|2026-01-31T12:00:20|0|Partition_Limit|1|0||4000Mn|00:00:00|||/r/runs/other/20260101-000000-0000
""".splitlines()  # noqa: E501


def test_a_requeued_job_is_as_many_allocations_as_starts() -> None:
    first, second, cancelled = accounting.allocations(accounting.parse(line.split("|") for line in PRINTED))
    assert (first.job_id, first.state, first.seconds, first.waited) == ("5", "REQUEUED", 600, 10)
    assert (first.limit, first.nodes, first.cpus, first.gpus) == (3600, 2, 256, 8)
    assert first.memory_asked == 480 * GIB
    assert first.cpu_seconds == 86400
    assert first.memory_used == (4 * 5 + 1) * GIB  # four of the larger step's tasks, and the batch script beside them
    assert (second.live, second.waited, second.cpu_seconds, second.memory_used) == (True, 121, None, None)
    assert (cancelled.began, cancelled.limit, cancelled.memory_asked) == (None, None, 4000 * 2**20)


def test_a_job_that_only_had_the_number_of_ours_is_left_out() -> None:
    by_job: dict[str, list[Allocation]] = {}
    for each in accounting.allocations(accounting.parse(line.split("|") for line in PRINTED)):
        by_job.setdefault(each.job_id, []).append(each)
    assert [each.seconds for each in accounting.of_run(by_job, "20260131-115959-0000", ["5", "6_3", "9"])] == [600, 30]
    assert (
        len(accounting.of_run(by_job, "20260101-000000-0000.7", ["6_3"])) == 1
    )  # a run of a sweep works in its folder
    assert accounting.of_run(by_job, "20260131-115959-0001", ["5"]) == []


@pytest.mark.parametrize(
    ("tres", "requested", "expected"),
    [("cpu=4,mem=100G", "1G", 50), ("", "100G", 50), ("", "100Gn", 100), ("", "2Gc", 8), ("", "0n", None)],
)
def test_memory_asked_is_that_of_one_node(tres: str, requested: str, expected: float | None) -> None:
    row = Row("1", "COMPLETED", "", "", "", "60", "60", "2", "8", tres, requested, "", "", "", "")
    asked = accounting.allocations([row])[0].memory_asked
    assert asked == (None if expected is None else expected * GIB)


# -- what follows ------------------------------------------------------------------------------------------------


def advised(found: Efficiency) -> list[str]:
    return [each.override for each in found.advice]


def test_what_was_used_of_what_was_given() -> None:
    found = efficiency([ONE, replace(ONE, seconds=HOUR, cpu_seconds=128 * HOUR)], TRAINING, ASKED)
    assert found.starts == 2
    assert found.seconds == 48 * HOUR
    assert found.time_share == 0.5
    assert found.waited_seconds == 120
    assert found.node_hours == 96
    assert found.gpu_hours == 384
    assert found.cpu_share == pytest.approx((64 * 47 + 128) / 256 / 48)
    assert found.cores_used == pytest.approx((64 * 47 + 128) / 48)
    assert found.memory_used_gib == 400
    assert found.step_share == pytest.approx(45 / 48)


def test_a_run_that_asked_for_the_right_is_told_nothing() -> None:
    assert efficiency([ONE], TRAINING, ASKED).advice == ()
    assert efficiency([ONE], TRAINING, ASKED).remarks == ()


def test_much_time_that_was_not_used_is_not_asked_for_again() -> None:
    found = efficiency([replace(ONE, seconds=3 * HOUR)], None, ASKED)
    assert advised(found) == ["job.time=04:00:00"]


def test_who_met_the_time_limit_is_told_what_would_have_done() -> None:
    met = replace(ONE, seconds=47.95 * HOUR, state="REQUEUED")
    assert advised(efficiency([met, replace(ONE, seconds=9 * HOUR)], None, ASKED, 1)) == ["job.time=2-18:00:00"]
    assert advised(efficiency([met] * 9, None, ASKED, 8)) == ["job.time=7-00:00:00"]
    most = replace(ASKED, most_time=ASKED.time)
    assert advised(efficiency([met], None, most, 1)) == []
    assert "gives no more" in efficiency([met], None, most, 1).remarks[0]


def test_memory_that_was_not_used_is_not_asked_for_again() -> None:
    little = replace(ONE, memory_used=20 * GIB, memory_asked=200 * GIB)
    assert advised(efficiency([little], None, replace(ASKED, memory_gb=200))) == ["job.memory_gb=26"]
    # Nobody else could have had it.
    assert advised(efficiency([little], None, replace(ASKED, whole_nodes=True))) == []


def test_a_run_that_was_out_of_memory_is_told_how_much_more() -> None:
    short = replace(ONE, state="OUT_OF_MEMORY", memory_asked=100 * GIB, memory_used=99 * GIB)
    assert advised(efficiency([short], None, ASKED)) == ["job.memory_gb=160"]
    found = efficiency([replace(short, memory_asked=480 * GIB)], None, ASKED)
    assert advised(found) == []
    assert "job.ranks_per_node below 4" in found.remarks[0]


def test_a_running_run_is_not_judged() -> None:
    found = efficiency([replace(ONE, state="RUNNING", cpu_seconds=None, memory_used=None)], None, ASKED)
    assert found.advice == ()
    assert (found.cpu_share, found.memory_used_gib) == (None, None)


def test_where_the_time_went_beside_steps_is_said() -> None:
    slow = replace(TRAINING, step_seconds=20 * HOUR, checkpoint_seconds=10 * HOUR)
    (remark,) = efficiency([ONE], slow, ASKED).remarks
    assert remark == "steps took 43% of the time; checkpoints 10:00:00, starting, stopping and the rest 17:00:00"


def test_nothing_at_all_is_no_mistake() -> None:
    found = efficiency([], None, ASKED)
    assert (found.starts, found.seconds, found.cpu_share, found.time_share) == (0, 0, None, None)


numbers = st.none() | st.floats(0, 1e12)
allocation_s = st.builds(
    Allocation,
    job_id=st.just("1"),
    state=st.sampled_from([*sorted(OVER), "RUNNING", "REQUEUED", "PENDING", ""]),
    submitted=numbers,
    began=numbers,
    ended=numbers,
    seconds=st.floats(0, 1e9),
    limit=st.none() | st.floats(0, 1e9) | st.just(math.inf),
    nodes=st.integers(0, 1000),
    cpus=st.none() | st.integers(0, 10**6),
    gpus=st.none() | st.integers(0, 10**4),
    memory_asked=numbers,
    cpu_seconds=numbers,
    memory_used=numbers,
)


@given(st.lists(allocation_s, max_size=5), st.integers(0, 3), st.booleans(), st.floats(60, 1e7))
def test_whatever_is_advised_can_be_asked_for(found: list[Allocation], hits: int, whole: bool, limit: float) -> None:
    asked = replace(ASKED, whole_nodes=whole, time=limit, most_time=max(limit, ASKED.most_time))
    for each in efficiency(found, TRAINING, asked, hits).advice:
        name, _, value = each.override.partition("=")
        if name == "job.time":
            assert 0 < seconds(value) <= asked.most_time + 1
        else:
            assert name == "job.memory_gb"
            assert int(value) >= 1


@given(st.floats(0, 1e8))
def test_a_round_time_is_enough_and_not_much_more(wanted: float) -> None:
    assert wanted <= nice_time(wanted) <= max(900, wanted * 1.25 + 300)
    assert seconds(clock(nice_time(wanted))) == nice_time(wanted)


@given(st.floats(0, 1e5))
def test_a_round_amount_is_enough_and_not_much_more(wanted: float) -> None:
    assert wanted <= nice_gb(wanted) <= wanted * 1.126 + 1


def test_what_is_advised_is_what_hydra_reads() -> None:
    found = efficiency([replace(ONE, seconds=3 * HOUR, memory_used=9 * GIB)], None, ASKED)
    job = compose(["cluster=noctua2", *advised(found)]).job
    assert (job.time, job.memory_gb) == ("04:00:00", 13)


# -- without accounting ------------------------------------------------------------------------------------------


@pytest.fixture
def run(here: Path) -> Run:
    """Four attempts in three allocations: time limit, a crash within the second, and the end."""
    run = Run(here / "runs" / "demo" / "20260101-000000-0000")
    run.attempts.mkdir(parents=True)
    config = compose(["cluster=noctua2", "job.nodes=2", "job.time=1:00:00"])
    run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_json(run.manifest_file, {"submitted": 940.0, "cluster": "noctua2", "job_id": "5"})
    write_json(run.state_file, {"state": "finished", "cluster": "noctua2", "job_id": "5"})
    for number, (restart, began, ended, cause) in enumerate(
        [(0, 1000.0, 4300.0, "time_limit"), (1, 4400.0, 5000.0, "crash"), (1, 5000.0, 6000.0, "time_limit")]
    ):
        record = Record(number, "5", restart, nodes=["a", "b"], began=began, ended=ended, cause=cause)
        ledger.take(run, lambda _, record=record: record, lambda _: False)
    return run


def test_the_ledger_speaks_where_there_is_no_accounting(run: Run) -> None:
    config = run.config()
    found = accounting.from_ledger(ledger.history(run), resolve(config), submitted=940.0, now=9999.0)
    assert [(each.waited, each.seconds, each.limit) for each in found] == [(60, 3300, 3600), (100, 1600, 3600)]
    assert [(each.nodes, each.cpus, each.gpus) for each in found] == [(2, 256, 8)] * 2


def test_of_another_job_it_is_not_known_how_long_it_waited(run: Run) -> None:
    record = Record(3, "8", 0, nodes=["a"], began=9000.0)
    ledger.take(run, lambda _: record, lambda _: False)
    last = accounting.from_ledger(ledger.history(run), resolve(run.config()), submitted=940.0, now=9600.0)[-1]
    assert (last.waited, last.seconds, last.nodes, last.live) == (None, 600, 1, True)


def test_hpc_efficiency_says_what_it_cannot_know(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["efficiency", "demo"]) == 0
    said = capsys.readouterr().out
    assert "by its own ledger" in said
    assert "sacct is not installed here" in said
    assert "Next time: job.time=01:45:00" in said
    assert "CPU " in said
    assert "not known" in said


def test_hpc_efficiency_counts_steps_and_those_that_were_lost(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for attempt, steps in ((0, range(1, 11)), (2, range(6, 16))):
        record = Recorder(ledger.folder(run, attempt), 0, 1, run.id, attempt)
        for step in steps:
            record.step(step=step, tokens=step, step_s=100.0, mfu=0.5, peak_memory_gib=10.0)
            record.device(gpu_util=0.8, energy_j=3.6e5 * step)
        record.close()
    assert main(["efficiency", "last", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["source"] == "ledger"
    assert said["training"]["step_seconds"] == 2000
    assert said["training"]["lost_seconds"] == 500
    assert said["training"]["mfu"] == pytest.approx(0.5)
    assert said["training"]["gpu_util"] == pytest.approx(0.8)
    assert said["training"]["kwh"] == pytest.approx(2 * 9 * 0.1)
    assert said["step_share"] == pytest.approx(2000 / 4900)
    assert said["gpu_hours"] == pytest.approx(4900 * 8 / 3600)
    assert len(said["allocations"]) == 2
    assert [each["override"] for each in said["advice"]] == ["job.time=01:45:00"]
    assert main(["efficiency", "last"]) == 0
    assert "MFU 50%; a kernel ran for 80%; peak 10 GB of one; 1.8 kWh" in capsys.readouterr().out


def test_a_run_that_waits_has_used_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in list(run.attempts.iterdir()):
        folder.rename(folder.with_name(f".{folder.name}"))
    write_json(run.state_file, {"state": "queued", "cluster": "noctua2"})
    assert main(["efficiency", str(run.folder)]) == 0
    assert "has not begun yet" in capsys.readouterr().out


def test_a_run_that_lives_is_counted_to_its_last_heartbeat(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.time() - 100
    ledger.take(run, lambda _: Record(3, "5", 2, nodes=["a", "b"], began=began), lambda _: False)
    assert main(["efficiency", "demo", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)["allocations"][-1]
    assert 99 < last["seconds"] < 102


def test_an_unknown_run_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["efficiency", "nope"]) == 2
    assert "no run 'nope'" in capsys.readouterr().err
