"""A rank that hangs is found, says where, and ends; one that is slow, or was suspended, is left alone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tiny

from trainer import parallel
from trainer.config import WatchConfig
from trainer.postmortem import flight_recorder, write_memory
from trainer.train import train
from trainer.watchdog import EXIT, Watchdog

HERE = Path(__file__).parent
PATIENCE = 120.0


def hangs(folder: Path, rank: int) -> None:
    """One of two ranks, of which rank 1 never gets the data of its fifth step."""
    flight_recorder(folder)
    from ranks import _together

    _together(_hangs, (folder,), rank, 2, folder)


def _hangs(folder: Path) -> None:
    config = tiny.config(watch=WatchConfig(hang_seconds=2.0, hang_factor=1.0))

    class Stuck(tiny.Tokens):
        def batch(self, indices: Any) -> Any:
            if engine.rank == 1 and min(indices) >= 4 * 8:
                self.wait_for_ever()
            return super().batch(indices)

        def wait_for_ever(self) -> None:
            time.sleep(10**6)

    class Printed(tiny.Memory):
        def event(self, kind: str, **fields: Any) -> None:
            print("event", kind, fields, flush=True)

    engine = parallel.build(config, tiny.CPU)
    train(config, engine, dataset=Stuck(), checkpoints=folder / "c", stop=lambda: None, record=Printed(), folder=folder)


def started(call: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; import test_watchdog as t; {call}"],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        return [
            (process.returncode, out, err)
            for process in processes
            for out, err in [process.communicate(timeout=PATIENCE)]
        ]
    finally:
        for process in processes:
            process.kill()


def test_when_one_rank_hangs_all_end_and_say_where_they_are(tmp_path: Path) -> None:
    results = ended([started(f"t.hangs(Path({str(tmp_path)!r}), {rank})") for rank in range(2)])
    for rank, (status, out, err) in enumerate(results):
        assert status == EXIT, err
        assert f"HangError: a step did not end within 2 s; rank {rank} is in " in err
        assert "event hang" in out
        stacks = (tmp_path / f"hang-rank-{rank}.txt").read_text()
        assert "most recent call first" in stacks and "step.py" in stacks
        flights = pickle.loads((tmp_path / f"hang-rank-{rank}.pickle").read_bytes())
        assert flights["entries"]
    assert "wait_for_ever" in results[1][2]
    assert "wait_for_ever" in (tmp_path / "hang-rank-1.txt").read_text()


def waits(folder: Path) -> None:
    """Says that it begins, waits much longer than its watchdog does between two steps, and is never in a hang."""
    watch = WatchConfig(hang_seconds=1.0, hang_factor=2.0)
    with Watchdog(watch, folder, 0, tiny.Memory()) as watchdog:
        time.sleep(1.5)  # the first step takes its time
        for _ in range(8):
            watchdog.step()
            time.sleep(0.3)
            watchdog.done(0.3)
        watchdog.slow("writing a checkpoint")
        time.sleep(1.5)
        for _ in range(40):
            watchdog.done(1.0)  # the usual step is now so long that 1.5 s are none too many
        watchdog.step()
        time.sleep(1.5)
        watchdog.step()
        print("stop me", flush=True)
        time.sleep(1.2)
    time.sleep(1.2)


def test_what_takes_its_time_is_no_hang_nor_is_a_suspended_process(tmp_path: Path) -> None:
    process = started(f"t.waits(Path({str(tmp_path)!r}))")
    try:
        assert process.stdout is not None and process.stdout.readline() == "stop me\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        process.send_signal(signal.SIGCONT)
        ((status, _, err),) = ended([process])
    finally:
        process.kill()
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())


def test_a_factor_of_0_or_no_folder_is_no_watchdog(tmp_path: Path) -> None:
    for watch, folder in ((WatchConfig(hang_factor=0), tmp_path), (WatchConfig(), None)):
        with Watchdog(watch, folder, 0, tiny.Memory()) as watchdog:
            watchdog.step()
            assert watchdog._thread is None


def test_without_a_gpu_there_is_no_snapshot_of_its_memory(tmp_path: Path) -> None:
    assert write_memory(tmp_path, 0) is None
