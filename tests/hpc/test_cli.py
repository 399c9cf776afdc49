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
        ["runs", "tag", "nothing", "good"],
        ["runs", "--state", "nothing"],
        ["diff", "nothing", "nothing"],
        ["retry", "nothing"],
        ["fork", "nothing", "--step", "4"],
        ["rm", "--yes", "nothing"],
        ["gc", "--yes", "nothing"],
        ["submit", "job=hello", "notify.mail='me;touch pwned'"],
        ["submit", "job=hello", "notify.webhook=example.org"],
        ["sumbit"],
        ["submit", "--dryrun"],
        ["submit", "job=hello", "name=${nosuch}"],
        ["submit", "job=hello", "job.ranks_per_node=0"],
        ["submit", "job=hello", "job.account='a\nb'", "cluster=noctua2"],
        ["submit", "job=hello", "cluster.runs=a%j"],
        ["submit", "job=hello", "cluster.partitions.here.max_time=soon"],
        ["submit", "job=hello", "optim.lrr=1,2", "-m"],
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


def test_dry_run_can_do_without_the_data_and_says_what_is_missing(tmp_path: Path) -> None:
    done = hpc("submit", "--dry-run", "cluster=noctua2", "job.nodes=1", "parallel.micro_batch=2", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH")
    assert "before this can run: data.path=" in done.stderr
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


@pytest.mark.parametrize(("options", "reason"), [("size=200k", "the disk is full"), ("ro", "is read-only")])
def test_a_full_or_read_only_disk_is_one_line_and_leaves_nothing(tmp_path: Path, options: str, reason: str) -> None:
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path / "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = hpc("submit", "job=hello", home=tmp_path, HPC_RUNS=str(tmp_path / "disk"))
        left = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "could not write the run folder" in done.stderr and reason in done.stderr
    assert left == []


def test_the_login_side_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv=['hpc','submit','--dry-run','job=hello','cluster=noctua2'];"
        "from hpc.cli import main; main();"
        "import hpc.cli.watch, hpc.cli.status, hpc.cli.logs, hpc.cli.cancel, hpc.executor, hpc.supervise;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sweeper", ["hpc", "basic"])
def test_a_configuration_may_say_itself_what_is_swept_over(tmp_path: Path, sweeper: str) -> None:
    experiment = tmp_path / "mine" / "experiment" / "swept.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ndefaults: [tiny_moe]\nhydra: {sweeper: {params: {job.nodes: '1,2'}}}\n")
    words = ["job=hello", "cluster=noctua2", "experiment=swept", "job.grace=60,70", f"hydra/sweeper={sweeper}"]
    done = hpc("submit", "-m", "--dry-run", f"--config-dir={tmp_path}/mine", *words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == 4
    nodes = [line.partition("--nodes=")[2] for line in done.stdout.splitlines() if "--nodes=" in line]
    assert nodes == ["1", "1", "2", "2"]


def test_of_a_multirun_with_one_mistake_nothing_is_dispatched(tmp_path: Path) -> None:
    done = hpc("submit", "job=hello", "--dry-run", "job.nodes=1,99", "-m", "cluster=noctua2", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "job.nodes=99" in done.stderr
    assert list(tmp_path.iterdir()) == []
    both = hpc("submit", "job=hello", "--dry-run", "job.nodes=1,2", "-m", "cluster=noctua2", home=tmp_path)
    assert both.returncode == 0, both.stderr
    assert [both.stdout.count(f"--nodes={n}\n") for n in (1, 2)] == [1, 1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "job=hello", "--resolve"],
        ["--info", "job=hello"],
        ["job=hello", "--info", "searchpath", "name=x"],
        ["--help", "job=hello"],
        ["--hydra-help"],
    ],
    ids=" ".join,
)
def test_hydra_answers_and_nothing_is_submitted(words: list[str], tmp_path: Path) -> None:
    done = hpc("submit", *words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


def test_logs_show_a_last_line_that_was_never_ended_and_the_last_n_over_all_attempts(tmp_path: Path) -> None:
    run = json.loads(hpc("submit", "job=hello", "--wait", "--json", home=tmp_path).stdout)
    log = Path(run["folder"]) / "attempts" / "0" / "rank-1.log"
    with log.open("a") as file:
        file.write("killed in the mid")
    (Path(run["folder"]) / "attempts" / "1").mkdir()
    (Path(run["folder"]) / "attempts" / "1" / "rank-1.log").write_text("again\n")
    done = hpc("logs", "last", "--rank", "1", "-n", "2", home=tmp_path)
    assert done.stdout == "killed in the mid\nagain\n"
    followed = hpc("logs", "last", "-f", home=tmp_path)
    assert followed.stdout.splitlines()[-1].endswith("the run is finished")
    merged = hpc("logs", "last", "-f", "--all", home=tmp_path).stdout.splitlines()
    assert {line.partition("|")[0].strip() for line in merged} == {"supervisor", "rank 0", "rank 1"}
    assert hpc("logs", "last", "-n", "-2", home=tmp_path).returncode == 2


def test_a_run_of_another_machine_is_not_ended_by_a_number_of_this_one(tmp_path: Path) -> None:
    run = json.loads(hpc("submit", "job=hello", "--wait", "--json", home=tmp_path).stdout)
    folder = Path(run["folder"])
    (folder / "FINISHED").unlink()
    (folder / "state.json").write_text(json.dumps({"state": "running", "job_id": f"local-{os.getpid()}"}))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "host": "elsewhere"}))
    done = hpc("cancel", "last", home=tmp_path)
    assert done.returncode == 1
    assert "elsewhere" in done.stderr
    assert (folder / "CANCEL").exists()
