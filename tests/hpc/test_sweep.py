"""Sweeps: what their folder says of each run, and their whole life on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hpc import arrays, script
from hpc.cli.submit import plans
from hpc.errors import Refused
from hpc.runs import Run
from hpc.submit import Plan
from hpc.sweep import Array, Member, Submitter, Sweep, changes
from monitoring.recorder import Recorder

from .test_script import same_as_golden

HELLO = ["job=hello", "job.nodes=1", "job.ranks_per_node=1"]
NOCTUA2 = ["job=hello", "cluster=noctua2", "cluster.python=/shared/venv/bin/python", "cluster.runs=/shared/runs"]
SWEPT = {
    "optim.lr": ["1e-4", "3e-4", "1"],
    "model.moe.top_k": ["1", "2"],
    "job.time": ["1:00:00", "null"],
    "job.partition": ["gpu", "null"],
    "parallel": ["single", "fsdp"],
    "train.precision": ["fp32", "bf16"],
    "name": ["a-run", "another"],
    "model.moe.shared_experts": ["0", "1"],
}


def planned(*words: str) -> list[Plan]:
    return plans(["-m", *words], dry_run=True)


def sweep_of(folder: Path, found: list[Plan]) -> Sweep:
    """The sweep's folder as far as configurations go."""
    folder.mkdir(parents=True, exist_ok=True)
    base = found[0].config
    (folder / "base.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(base)))
    members = [Member(plan.config.name, plan.typed, changes(base, plan.config)) for plan in found]
    return Sweep(folder).write(members=members, arrays=[Array(list(range(len(found))), "submit-0.sh")])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(SWEPT)), st.integers(1, 2), min_size=1, max_size=3))
def test_each_run_gets_the_configuration_that_was_checked(here: Path, chosen: dict[str, int]) -> None:
    found = planned("job=hello", "cluster=noctua2", *(f"{key}={','.join(SWEPT[key][:n])}" for key, n in chosen.items()))
    sweep = sweep_of(here / "runs" / "x" / "s", found)
    for number, plan in enumerate(found):
        rebuilt = OmegaConf.to_yaml(OmegaConf.structured(sweep.config(number)))
        assert rebuilt == OmegaConf.to_yaml(OmegaConf.structured(plan.config))


def test_only_what_differs_is_written_down(here: Path) -> None:
    found = planned("job=hello", "cluster=noctua2", "optim.lr=1e-4,3e-4", "job.nodes=1,2")
    base = found[0].config
    assert [changes(base, plan.config) for plan in found] == [
        {},
        {"job.nodes": 2},
        {"optim.lr": 3e-4},
        {"optim.lr": 3e-4, "job.nodes": 2},
    ]


def test_a_run_has_a_value_of_all_that_any_run_changes(here: Path) -> None:
    found = planned("job=hello", "cluster=noctua2", "optim.lr=1e-4,3e-4", "job.nodes=1,2")
    sweep = sweep_of(here / "runs" / "x" / "s", found)
    assert [sweep.settings(number) for number in range(4)] == [
        {"job.nodes": 1, "optim.lr": 1e-4},  # the base itself
        {"job.nodes": 2, "optim.lr": 1e-4},
        {"job.nodes": 1, "optim.lr": 3e-4},
        {"job.nodes": 2, "optim.lr": 3e-4},
    ]
    renamed, whole = Member("b", [], {"name": "b"}), Member("a", [], {"job": {"nodes": 7}})
    sweep = sweep.write(members=[*sweep.members, renamed, whole])
    assert list(sweep.settings(4)) == ["job.nodes", "optim.lr", "job"]
    assert sweep.settings(5)["job.nodes"] == 7  # of the part that it has another of
    other = sweep_of(here / "runs" / "x" / "t", found)
    other.base_file.unlink()
    with pytest.raises(Refused, match="cannot be read"):
        other.settings(0)


def test_one_array_for_each_script_of_as_many_tasks_as_there_are_indices(here: Path) -> None:
    found = planned("job=hello", "cluster=noctua2", "cluster.max_array_size=3", "job.nodes=1,2", "train.seed=range(4)")
    assert arrays.group(found) == [[0, 1, 2], [3], [4, 5, 6], [7]]


def test_the_script_of_an_array(here: Path) -> None:
    (plan,) = planned(*NOCTUA2, "job.throttle=16", "job.seconds=1")
    folder = Path("/shared/runs/tiny moe/20260131-120000-1f2e")
    same_as_golden("array.sh", arrays.array_script(plan, folder, 2, 1001))


@pytest.fixture
def hpc(here: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=120, env=os.environ
        )
        assert done.returncode == status, done.stderr + done.stdout
        return done

    return run


def states(hpc: Callable[..., subprocess.CompletedProcess[str]]) -> list[str]:
    return [row["state"] for row in json.loads(hpc("sweep", "status", "--json").stdout)["runs"]]


