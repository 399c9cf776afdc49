"""The sbatch script of every cluster, as golden files, which UPDATE_GOLDEN=1 rewrites."""

from __future__ import annotations

import os
import shlex
import subprocess
import venv
from pathlib import Path

import pytest

from hpc.check import problems
from hpc.cli import main
from hpc.compose import CONF, compose
from hpc.request import resolve
from hpc.script import rank_command, render, step_options

GOLDEN = Path(__file__).parent / "golden"
RUN = Path("/shared/runs/tiny_moe/20260131-120000-1f2e")
CLUSTERS = sorted(p.stem for p in (CONF / "cluster").glob("*.yaml"))


def script(*overrides: str, folder: Path = RUN, emulated: bool = False) -> str:
    config = compose(["cluster.python=/shared/venv/bin/python", *overrides])
    return render(config, resolve(config), folder, emulated=emulated)


def same_as_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_dry_run_on_each_cluster(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_HOME", str(tmp_path))  # where nothing is emulated
    places = ["cluster.python=/shared/venv/bin/python", "cluster.runs=/shared/runs"]
    assert main(["submit", "--dry-run", "job=hello", f"cluster={cluster}", *places]) == 0
    same_as_golden(f"{cluster}.sh", capsys.readouterr().out)


def test_script_of_an_emulated_cluster() -> None:
    same_as_golden("noctua2_emulated.sh", script("cluster=noctua2", emulated=True))


def test_script_with_everything_that_a_job_may_ask() -> None:
    text = script(
        "cluster=noctua2",
        "cluster.gpu_request=gpus_per_node",
        "job.nodes=2",
        "job.time=10:00:00",
        "job.account=hpc-prf-lola",
        "job.qos=cont",
        "job.reservation=lola_production_run",
        "job.constraint=fast",
        "job.exclude=n2gpu1203",
        "job.memory_gb=200",
        "job.grace=120",
    )
    same_as_golden("everything.sh", text)


def test_a_path_with_spaces_quotes_and_unicode_stays_one_word() -> None:
    text = script("cluster=noctua2", folder=Path('/data/my "runs"/größe $(x)/r'))
    assert r'#SBATCH --chdir="/data/my \"runs\"/größe $(x)/r"' in text
    assert "exec /shared/venv/bin/python -P -u -m hpc.supervise '/data/my \"runs\"/größe $(x)/r'" in text


def test_rendering_twice_gives_the_same_text() -> None:
    assert script("cluster=noctua2") == script("cluster=noctua2")


KINDS = {
    "venv": ["cluster.venv=/shared/my venv"],
    "conda": ["cluster.modules=[lang/Miniforge3]", "cluster.conda='lm; touch pwned'"],
    "apptainer": [
        *("cluster.container.runtime=apptainer", "cluster.container.image=/shared/torch.sif"),
        *("cluster.container.python=python3", "cluster.container.mounts=[/scratch]", "cluster.python=/usr/bin/python3"),
    ],
    "pyxis": [
        *("cluster.container.runtime=pyxis", "cluster.container.image='nvcr.io#nvidia/pytorch:25.01-py3'"),
        *("cluster.container.python=python3", "cluster.container.mounts=['/scratch:/tmp']"),
        "cluster.python=/usr/bin/python3",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_environment(kind: str) -> None:
    """The script, and what it comes to for each rank."""
    config = compose(["cluster=noctua2", "data.path=/shared/data/de", *KINDS[kind]])
    request = resolve(config)
    ranks = ["srun", *step_options(config, request, RUN / "attempts/0"), *rank_command(config, RUN)]
    same_as_golden(f"environment_{kind}.sh", f"{render(config, request, RUN)}# ranks: {shlex.join(ranks)}\n")


def test_a_virtual_environment_is_the_one_whose_python_runs(tmp_path: Path) -> None:
    place = tmp_path / "my $(touch pwned) venv"
    venv.create(place)
    config = compose(["cluster=noctua2", "cluster.modules=[]"])
    config.cluster.venv = str(place)
    lines = render(config, resolve(config), RUN).splitlines()
    ask = [*lines[:-1], "python -c 'import sys; print(sys.prefix)'", lines[-1].replace("-m hpc.supervise", "-V #")]
    done = subprocess.run(["bash", "-c", "\n".join(ask)], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[0] == str(place), done.stderr
    assert done.returncode == 0 and "Python 3" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    config.cluster.venv = "/nowhere"
    text = render(config, resolve(config), RUN)
    assert subprocess.run(["bash", "-c", text], capture_output=True, cwd=tmp_path, timeout=60).returncode == 127


def test_only_one_environment_and_mounts_that_stay_one_word() -> None:
    both = compose(["cluster=noctua2", "job=hello", "cluster.venv=/v", "cluster.conda=c"])
    assert "not both" in str(problems(both, resolve(both))[0])
    mount = compose(["cluster=noctua2", "job=hello", "cluster.container.mounts=['/a,/b']"])
    assert "without commas" in str(problems(mount, resolve(mount))[0])


def test_steps_say_cores_again_and_die_together() -> None:
    config = compose(["cluster=noctua2"])
    options = step_options(config, resolve(config), Path("/runs/100%/attempts/0"))
    assert "--cpus-per-task=32" in options
    assert "--kill-on-bad-exit=1" in options
    assert "--output=/runs/100%%/attempts/0/rank-%t.log" in options
