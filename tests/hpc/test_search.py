"""Searches: Optuna proposes the values of runs of ours, whoever submits them may die, and all trials are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc import metrics
from hpc.errors import Refused
from hpc.runs import DIVERGED, Run
from hpc.search import Space, begin, scripts
from hpc.study import open_study
from hpc.sweep import Sweep
from monitoring.recorder import Recorder

HELLO = ["job=hello", "job.nodes=1"]
OPTUNA = ["hydra/sweeper=hpc_optuna", "hydra.sweeper.seed=1", "hydra.sweeper.metric=ranks"]
VARIED = ["job.ranks_per_node=range(1,3)", "job.seconds=interval(0,0.1)"]


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpc", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def hpc(*words: str, status: int = 0) -> str:
    process = start(*words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == status, err + out
    return out if status == 0 else err


def of_folder(here: Path) -> Sweep:
    (file,) = here.glob("runs/*/*/sweep.json")
    return Sweep(file.parent)


def trials(sweep: Sweep) -> list[Any]:
    return open_study(sweep.folder, Space.of(sweep).directions, None).trials


def test_a_search_finds_the_best_goes_on_with_more_trials_and_can_be_looked_at(here: Path) -> None:
    hpc("submit", "-m", *HELLO, *OPTUNA, *VARIED, "hydra.sweeper.direction=maximize", "hydra.sweeper.trials=4")
    sweep = of_folder(here)
    assert [trial.state.name for trial in trials(sweep)] == ["COMPLETE"] * 4
    told = hpc("sweep", "status", sweep.id)
    assert "4 runs: 4 finished" in told and "a search of 4 trials; best is trial" in told and "ranks=" in told
    assert "--trials 3: there are 4" in hpc("sweep", "resume", "--trials", "3", status=2)
    hpc("sweep", "resume", "--trials", "6")
    rows = json.loads(hpc("sweep", "table", "--json"))
    assert [row["ranks"] for row in rows] == sorted((row["ranks"] for row in rows), reverse=True)
    # With the seed of before, other values are proposed than those that were tried.
    proposed = [trial.params["job.seconds"] for trial in trials(sweep)]
    assert len(set(proposed)) == 6
    assert [row["changes"].get("job.seconds") for row in rows].count(None) == 1  # the base


def test_a_search_whose_loop_was_killed_goes_on_with_the_trials_that_ran(here: Path) -> None:
    words = ["hydra.sweeper.trials=3", "hydra.sweeper.at_once=2", "job.ranks_per_node=1,2", "job.seconds=3"]
    process = start("submit", "-m", *HELLO, *OPTUNA, *words)
    until(lambda: any(here.glob("runs/*/*.0/attempts/0/READY")))
    sweep = of_folder(here)
    assert "goes on" in hpc("sweep", "resume", sweep.id, status=2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: "nobody submits its next round" in hpc("sweep", "status", sweep.id))
    study = open_study(sweep.folder, ["minimize"], None)
    study.ask(Space.of(sweep).distributions())  # as the loop leaves one if it dies before there is a run
    hpc("sweep", "resume", sweep.id, "--trials", "4")
    assert [trial.state.name for trial in trials(sweep)] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    sweep = Sweep(sweep.folder)
    assert sweep.trials == [0, 1, 3]
    assert all(len(list(sweep.run(number).attempts.iterdir())) == 1 for number in range(3))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_cancelled_search_ends(here: Path) -> None:
    process = start("submit", "-m", *HELLO, *OPTUNA, "job.ranks_per_node=1,2", "job.seconds=60")
    until(lambda: any(here.glob("runs/*/*.00/attempts/0/READY")))
    sweep = of_folder(here)
    hpc("sweep", "cancel", sweep.id)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "cancelled" in said
    until(lambda: "4 cancelled" in hpc("sweep", "status", sweep.id))
    assert {trial.state.name for trial in trials(sweep)} == {"RUNNING"}  # a search that is taken up tries them again


def space(**changes: Any) -> Space:
    from optuna.distributions import FloatDistribution, distribution_to_json

    given: dict[str, Any] = {
        "varied": {"optim.lr": distribution_to_json(FloatDistribution(1e-3, 1e-2))},
        "fixed": ["job=hello", "cluster=noctua2", "cluster.runs=/tmp/none"],
        "directions": ["minimize"],
        "trials": 3,
        "at_once": 2,
        "metrics": ("loss",),
    }
    return Space(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ()}, "hydra.sweeper.metric=NAME"),
        ({"metrics": ("loss", "tokens")}, "need as many metrics"),
        ({"trials": 0}, "must be at least 1"),
        ({"value": "first"}, "allowed are last, best"),
        (
            {"as_job": True, "fixed": ["job=hello", "cluster=noctua2", "cluster.slurm_from_compute=false"]},
            "may not sub",
        ),
        ({"fixed": ["job=hello", "cluster=noctua2", "job.nodes=99"]}, "Try: job.nodes=24"),
        ({"varied": {"job.nodes": '{"name": "IntDistribution", "attributes": {"low": 1, "high": 99}}'}}, "=24"),
        (
            {"varied": {"optim.lr": '{"name": "CategoricalDistribution", "attributes": {"choices": [1, "x"]}}'}},
            "optim.lr",
        ),
    ],
)
def test_a_mistake_is_said_before_anything_is_proposed(here: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        begin(space(**changes), [])


def test_a_dry_run_shows_the_runs_of_a_round(here: Path) -> None:
    found = scripts(space())
    assert len(found) == 2 and all(1e-3 <= plan.config.optim.lr <= 1e-2 for plan in found)


def test_the_value_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "x" / "s.0")
    for attempt, losses in enumerate(([3.0, 2.0], [float("nan"), 2.5])):
        recorder = Recorder(run.attempts / str(attempt), 0, 1, run.id, attempt)
        for step, loss in enumerate(losses, start=1):
            recorder.step(step=step, tokens=step, loss=loss)
        recorder.close()
    assert metrics.newest(run.folder, "loss") == 2.5
    assert metrics.best(run.folder, "loss", largest=False) == 2.0
    assert metrics.best(run.folder, "loss", largest=True) == 3.0
    assert metrics.newest(run.folder, "tokens_per_s") is None
    run.finished_file.write_text('{"tokens_per_s": 7, "nodes": ["a"]}')
    assert metrics.newest(run.folder, "tokens_per_s") == 7
    assert metrics.best(run.folder, "nodes", largest=True) is None


def test_what_diverged_is_pruned_and_what_failed_has_failed(here: Path) -> None:
    hpc("submit", "-m", *HELLO, *OPTUNA, "job.ranks_per_node=1", "hydra.sweeper.trials=2", "job.seconds=0,0.1")
    sweep = of_folder(here)
    study = open_study(sweep.folder, ["minimize"], None)
    more = [study.ask(Space.of(sweep).distributions()).number for _ in range(2)]
    sweep = sweep.write(
        trials=[*sweep.trials, *more],
        members=[*sweep.members, *sweep.members],
        search={**(sweep.search or {}), "trials": 4},
    )
    for number, marker in ((2, DIVERGED), (3, "READY")):
        run = sweep.run(number)
        (run.attempts / "0").mkdir(parents=True)
        (run.attempts / "0" / marker).write_text("loss is not finite")
        run.config_file.write_text("")
        run.set_state("failed", reason="loss is not finite")
    from hpc.rounds import Loop

    said: list[str] = []
    assert Loop(sweep, said.append).main() == "finished"
    assert [trial.state.name for trial in trials(sweep)] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    assert "loss is not finite" in said[0]
