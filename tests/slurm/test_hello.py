"""All ranks of the real cluster's shape start and agree, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hpc import emulate
from hpc.config import Cluster
from hpc.runs import Run


def test_all_96_ranks_of_noctua2_agree(slurm_home: Path, described: Callable[..., Cluster], tmp_path: Path) -> None:
    # Under another name, beside the session's own noctua2 of four nodes.
    (tmp_path / "cluster").mkdir()
    source = Path(__file__).resolve().parents[2] / "conf" / "cluster" / "noctua2.yaml"
    text = source.read_text(encoding="utf-8").replace("name: noctua2", "name: whole")
    (tmp_path / "cluster" / "whole.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    flags = ["--wait", "--json", search, f"cluster.runs={tmp_path}/runs"]
    with emulate.emulated(described("whole", search), emulate.Options(fast=True)):
        done = subprocess.run(
            [sys.executable, "-m", "hpc", "submit", "job=hello", "cluster=whole", *flags],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    run = Run(Path(json.loads(done.stdout)["folder"]))
    finished = json.loads(run.finished_file.read_text())
    assert finished["ranks"] == 96
    assert finished["nodes"] == [f"n2gpu{n}" for n in range(1201, 1225)]
