"""``hydra/sweeper=hpc_optuna``: Optuna proposes, runs of ours answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

APPLICATION = """
import hydra


@hydra.main(version_base=None, config_path=".", config_name="main")
def run(cfg):
    if cfg.kind == "bad":
        raise ValueError("bad")
    return (cfg.x - 3) ** 2 + cfg.n


run()
"""


@pytest.fixture
def application(here: Path) -> Path:
    (here / "main.yaml").write_text("x: 0\nn: 0\nkind: good\nhydra: {sweep: {dir: out}}\n")
    (here / "run.py").write_text(APPLICATION)
    return here


def optimise(application: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "run.py", "-m", "hydra/sweeper=hpc_optuna", "hydra.sweeper.seed=1", *words],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=application,
        env=os.environ,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def best_of(application: Path) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(application / "out" / "optimization_results.yaml"))
    return found["best"]


def test_it_finds_what_is_best_and_goes_on_where_it_was(application: Path) -> None:
    varied = ["x=interval(-10, 10)", "n=range(0, 3)", "kind=good,bad"]
    optimise(application, *varied, "hydra.sweeper.trials=10")
    first = best_of(application)
    told = optimise(application, *varied, "hydra.sweeper.trials=40")
    assert "trial 10" in told and "trial 9:" not in told
    best = best_of(application)
    assert best["values"][0] <= first["values"][0]
    assert best["values"][0] < 9 and best["params"]["kind"] == "good"  # chance alone gives 42


def test_trials_are_runs_of_ours_with_our_launcher(application: Path) -> None:
    optimise(
        application,
        "hydra/launcher=hpc_slurm",
        "x=tag(log, interval(1, 10))",
        "hydra.sweeper.trials=2",
        "hydra.sweeper.at_once=2",
    )
    assert len(list(application.glob("runs/run/*/FINISHED"))) == 2
    assert (application / "out" / "optimization_results.yaml").exists()


def test_what_cannot_be_drawn_from_is_said(application: Path) -> None:
    assert "allowed are choices" in optimise(application, "x=glob(*)", status=1)