def test_runs_take_place_one_after_the_other_and_all_is_told(
    hpc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = hpc("submit", "-m", *HELLO, "job.seconds=0.1,0.2,0.3", "--wait", "--json")
    told = json.loads(done.stdout)
    sweep = Sweep(Path(told["folder"]))
    assert told["runs"] == 3
    found = [sweep.run(number) for number in range(3)]
    assert [run.id for run in found] == [f"{sweep.id}.{number}" for number in range(3)]
    ends = [json.loads(run.finished_file.read_text())["finished"] for run in found]
    assert ends == sorted(ends)
    assert [run.config().job.seconds for run in found] == [0.1, 0.2, 0.3]  # pyright: ignore[reportAttributeAccessIssue]
    assert OmegaConf.load(found[1].overrides_file) == [*HELLO, "job.seconds=0.2"]
    assert states(hpc) == ["finished"] * 3
    assert "3 runs: 3 finished" in hpc("sweep", "status", sweep.id).stdout
    assert "0.3" in hpc("sweep", "table", sweep.id).stdout
    assert json.loads(hpc("sweep", "resume", "--json").stdout)["runs"] == []
    # A run of a sweep is a run as any other; its code is its own from then on.
    hpc("resume", found[1].id, "job.seconds=0", status=2)  # it has finished
    assert hpc("status", found[1].id).stdout.count("finished") == 1


def test_a_cancelled_sweep_is_resumed_where_it_is_missing_something(
    hpc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = hpc("submit", "-m", *HELLO, "job.seconds=0,6,0.1", "--json")
    sweep = Sweep(Path(json.loads(done.stdout)["folder"]))
    second = sweep.run(1)
    _until(lambda: (second.attempts / "0" / "READY").exists(), second)
    assert states(hpc) == ["finished", "running", "pending"]
    hpc("sweep", "cancel", sweep.id)
    hpc("sweep", "status", sweep.id, "--wait", status=1)
    assert states(hpc) == ["finished", "cancelled", "cancelled"]
    assert not sweep.run(2).folder.exists()
    assert json.loads(hpc("sweep", "resume", "--json").stdout)["runs"] == [1, 2]
    hpc("sweep", "status", "--wait")
    assert states(hpc) == ["finished"] * 3
    assert len(list(sweep.run(0).attempts.iterdir())) == 1
    assert len(list(second.attempts.iterdir())) == 2


def _until(true: Callable[[], bool], run: Run) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, run.log.read_text() if run.log.exists() else "has not begun"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "-m", *HELLO, "job.seconds=0,x"], "job.seconds"),
        (["submit", "-m", *HELLO, "cluster=local,noctua2"], "cluster="),
        (["submit", "-m", *HELLO, "job.throttle=0"], "job.throttle=0"),
        (["sweep", "status", "nothing"], "no sweep 'nothing'"),
        (["sweep", "restart"], "invalid choice"),
        (["sweep", "status", "../../etc"], "no sweep"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(
    hpc: Callable[..., subprocess.CompletedProcess[str]], here: Path, words: list[str], said: str
) -> None:
    assert said in hpc(*words, status=2).stderr
    assert not list(here.rglob("sweep.json"))


def test_the_table_is_by_any_metric_that_was_recorded_best_first(
    hpc: Callable[..., subprocess.CompletedProcess[str]], here: Path
) -> None:
    folder = here / "runs" / "x" / "20260131-120000-1f2e"
    sweep = sweep_of(folder, planned("job=hello", "name=x", "job.seconds=0,1,2"))
    sweep.write(typed=[], cluster="local", launcher="local", emulated=False, host="", submitted=0.0)
    (folder / "manifest.json").write_text("{}")
    for number, losses in enumerate(([3.0, 2.5], [2.0, float("nan")], [2.75])):
        run = sweep.run(number)
        run.attempts.mkdir(parents=True)
        run.config_file.write_text("")
        run.set_state("failed", reason="")
        recorder = Recorder(run.attempts / "0", 0, 1, run.id, 0)
        for step, loss in enumerate(losses, start=1):
            recorder.step(step=step, tokens=step, loss=loss)
        recorder.close()

    def order(*words: str) -> list[int]:
        return [row["number"] for row in json.loads(hpc("sweep", "table", "--json", *words).stdout)]

    assert order() == [0, 2, 1]  # what is no number is never the best
    assert order("--metric", "loss", "--max") == [2, 0, 1]
    assert order("--metric", "tokens") == [2, 0, 1]
    assert "Nearest: --metric tokens" in hpc("sweep", "table", "--metric", "token", status=2).stderr
    assert "a sweep of 3 runs" in hpc("status", sweep.id, status=2).stderr


def test_of_folders_that_are_no_sweep_and_of_other_versions(
    hpc: Callable[..., subprocess.CompletedProcess[str]], here: Path
) -> None:
    folder = here / "runs" / "x" / "s"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{")
    assert "cannot be read" in hpc("sweep", "status", "s", status=2).stderr
    (folder / "sweep.json").write_text('{"format": 99}')
    assert "format 99" in hpc("sweep", "status", "s", status=2).stderr


def test_runs_that_share_a_node_ask_for_it_together(here: Path) -> None:
    words = ["job=hello", "cluster=noctua2", "job.runs_per_node=4", "train.seed=range(10)", "job.throttle=8"]
    found = planned(*words, "cluster.max_array_size=2")
    assert arrays.group(found) == [list(range(8)), [8, 9]]
    plan = found[0]
    assert (plan.request.nodes, plan.request.ranks_per_node, plan.request.gpus_per_node) == (1, 1, 1)
    assert (plan.request.cpus_per_rank, plan.request.memory_gb) == (32, 120)
    lines = arrays.array_script(plan, Path("/f"), 0, 8).splitlines()
    wanted = {
        "array=0-1%2",
        "nodes=1",
        "ntasks-per-node=4",
        "cpus-per-task=32",
        "gres=gpu:a100:4",
        "mem=0",
        "exclusive",
    }
    assert wanted <= {line.removeprefix("#SBATCH --") for line in lines}
    assert script.share_options(plan.config, plan.request, "x") == [
        *("--exact", "--mem=120G", "--gres=gpu:a100:1", "--job-name=x")
    ]
    # One of them alone asks for its share.
    alone = script.render(plan.config, plan.request, Path("/f"))
    assert "--gres=gpu:a100:1\n" in alone and "--mem=120G\n" in alone
    # On this machine, runs come one after the other.
    assert planned("job=hello", "job.runs_per_node=4", "train.seed=1,2")[0].request.runs_per_node == 1


def test_which_task_has_which_run() -> None:
    array = Array([4, 5, 6, 9, 10], "submit-0.sh", "77", per_task=2)
    assert array.tasks == 3
    assert [array.of_task(task) for task in range(3)] == [[4, 5], [6, 9], [10]]
    assert array.jobs() == {4: "77_0", 5: "77_0", 6: "77_1", 9: "77_1", 10: "77_2"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["job.runs_per_node=5"], "Try: job.runs_per_node=4"),
        (["job.runs_per_node=3", "job.ranks_per_node=2"], "Try: job.runs_per_node=2"),
        (["job.runs_per_node=2", "job.nodes=2"], "Try: job.nodes=1"),
        (["job.runs_per_node=4", "job.memory_gb=200"], "Try: job.runs_per_node=2"),
        (["job.runs_per_node=4", "job.cpus_per_rank=64"], "Try: job.runs_per_node=2"),
        (["job.runs_per_node=4", "job.throttle=2"], "Try: job.throttle=4"),
        (["job.runs_per_node=0"], "Try: job.runs_per_node=1"),
        (["job.ranks_per_node=4", "job.cpus_per_rank=64"], "Try: job.cpus_per_rank=32"),
    ],
)
def test_what_does_not_fit_a_node_is_refused_with_what_does(here: Path, words: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        planned("job=hello", "cluster=noctua2", "train.seed=1,2", *words)


def test_a_submission_that_was_interrupted_is_said_and_brought_to_its_end(
    hpc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = hpc("submit", "-m", *HELLO, "job.seconds=0,0.1", "--wait", "--json")
    finished = Sweep(Path(json.loads(done.stdout)["folder"]))
    assert finished.submitter is None
    # As whoever submits it leaves it when it is killed before there is a process.
    sweep = Sweep(finished.folder.with_name("20261231-120000-1f2e"))
    shutil.copytree(finished.folder, sweep.folder)
    dead = Submitter(socket.gethostname(), 2**22 - 7, time.time())
    sweep = sweep.write(arrays=[replace(sweep.arrays[0], job_id=None)], submitter=dead)
    told = hpc("sweep", "status", sweep.id).stdout
    assert "2 never began" in told and f"hpc sweep resume {sweep.id}" in told
    assert "interrupted" in hpc("sweep", "status", sweep.id, "--wait", status=1).stderr
    # While it lives, nobody interferes.
    me = psutil.Process()
    sweep.write(submitter=Submitter(socket.gethostname(), me.pid, me.create_time()))
    assert "just being submitted" in hpc("sweep", "resume", sweep.id, status=2).stderr
    sweep.write(submitter=dead)
    assert json.loads(hpc("sweep", "resume", sweep.id, "--json").stdout)["runs"] == [0, 1]
    hpc("sweep", "status", sweep.id, "--wait")
    assert len(Sweep(sweep.folder).arrays) == 1 and Sweep(sweep.folder).submitter is None
