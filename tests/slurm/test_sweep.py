"""Sweeps as arrays of a real Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hpc import emulate, ledger
from hpc.config import Cluster
from hpc.sweep import Sweep


def hpc(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


def states(sweep: Sweep) -> list[str]:
    return [row["state"] for row in json.loads(hpc("sweep", "status", str(sweep.folder), "--json"))["runs"]]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_arrays_of_a_sweep_run_are_requeued_alone_cancelled_and_resumed(
    slurm_home: Path, described: Callable[..., Cluster], tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    source = Path(__file__).resolve().parents[2] / "conf" / "cluster" / "noctua2.yaml"
    text = source.read_text(encoding="utf-8").replace("name: noctua2", "name: swept")
    (tmp_path / "cluster" / "swept.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    places = [search, "cluster=swept", f"cluster.runs={tmp_path}/runs", "cluster.max_array_size=3"]
    small = ["job=hello", "job.nodes=1", "job.ranks_per_node=1", "job.time=10", "job.grace=10"]
    cluster = described("swept", search, "cluster.max_array_size=3")
    with emulate.emulated(cluster, emulate.Options(fast=True)) as emulation:
        # Seven runs, of which Slurm takes three in an array.
        told = json.loads(hpc("submit", "-m", *small, *places, "job.seconds=0.1,0.2,0.3,0.4,0.5,300,301", "--json"))
        sweep = Sweep(Path(told["folder"]))
        assert [len(array.runs) for array in sweep.arrays] == [3, 3, 1]
        until(lambda: states(sweep)[:5] == ["finished"] * 5 and states(sweep)[5:] == ["running"] * 2)
        long = sweep.run(5)
        assert long.job_id == f"{told['job_ids'][1]}_2"

        # One task goes back into the queue, and no other of its array.
        until(lambda: (ledger.folder(long, 0) / "READY").exists())
        environment = {**os.environ, **emulation.environment}
        subprocess.run(["scontrol", "requeue", str(long.job_id)], check=True, env=environment, timeout=30)
        until(lambda: (ledger.folder(long, 1) / "READY").exists())
        assert [len(ledger.numbers(sweep.run(number))) for number in range(7)] == [1] * 5 + [2, 1]

        hpc("sweep", "cancel", str(sweep.folder))
        until(lambda: states(sweep) == ["finished"] * 5 + ["cancelled"] * 2)
        again = json.loads(hpc("sweep", "resume", str(sweep.folder), "--json"))
        assert again["runs"] == [5, 6]
        until(lambda: states(sweep) == ["finished"] * 5 + ["running"] * 2)
        until(lambda: (ledger.folder(long, 2) / "READY").exists())
        hpc("sweep", "cancel", str(sweep.folder), "--now")
        until(lambda: states(sweep) == ["finished"] * 5 + ["cancelled"] * 2)
