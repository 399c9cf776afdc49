"""The supervisor on this machine, with real ranks: limits, crashes, cancelling, being killed itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hpc import ledger
from hpc.errors import Failed
from hpc.runs import READY, Run
from hpc.waiting import Gone, wait
from tests.hpc.conftest import processes

Start = Callable[..., Run]


def until(condition: Callable[[], object], patience: float = 30) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def ready(run: Run, attempt: int) -> Callable[[], bool]:
    return lambda: (ledger.folder(run, attempt) / READY).exists()


def causes(run: Run) -> list[tuple[str | None, str | None]]:
    return [(record.cause, record.action) for record in ledger.history(run)]


def test_three_time_limits_without_a_step_stop_the_run(start: Start) -> None:
    run = start("job=hello", "job.seconds=60", "job.time=0:06", "job.grace=3", "job.max_fruitless=2")
    assert wait(run, quiet=True) == 1
    assert causes(run) == [("time_limit", "requeue"), ("time_limit", "stop")]
    assert "2 attempts in a row ended without a new step" in run.state()["reason"]
    until(lambda: processes(run) == [])


def test_a_killed_rank_is_a_crash_and_the_ranks_start_again(start: Start) -> None:
    run = start("job=hello", "job.seconds=6")
    until(ready(run, 0))
    rank = next(p for p in processes(run) if "submitit.core._submit" in p.cmdline())
    rank.send_signal(signal.SIGKILL)
    assert wait(run, quiet=True) == 0
    assert causes(run) == [("crash", "restart"), ("finished", "end")]
    assert ledger.history(run)[0].exit_code == 128 + signal.SIGKILL
    until(lambda: processes(run) == [])


def test_cancel_ends_everything_and_nothing_follows(start: Start) -> None:
    run = start("job=hello", "job.seconds=60")
    until(ready(run, 0))
    subprocess.run([sys.executable, "-m", "hpc", "cancel", run.id], check=True, timeout=30)
    assert wait(run, quiet=True) == 1
    assert run.state()["state"] == "cancelled"
    assert causes(run) == [("cancelled", "end")]
    until(lambda: processes(run) == [])


def supervisor(run: Run) -> psutil.Process:
    return psutil.Process(ledger.history(run)[-1].pid)


def test_a_supervisor_that_is_killed_is_started_again_and_the_run_goes_on(start: Start) -> None:
    run = start("job=hello", "job.seconds=6")
    until(ready(run, 0))
    supervisor(run).kill()
    assert wait(run, quiet=True) == 0
    assert causes(run) == [("crash", "restart"), ("finished", "end")]
    assert "its supervisor was ended by SIGKILL" in ledger.history(run)[0].evidence
    assert {record.job_id for record in ledger.history(run)} == {run.job_id}
    until(lambda: processes(run) == [])


def test_killing_the_batch_process_leaves_no_rank_and_a_waiter_learns_of_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc.waiting.ASK_SLURM_EVERY", 0.6)
    run = start("job=hello", "job.seconds=60")
    until(ready(run, 0))
    psutil.Process(int(str(run.job_id).removeprefix("local-"))).kill()
    until(lambda: processes(run) == [])
    with pytest.raises(Failed, match="left the queue"):
        wait(run, quiet=True)
    assert Gone(run).lives() is False


def test_a_second_supervisor_beside_a_live_one_is_refused(start: Start) -> None:
    run = start("job=hello", "job.seconds=4")
    until(ready(run, 0))
    second = subprocess.run(
        [sys.executable, "-m", "hpc.supervise", str(run.folder)], capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 3
    assert "refused" in second.stdout
    assert wait(run, quiet=True) == 0
    assert causes(run) == [("finished", "end")]


def test_a_mistake_that_only_a_rank_can_see_stops_at_once(start: Start) -> None:
    run = start("job=hello", "cluster.rendezvous.interface=nosuch0")
    assert wait(run, quiet=True) == 1
    assert causes(run) == [("refused", "stop")]
    assert "this node has no such interface" in run.state()["reason"]


def test_a_finished_run_is_not_run_again(start: Start) -> None:
    run = start("job=hello")
    assert wait(run, quiet=True) == 0
    again = subprocess.run([sys.executable, "-m", "hpc.supervise", str(run.folder)], timeout=30)
    assert again.returncode == 0
    assert len(ledger.history(run)) == 1


def test_only_the_path_of_the_run_folder_travels_in_the_pickle(start: Start) -> None:
    from submitit.core.utils import DelayedSubmission

    run = start("job=hello")
    delayed = DelayedSubmission.load(run.pickle)
    assert (delayed.args, delayed.kwargs) == ((str(run.folder),), {})
    assert delayed.function.__qualname__ == "start"
    assert wait(run, quiet=True) == 0


def test_editing_the_checkout_does_not_reach_a_submitted_run(start: Start) -> None:
    run = start("job=hello")
    assert (run.code / "hpc" / "supervise.py").is_file()
    assert wait(run, quiet=True) == 0
    log = (ledger.folder(run, 0) / "rank-0.log").read_text()
    assert "2 ranks on 1 nodes agree" in log
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["packages"]["submitit"]
    assert manifest["command"][:3] == ["hpc", "submit", "--json"] or manifest["command"] == [
        "hpc",
        "submit",
        "job=hello",
    ]


def test_runs_can_be_named_with_spaces_in_the_path(start: Start, here: Path) -> None:
    run = start("job=hello", f"cluster.runs='{here}/my größe runs'")
    assert wait(run, quiet=True) == 0
