"""``job=doctor``: one rank a node writes down what it sees, for ``hpc doctor --job``; then all greet as in hello."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

import psutil

from hpc import slurm
from hpc.attempt import Attempt
from hpc.runs import load_config, write_json
from jobs.hello import Hello

REPORTS = "doctor"  # folder of the reports in the run folder, one file a rank
PATIENCE = 60.0  # seconds until the files of other nodes must have come


class Doctor:
    """Report what this node has, and whether it sees what the others wrote."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self) -> None:
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        folder = self.run / REPORTS
        folder.mkdir(exist_ok=True)
        file = folder / f"here-{attempt.rank}.json"
        now = time.time()
        write_json(file, {"node": attempt.node})
        written = file.stat().st_mtime
        cluster = load_config(self.run).cluster
        wanted = "lo" if attempt.emulated else cluster.rendezvous.interface
        there = sorted(psutil.net_if_addrs())
        visible, driver = gpus()
        report = {
            "node": attempt.node,
            "python": platform.python_version(),
            "torch": _version("torch"),
            "gpus_visible": visible,
            "driver": driver,
            "interface": wanted is None or wanted in there,
            "interfaces": ", ".join(there),
            "slurm": slurm.available() and slurm.cluster_name() is not None,
            "skew": now - written,
            "seen": self._seen(folder, attempt),
        }
        write_json(folder / f"{attempt.rank}.json", report)
        Hello(self.run)()

    def _seen(self, folder: Path, attempt: Attempt) -> int:
        """How many nodes' files have come, once all are there or patience ends."""
        end = time.monotonic() + PATIENCE
        while True:
            seen = sum(name.startswith("here-") for name in os.listdir(folder))  # noqa: PTH208 (asks the server anew)
            if seen >= attempt.world_size or time.monotonic() > end or attempt.stop():
                return seen
            time.sleep(0.2)


def gpus() -> tuple[int, str]:
    """How many GPUs a process here sees, and the driver's word on them."""
    driver = ""
    if shutil.which("nvidia-smi"):
        argv = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
            lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
        except subprocess.TimeoutExpired:
            lines = []
        driver = lines[0] if lines else "nvidia-smi does not answer"
        if "CUDA_VISIBLE_DEVICES" not in os.environ:
            return len(lines), driver
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES") or ""
    return len([name for name in visible.split(",") if name.strip() and name != "-1"]), driver


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
