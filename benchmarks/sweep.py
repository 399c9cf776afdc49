"""How long submitting a sweep of 1,000 runs takes, beside hydra-submitit-launcher with Hydra's own sweeper; and a sweep
of more runs than an array can have, run to its end.

    python -m benchmarks.sweep [--json] [--runs 1000] [--rounds 3]
    python -m benchmarks.sweep --to-the-end [--json] [--runs 2500] [--per-node 1]

Both sweep this project's whole configuration tree to the same emulated cluster, whose partition takes jobs and starts
none. Measured is from the start of the command until the last task is in the queue, by squeue: the other launcher's
prompt does not return before its jobs end. Ours is the median of the rounds, the other is measured once.

To the end: every run is a ``job=hello`` of one rank, so each task starts a supervisor, a step and a rank, and writes a
run folder. Counted are those whose folder says that they finished, in how many attempts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import Figure, progress, report, unwind_when_terminated
from hpc import compose, emulate, slurm

CLUSTER = "noctua2"
PATIENCE = 900.0  # seconds for one sweep


def main() -> None:
    if sys.argv[1:2] == ["peer"]:
        del sys.argv[1]
        _peer()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to-the-end", action="store_true")
    parser.add_argument("--nodes", type=int, default=6, help="of the emulated cluster, to the end")
    parser.add_argument("--per-node", type=int, default=1, metavar="N", help="runs that share a node, to the end")
    args = parser.parse_args()
    unwind_when_terminated()
    if args.to_the_end:
        report(_to_the_end(args.runs or 2500, args.nodes, args.per_node), as_json=args.json)
        return
    args.runs = args.runs or 1000
    swept = ["optim.lr=1e-4,3e-4", f"train.seed=range({args.runs // 2})"]
    with tempfile.TemporaryDirectory(prefix="sweep", dir="/tmp") as folder:
        os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
        cluster = compose.cluster([f"cluster={CLUSTER}"])
        with emulate.emulated(cluster, emulate.Options(nodes=2)) as emulation:
            os.environ.update(emulation.environment)
            slurm.call(["scontrol", "update", f"PartitionName={cluster.default_partition}", "State=DOWN"])
            ours = [_ours(swept, args.runs) for _ in range(args.rounds)]
            theirs = _theirs(Path(folder), cluster.default_partition, swept, args.runs)
    mine = statistics.median(ours)
    told = "hydra-submitit-launcher, Hydra's basic sweeper" + ("" if theirs else ": not installed")
    report(
        [
            Figure("sweep_1000_vs_hydra_submitit", theirs and theirs / mine, "x", ">= 50", told),
            Figure("sweep_1000_s", mine, "s", "", f"{args.runs} runs until all are in the queue"),
            Figure("sweep_1000_hydra_submitit_s", theirs, "s", "", told),
        ],
        as_json=args.json,
    )


def _ours(swept: list[str], runs: int) -> float:
    words = ["submit", "-m", f"cluster={CLUSTER}", "job=hello", "job.nodes=1", "job.time=60", *swept]
    return _until_queued([sys.executable, "-m", "hpc", *words], runs, "ours")


def _theirs(folder: Path, partition: str, swept: list[str], runs: int) -> float | None:
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        return None
    launcher = ["hydra/launcher=submitit_slurm", "hydra/sweeper=basic", f"hydra.launcher.partition={partition}"]
    places = [f"hydra.sweep.dir={folder}/theirs", "hydra.launcher.timeout_min=60", f"cluster={CLUSTER}", "job=hello"]
    command = [sys.executable, "-m", "benchmarks.sweep", "peer", "-m", *launcher, *places, *swept]
    return _until_queued(command, runs, "hydra-submitit-launcher")


def _until_queued(command: list[str], runs: int, name: str) -> float:
    """Seconds until all runs are in the queue, which is emptied again."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while (queued := _queued(os.environ)) < runs:
            if process.poll() not in (None, 0):
                raise RuntimeError(process.stderr.read() if process.stderr else "")
            if time.monotonic() > began + PATIENCE:
                raise RuntimeError(f"{name}: {queued} of {runs} runs in the queue after {PATIENCE:.0f} s")
            time.sleep(0.05)
        took = time.monotonic() - began
    finally:
        if name != "ours":
            process.kill()
        process.communicate()
    progress(f"{name}: {runs} runs in the queue after {took:.2f} s")
    slurm.call(["scancel", "--me"])
    while _queued(os.environ):
        time.sleep(0.1)
    return took


def _to_the_end(runs: int, nodes: int, per_node: int) -> list[Figure]:
    words = ["submit", "-m", f"cluster={CLUSTER}", "job=hello", "job.nodes=1", "job.ranks_per_node=1", "job.time=60"]
    words += ["job.grace=60", f"job.runs_per_node={per_node}", f"train.seed=range({runs})", "--json"]
    with tempfile.TemporaryDirectory(prefix="sweep", dir="/tmp") as folder:
        os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
        cluster = compose.cluster([f"cluster={CLUSTER}"])
        with emulate.emulated(cluster, emulate.Options(nodes=nodes, fast=True)) as emulation:
            began = time.monotonic()
            told = json.loads(_hpc(*words))
            progress(f"{runs} runs are {len(told['job_ids'])} arrays after {time.monotonic() - began:.1f} s")
            next_word = began
            while left := _queued(emulation.environment):
                if time.monotonic() > next_word:
                    next_word += 30
                    progress(f"{time.monotonic() - began:.0f} s: {left} tasks left")
                time.sleep(1)
            took = time.monotonic() - began
            states = Counter(row["state"] for row in json.loads(_hpc("sweep", "status", "--json"))["runs"])
            looked = time.monotonic() - began - took
        attempts = Counter(len(list(each.iterdir())) for each in Path(folder).glob("runs/*/*.*/attempts"))
    progress(f"{dict(states)}; runs by number of attempts: {dict(attempts)}")
    arrays = f"{len(told['job_ids'])} arrays, as MaxArraySize={cluster.max_array_size} bounds the index"
    shared = f", {per_node} share a node" if per_node > 1 else ""
    return [
        Figure(f"sweep_{runs}_finished", states["finished"], "runs", f">= {runs}", arrays + shared),
        Figure(f"sweep_{runs}_at_once", attempts[1], "runs", "", "in their first attempt"),
        Figure(f"sweep_{runs}_min", took / 60, "min", "", f"on {nodes} emulated nodes of this machine"),
        Figure(f"sweep_{runs}_each_s", took / runs, "s", "", "of wall-clock time for each run"),
        Figure(f"sweep_{runs}_status_s", looked, "s", "", "hpc sweep status"),
    ]


def _hpc(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "hpc", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def _queued(environment: Mapping[str, str]) -> int:
    return len(slurm.call(["squeue", "--me", "--noheader", "--array", "-o", "%i"], environment=environment).split())


def _peer() -> None:
    """A Hydra application with this project's configuration."""
    import hydra

    compose.register()
    hydra.main(version_base="1.3", config_path=str(compose.CONF), config_name=compose.CONFIG_NAME)(print)()


if __name__ == "__main__":
    main()
