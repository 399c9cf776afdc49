"""The command as a person types it: exit status, messages, nothing written for a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def hpc(*words: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpc", *words],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "HPC_HOME": str(home / "h"),
            "HPC_RUNS": str(home / "runs"),
            "HOME": str(home),
            **env,
        },
    )


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "job=hello", "optim.lrr=1"],
        ["submit", "job=hello", "cluster=noctua2", "job.nodes=99"],
        ["submit", "job=hello", "name='a;touch pwned'"],
        ["submit", "job=hello", "name='$(touch pwned)'"],
        ["submit", "job=hello", "name='../../pwned'"],
        ["submit"],  # no data here yet
        ["status", "nothing"],
        ["logs", "nothing"],
        ["watch", "nothing"],
        ["cancel", "nothing"],
        ["sumbit"],
        ["submit", "--dryrun"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_message_status_2_and_nothing_written(words: list[str], tmp_path: Path) -> None:
    done = hpc(*words, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_script_and_nothing_else_without_a_slurm(tmp_path: Path) -> None:
    done = hpc("submit", "--dry-run", "job=hello", "cluster=noctua2", home=tmp_path, PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH")
    assert "hpc.supervise" in done.stdout.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_without_sbatch_submitting_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    done = hpc("submit", "job=hello", "cluster=noctua2", home=tmp_path, PATH="/usr/nowhere")
    assert done.returncode == 1
    assert "hpc emulate up cluster=noctua2" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_hello_runs_on_this_machine_and_is_listed(tmp_path: Path) -> None:
    done = hpc("submit", "job=hello", "--wait", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    finished = json.loads((Path(run["folder"]) / "FINISHED").read_text())
    assert finished["ranks"] == 2
    listed = json.loads(hpc("status", "--json", home=tmp_path).stdout)
    assert [row["state"] for row in listed] == ["finished"]
    assert "agree" in hpc("logs", "last", "--rank", "0", home=tmp_path).stdout
    assert "attempt 0" in hpc("logs", run["run"], home=tmp_path).stdout
    again = hpc("cancel", run["run"], home=tmp_path)
    assert "has ended already" in again.stdout


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    done = hpc("submit", "job=hello", "cluster.runs=/dev/full/runs", home=tmp_path)
    assert done.returncode == 1
    assert "could not write the run folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_login_side_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv=['hpc','submit','--dry-run','job=hello','cluster=noctua2'];"
        "from hpc.cli import main; main();"
        "import hpc.cli.watch, hpc.cli.status, hpc.cli.logs, hpc.cli.cancel, hpc.executor, hpc.supervise;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
