"""``hydra/launcher=hpc_slurm`` under an application that knows nothing of this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.sweep import Sweep

APPLICATION = """
import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from beside import square


@hydra.main(version_base=None, config_path="configuration", config_name="main")
def run(cfg: DictConfig) -> float:
    if cfg.x == 0:
        raise ValueError("nought is not allowed")
    hydra_config = HydraConfig.get()
    out = Path(hydra_config.runtime.output_dir) / "out.txt"
    out.write_text(f"{cfg.job.kind} {square(cfg.x)} {hydra_config.job.num} {os.environ['HPC_ATTEMPT']}")
    return square(cfg.x)


run()
"""


@pytest.fixture
def application(here: Path) -> Path:
    """A folder with an application that has a group "job" of its own and imports what lies beside it."""
    folder = here / "some where"
    (folder / "configuration" / "job").mkdir(parents=True)
    (folder / "configuration" / "main.yaml").write_text("defaults: [job: good]\nx: 1\nhydra: {sweep: {dir: out}}\n")
    (folder / "configuration" / "job" / "good.yaml").write_text("kind: good\n")
    (folder / "beside.py").write_text("def square(x):\n    return x * x\n")
    (folder / "run.py").write_text(APPLICATION)
    return folder


def launch(application: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "run.py", "-m", "hydra/launcher=hpc_slurm", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=application,
        env=os.environ,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def sweep_of(here: Path) -> Sweep:
    (file,) = here.rglob("sweep.json")
    return Sweep(file.parent)


def test_each_combination_is_a_run_of_its_own(application: Path, here: Path) -> None:
    launch(application, "x=2,3")
    found = sorted(file.read_text() for file in application.glob("out/*/out.txt"))
    assert found == ["good 4 0 0", "good 9 1 0"]
    sweep = sweep_of(here)
    assert (sweep.name, len(sweep.members)) == ("run", 2)
    assert all(sweep.run(number).finished for number in range(2))


def test_what_one_raises_the_application_sees(application: Path, here: Path) -> None:
    told = launch(application, "x=2,0", status=1)
    assert "nought is not allowed" in told
    sweep = sweep_of(here)
    assert [sweep.run(number).state()["state"] for number in range(2)] == ["finished", "failed"]
    assert len(list(sweep.run(1).attempts.iterdir())) == 1


def test_the_prompt_returns_at_once_if_asked(application: Path, here: Path) -> None:
    launch(application, "x=2", "hydra.launcher.wait=false", "hydra.launcher.name='a;touch pwned'")
    assert sweep_of(here).name == "a-touch-pwned"
    subprocess.run([sys.executable, "-m", "hpc", "sweep", "status", "--wait", "--json"], check=True, timeout=60)
    assert [file.read_text() for file in application.glob("out/*/out.txt")] == ["good 4 0 0"]
    assert not list(here.rglob("pwned"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.launcher.cluster=nowhere"], "there is no conf/cluster/nowhere.yaml"),
        (["hydra.launcher.time=soon"], "job.time=soon"),
        (["hydra.launcher.overrides=[job.nods=2]"], "job.nods"),
    ],
)
def test_a_mistake_is_said_and_nothing_is_written(application: Path, here: Path, words: list[str], said: str) -> None:
    assert said in launch(application, "x=2,3", *words, status=1)
    assert not list(here.rglob("sweep.json"))


def test_nobody_types_job_hydra(here: Path) -> None:
    words = ["submit", "job=hydra", "job.nodes=1", "job.ranks_per_node=1", "--wait", "--json"]
    done = subprocess.run([sys.executable, "-m", "hpc", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (failed,) = here.rglob("state.json")
    assert "hpc_slurm" in json.loads(failed.read_text())["reason"]
