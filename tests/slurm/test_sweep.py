"""Sweeps as arrays of a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hpc import emulate, ledger, slurm
from hpc.config import Cluster
from hpc.emulate import Emulation
from hpc.runs import Run
from hpc.standing import submitted
from hpc.sweep import Submitter, Sweep
from monitoring.job import OVER

SMALL = ["job=hello", "job.nodes=1", "job.ranks_per_node=1", "job.time=10", "job.grace=10"]


def hpc(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


def runs_of(places: list[str]) -> Path:
    return next(Path(word.removeprefix("cluster.runs=")) for word in places if word.startswith("cluster.runs="))


def states(sweep: Sweep) -> list[str]:
    return [row["state"] for row in json.loads(hpc("sweep", "status", str(sweep.folder), "--json"))["runs"]]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def swept(
    slurm_home: Path, described: Callable[..., Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Emulation, list[str]]]:
    """An emulated cluster that takes three jobs in an array, and the overrides by which one gets there."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "cluster").mkdir()
    source = Path(__file__).resolve().parents[2] / "conf" / "cluster" / "noctua2.yaml"
    text = source.read_text(encoding="utf-8").replace("name: noctua2", "name: swept")
    (folder / "cluster" / "swept.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{folder}]"
    with emulate.emulated(described("swept", search, "cluster.max_array_size=3"), emulate.Options(fast=True)) as found:
        yield found, [search, "cluster=swept", f"cluster.runs={folder}/runs", "cluster.max_array_size=3"]


def test_arrays_of_a_sweep_run_are_requeued_alone_cancelled_and_resumed(swept: tuple[Emulation, list[str]]) -> None:
    emulation, places = swept
    # Seven runs, of which Slurm takes three in an array.
    told = json.loads(hpc("submit", "-m", *SMALL, *places, "job.seconds=0.1,0.2,0.3,0.4,0.5,300,301", "--json"))
    sweep = Sweep(Path(told["folder"]))
    assert [len(array.runs) for array in sweep.arrays] == [3, 3, 1]
    until(lambda: states(sweep)[:5] == ["finished"] * 5 and states(sweep)[5:] == ["running"] * 2)
    long = sweep.run(5)
    assert long.job_id == f"{told['job_ids'][1]}_2"

    # One task puts itself back into the queue, and no other of its array.
    until(lambda: (ledger.folder(long, 0) / "READY").exists())
    slurm.signal_batch(str(long.job_id), "USR2", emulation.environment)
    until(lambda: (ledger.folder(long, 1) / "READY").exists())
    assert [len(ledger.numbers(sweep.run(number))) for number in range(7)] == [1] * 5 + [2, 1]
    assert ledger.history(long)[0].cause == "preemption"

    # Had whoever submitted the arrays died before it wrote down the last one's id, its job would be found all the same.
    *known, last = sweep.arrays
    sweep.write(arrays=[*known, replace(last, job_id=None)])
    assert states(sweep)[6] == "running"
    assert [array.job_id for array in submitted(Sweep(sweep.folder), emulation.environment)] == told["job_ids"]
    sweep.write(arrays=[*known, last])

    hpc("sweep", "cancel", str(sweep.folder))
    until(lambda: states(sweep) == ["finished"] * 5 + ["cancelled"] * 2)
    again = json.loads(hpc("sweep", "resume", str(sweep.folder), "--json"))
    assert again["runs"] == [5, 6]
    until(lambda: states(sweep) == ["finished"] * 5 + ["running"] * 2)
    until(lambda: (ledger.folder(long, 2) / "READY").exists())
    hpc("sweep", "cancel", str(sweep.folder), "--now")
    until(lambda: states(sweep) == ["finished"] * 5 + ["cancelled"] * 2)


def test_what_slurm_does_not_take_whole_begins_nowhere(
    swept: tuple[Emulation, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulation, places = swept
    # A site's own filter of submissions, which says no to the second array.
    real = shutil.which("sbatch")
    refuse = 'for last; do :; done; grep -q time=00:30:00 "$last" && { echo "not so long" >&2; exit 1; }'
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\n{refuse}\nexec {real} "$@"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = hpc("submit", "-m", *SMALL, *places, "job.seconds=0.1,0.2", "job.time=20,30", status=1)
    assert not told
    assert not [row for row in slurm.queue(None, emulation.environment).values() if row.state not in OVER]
    assert not list(runs_of(places).glob("run/*/sweep.json"))


def test_a_submission_that_died_between_two_arrays_is_said_and_brought_to_its_end(
    swept: tuple[Emulation, list[str]],
) -> None:
    emulation, places = swept
    slurm.call(["scontrol", "update", "PartitionName=gpu", "State=DOWN"], environment=emulation.environment)
    try:
        told = json.loads(hpc("submit", "-m", *SMALL, *places, "job.seconds=0.1,0.2,0.3,0.4,0.5,0.6,0.7", "--json"))
        # As it is after the first of three arrays: it is held, and the others were never submitted.
        sweep = Sweep(Path(told["folder"]))
        first, *others = told["job_ids"]
        slurm.call(["scontrol", "uhold", first], environment=emulation.environment)
        for job_id in others:
            slurm.cancel(job_id, emulation.environment)
        arrays = [replace(array, job_id=array.job_id if n == 0 else None) for n, array in enumerate(sweep.arrays)]
        sweep = sweep.write(arrays=arrays, submitter=Submitter(socket.gethostname(), 2**22 - 7, time.time()))
    finally:
        slurm.call(["scontrol", "update", "PartitionName=gpu", "State=UP"], environment=emulation.environment)
    assert states(sweep) == ["pending"] * 3 + ["never began"] * 4
    assert f"hpc sweep resume {sweep.id}" in hpc("sweep", "status", str(sweep.folder))
    hpc("sweep", "status", str(sweep.folder), "--wait", status=1)
    assert json.loads(hpc("sweep", "resume", str(sweep.folder), "--json"))["runs"] == list(range(7))
    hpc("sweep", "status", str(sweep.folder), "--wait")
    assert all(len(ledger.numbers(sweep.run(number))) == 1 for number in range(7))


def test_runs_share_a_node_and_are_requeued_together_but_for_those_that_have_ended(
    swept: tuple[Emulation, list[str]],
) -> None:
    emulation, places = swept
    seconds = "job.seconds=0.1,300,301,0.2,0.3"
    told = json.loads(hpc("submit", "-m", *SMALL, *places, "job.runs_per_node=4", seconds, "--json"))
    sweep = Sweep(Path(told["folder"]))
    assert len(told["job_ids"]) == 1
    one, two = sweep.run(1), sweep.run(2)
    until(lambda: states(sweep) == ["finished", "running", "running", "finished", "finished"])
    until(lambda: all((ledger.folder(run, 0) / "READY").exists() for run in (one, two)))
    assert one.job_id == two.job_id == f"{told['job_ids'][0]}_0"
    gpus = [environment_of(run)["CUDA_VISIBLE_DEVICES"] for run in (one, two)]
    assert len(set(gpus)) == 2 and all(len(each) == 1 for each in gpus)

    slurm.signal_batch(str(one.job_id), "USR2", emulation.environment)
    until(lambda: all((ledger.folder(run, 1) / "READY").exists() for run in (one, two)))
    assert [len(ledger.numbers(sweep.run(number))) for number in range(5)] == [1, 2, 2, 1, 1]
    assert ledger.history(one)[0].cause == "preemption"

    # One of them is cancelled, and the other goes on in the same attempt; a killed supervisor is replaced.
    hpc("cancel", str(one.folder))
    until(lambda: states(sweep)[1:3] == ["cancelled", "running"])
    os.kill(ledger.history(two)[-1].pid, signal.SIGKILL)
    until(lambda: (ledger.folder(two, 2) / "READY").exists())
    assert [record.cause for record in ledger.history(two)] == ["preemption", "crash", None]
    hpc("cancel", str(two.folder), "--now")
    until(lambda: states(sweep)[2] == "cancelled")
    until(lambda: not slurm.in_queue(f"{told['job_ids'][0]}_0", emulation.environment))


def environment_of(run: Run) -> dict[str, str]:
    """Of rank 0."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "submitit.core._submit" in words and str(run.folder) in words and "srun" not in words[0]:
            return process.environ()
    raise AssertionError(f"no rank of {run.id} runs")


def test_a_search_runs_as_a_small_job_that_is_requeued_and_goes_on(swept: tuple[Emulation, list[str]]) -> None:
    emulation, places = swept
    search = ["hydra/sweeper=hpc_optuna", "hydra.sweeper.trials=6", "hydra.sweeper.at_once=2"]
    search += ["hydra.sweeper.metric=ranks", "hydra.sweeper.direction=maximize", "hydra.sweeper.seed=1"]
    search += ["hydra.sweeper.as_job=true", "hydra.sweeper.job.time=10", "hydra.sweeper.job.grace=10"]
    small = [word for word in SMALL if "ranks_per_node" not in word]
    told = json.loads(
        hpc("submit", "-m", *small, *places, *search, "job.ranks_per_node=range(1,4)", "job.seconds=1", "--json")
    )
    sweep = Sweep(Path(told["folder"]))
    (loop,) = [Run(file.parent) for file in runs_of(places).glob("*-search/*/config.yaml")]
    until(lambda: len(Sweep(sweep.folder).members) == 4)
    slurm.signal_batch(str(loop.job_id), "USR2", emulation.environment)
    until(lambda: loop.finished and states(Sweep(sweep.folder)) == ["finished"] * 6)
    assert [record.cause for record in ledger.history(loop)] == ["preemption", "finished"]
    script = loop.script.read_text()
    assert "--cpus-per-task=1\n" in script and "exclusive" not in script and "gres" not in script
    sweep = Sweep(sweep.folder)
    assert sweep.trials == [number for array in sweep.arrays for number in array.runs] == list(range(6))
    best = json.loads(hpc("sweep", "table", str(sweep.folder), "--json"))[0]
    assert best["ranks"] == max(row["ranks"] for row in json.loads(hpc("sweep", "table", str(sweep.folder), "--json")))
    assert "best is trial" in hpc("sweep", "status", str(sweep.folder))


def test_another_hydra_application_runs_unchanged_and_optuna_through_it(
    swept: tuple[Emulation, list[str]], tmp_path: Path
) -> None:
    _, (search, _, *places) = swept
    (tmp_path / "main.yaml").write_text("x: 1\nhydra: {sweep: {dir: out}}\n")
    (tmp_path / "run.py").write_text(
        "import hydra, os\n"
        "from pathlib import Path\n"
        "@hydra.main(version_base=None, config_path='.', config_name='main')\n"
        "def run(cfg):\n"
        "    out = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)\n"
        "    (out / 'out.txt').write_text(os.environ['SLURM_ARRAY_TASK_ID'])\n"
        "    return (cfg.x - 3) ** 2\n"
        "run()\n"
    )
    overrides = ",".join(f"'{word}'" for word in (search, *places))
    launcher = ["hydra/launcher=hpc_slurm", "hydra.launcher.cluster=swept", f"hydra.launcher.overrides=[{overrides}]"]
    launcher += ["hydra.launcher.time=10", "hydra.launcher.grace=10"]

    def multirun(*words: str) -> None:
        command = [sys.executable, "run.py", "-m", *launcher, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=os.environ)
        assert done.returncode == 0, done.stderr

    multirun("x=1,2")
    assert sorted(file.read_text() for file in tmp_path.glob("out/*/out.txt")) == ["0", "1"]
    multirun("hydra/sweeper=hpc_optuna", "hydra.sweeper.trials=4", "hydra.sweeper.at_once=2", "x=interval(0, 10)")
    best = (tmp_path / "out" / "optimization_results.yaml").read_text()
    assert "best:" in best and "x:" in best
    assert len(list(tmp_path.glob("out/*/out.txt"))) == 4  # 0 to 3, the first two again
