"""How long a person waits: for the help, for sbatch, and for an emulated cluster of 24 nodes.

    python -m benchmarks.startup [--json] [--rounds N]

Every figure is wall-clock time of the command as it is typed, its interpreter's start included, median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure, report
from hpc import emulate, slurm
from hpc.emulate import processes

HPC = [sys.executable, "-m", "hpc"]
UP = [*HPC, "emulate", "up", "cluster=noctua2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="up", dir="/tmp") as folder:
        os.environ.update(HPC_HOME=folder, HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
        try:
            up = [_up() for _ in range(args.rounds)]
            megabytes = memory()
            submit = [submit_to_sbatch(Path(folder)) for _ in range(args.rounds)]
        finally:
            emulate.down("noctua2")
    help_s = [seconds(lambda: run(*HPC, "--help")) for _ in range(args.rounds)]
    report(
        [
            Figure("help_s", statistics.median(help_s), "s", "<= 0.2"),
            Figure("submit_to_sbatch_s", statistics.median(submit), "s", "<= 1.0"),
            Figure("emulate_up_s", statistics.median(up), "s", "<= 15", "24 nodes x 4 GPUs, all idle"),
            Figure("emulate_memory_mb", megabytes, "MB", "", "all daemons of 24 nodes (PSS)"),
        ],
        as_json=args.json,
    )


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(act: Callable[[], None]) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start


def _up() -> float:
    """Seconds of one ``hpc emulate up``; the cluster of the round before is ended first, outside of them."""
    emulate.down("noctua2")
    return seconds(lambda: run(*UP))


def memory() -> float:
    """Megabytes of all daemons; pages that they share are counted once."""
    emulation = emulate.find("noctua2")
    assert emulation is not None
    total = 0
    for member in processes.members(emulation.directory, emulation.state.noted()):
        text = Path(f"/proc/{member.process.pid}/smaps_rollup").read_text()
        total += int(text.partition("\nPss:")[2].split()[0])
    return total / 1024


def submit_to_sbatch(folder: Path) -> float:
    """Seconds from typing ``hpc submit`` until sbatch has returned, on the emulated cluster that is up."""
    sbatch, called = shutil.which("sbatch"), folder / "called"
    assert sbatch is not None
    shim = folder / "bin/sbatch"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\n{sbatch} "$@"\nstatus=$?\ndate +%s.%N >"{called}"\nexit $status\n')
    shim.chmod(0o755)
    start = time.time()
    subprocess.run(
        [*HPC, "submit", "job=hello", "cluster=noctua2", "job.nodes=1", "job.time=60"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"},
    )
    emulation = emulate.find("noctua2")
    assert emulation is not None
    slurm.call(["scancel", "--me"], environment=emulation.environment)
    return float(called.read_text()) - start


if __name__ == "__main__":
    main()
