"""``job=command`` on an emulated Slurm: torchrun on two nodes by its own environment, asked to stop and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import emulate, ledger
from hpc.runs import Run
from hpc.slurm import in_queue
from tests.hpc.programs import DISTRIBUTED


def hpc(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=200, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchrun_on_two_nodes_saves_when_asked_and_goes_on(
    emulation: emulate.Emulation, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    torchrun = f"command={sys.executable} -m torch.distributed.run train.py $NNODES 0.1"
    words = ["job=command", "cluster=noctua2", "job.nodes=2", "job.gpus_per_node=1", f"cluster.runs={tmp_path}/runs"]
    told = hpc("submit", "--json", *words, torchrun.replace("$NNODES", "600"), folder=tmp_path)
    run = Run(Path(json.loads(told)["folder"]))
    logs = [ledger.folder(run, 0) / f"rank-{rank}.log" for rank in range(2)]
    wait_for(lambda: any("iteration 7/600" in log.read_text() for log in logs if log.exists()), 120)
    hpc("cancel", str(run.folder), folder=tmp_path)
    wait_for(lambda: run.state().get("state") == "cancelled", 60)
    (record,) = ledger.history(run)
    assert (record.cause, record.exit_code) == ("cancelled", 0)
    assert record.step is not None
    # As many steps as nodes are done already: it finishes at once, from its checkpoint.
    hpc("resume", str(run.folder), torchrun, "--wait", folder=tmp_path)
    texts = [(ledger.folder(run, 1) / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert sum(f"begin at {record.step} of 2 processes" in text for text in texts) == 1
    assert json.loads(run.finished_file.read_text())
    wait_for(lambda: in_queue(str(run.job_id), emulation.environment) is None, 30)
