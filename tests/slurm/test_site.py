"""Limits that a real Slurm names: refused before sbatch, written down by detect, looked over by the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hpc import compose, emulate, slurm
from hpc.config import Cluster
from hpc.emulate import Emulation

CONF = Path(__file__).resolve().parents[2] / "conf" / "cluster"
SMALL = ["job=hello", "job.nodes=1", "job.time=10", "job.grace=10"]


def hpc(*words: str, status: int = 0, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done


def copied(shipped: str, name: str, folder: Path) -> str:
    """A shipped description under another name; the override by which Hydra finds it."""
    (folder / "cluster").mkdir(exist_ok=True)
    text = (CONF / f"{shipped}.yaml").read_text(encoding="utf-8").replace(f"name: {shipped}", f"name: {name}")
    (folder / "cluster" / f"{name}.yaml").write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


@pytest.fixture(scope="module")
def limited(
    slurm_home: Path, described: Callable[..., Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Emulation, list[str]]]:
    """An emulated cluster whose limits tests change, and the overrides by which one gets there."""
    folder = tmp_path_factory.mktemp("limited")
    search = copied("noctua2", "limited", folder)
    options = emulate.Options(nodes=4, fast=True, preemptible=True)
    with emulate.emulated(described("limited", search), options) as found:
        yield found, [search, "cluster=limited", f"cluster.runs={folder}/runs"]


@pytest.fixture
def update(limited: tuple[Emulation, list[str]]) -> Callable[..., AbstractContextManager[None]]:
    """update("partitionname=gpu", "MaxTime=1:00:00", back="MaxTime=7-0"): as an administrator, and undone after."""
    emulation, _ = limited

    @contextmanager
    def change(what: str, to: str, back: str) -> Iterator[None]:
        slurm.call(["scontrol", "update", what, *to.split()], environment=emulation.environment)
        try:
            yield
        finally:
            slurm.call(["scontrol", "update", what, *back.split()], environment=emulation.environment)

    return change


@pytest.mark.parametrize(
    ("what", "to", "back", "overrides", "source", "fix"),
    [
        (
            "partitionname=gpu",
            "MaxTime=1:00:00",
            "MaxTime=7-0",
            ["job.time=1:00:01"],
            "MaxTime=01:00:00",
            "job.time=01:00:00",
        ),
        ("partitionname=gpu", "MaxNodes=2", "MaxNodes=4", ["job.nodes=3"], "MaxNodes=2", "job.nodes=2"),
        ("partitionname=gpu", "MinNodes=3", "MinNodes=0", ["job.nodes=2"], "MinNodes=3", "job.nodes=3"),
        ("partitionname=gpu", "State=DRAIN", "State=UP", [], "State=DRAIN", "job.partition=gpu_preempt"),
        ("partitionname=gpu", "MaxCPUsPerNode=100", "MaxCPUsPerNode=UNLIMITED", [], "MaxCPUsPerNode=100", "cores=100"),
        ("partitionname=gpu", "ReqResv=YES", "ReqResv=NO", [], "ReqResv=YES", "job.reservation=NAME"),
        (
            "partitionname=gpu",
            "AllowAccounts=a",
            "AllowAccounts=ALL",
            ["job.account=b"],
            "AllowAccounts=a",
            "gpu_preempt",
        ),
    ],
)
def test_what_slurm_would_refuse_or_never_start_is_refused_with_its_source(
    limited: tuple[Emulation, list[str]],
    update: Callable[..., AbstractContextManager[None]],
    what: str,
    to: str,
    back: str,
    overrides: list[str],
    source: str,
    fix: str,
) -> None:
    emulation, places = limited
    with update(what, to, back):
        done = hpc("submit", *SMALL, *places, *overrides, status=2)
        assert f"scontrol show partition gpu: {source})" in done.stderr
        assert fix in done.stderr.partition("Try: ")[2]
        assert done.stdout == ""
        assert not slurm.queue(environment=emulation.environment)
    assert not (Path(places[2].partition("=")[2]) / "tiny_moe").exists()
    assert "#!/bin/bash" in hpc("submit", "--dry-run", *SMALL, *places, *overrides).stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["job.nodes=5"], "gives 1 to 4 nodes (scontrol show partition gpu: TotalNodes=4). Try: job.nodes=4"),
        (["job.memory_gb=481"], "(scontrol show node: RealMemory=491520). Try: job.memory_gb=480"),
        (["job.constraint=nvlink"], "no node has the feature nvlink (scontrol show node: no features)"),
        (["job.exclude=n2gpu1299"], "there is no node n2gpu1299 (scontrol show node). Try: job.exclude=null"),
        (["job.exclude=n2gpu1201", "job.nodes=4"], "leaves 3 of the 4 nodes"),
        (["job.reservation=mine"], "there are: none (scontrol show reservation). Try: job.reservation=null"),
        (["job.partition=gpu_preempt", "job.nodes=5"], "(scontrol show partition gpu_preempt: TotalNodes=4)"),
    ],
)
def test_a_limit_crossed_by_one(limited: tuple[Emulation, list[str]], overrides: list[str], message: str) -> None:
    done = hpc("submit", "--dry-run", *SMALL, *limited[1], *overrides, status=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_the_index_of_an_array_is_bounded_by_the_site_whatever_is_described(
    limited: tuple[Emulation, list[str]],
) -> None:
    _, places = limited
    swept = ["cluster.max_array_size=5000", f"job.seconds={','.join(map(str, range(1002)))}"]
    done = hpc("submit", "-m", "--dry-run", *SMALL, *places, *swept)
    arrays = [line for line in done.stdout.splitlines() if line.startswith("#SBATCH --array=")]
    assert arrays == ["#SBATCH --array=0-1000", "#SBATCH --array=0-0"]


def test_a_job_that_waits_for_nodes_that_are_down_is_submitted_with_a_hint(
    limited: tuple[Emulation, list[str]], update: Callable[..., AbstractContextManager[None]]
) -> None:
    _, places = limited
    with update("nodename=n2gpu1204", "state=drain reason=test", "state=resume"):
        done = hpc("submit", "--dry-run", *SMALL, *places, "job.nodes=4")
    assert "the job waits for nodes: 3 of those of partition gpu that fit are up now" in done.stderr


def test_a_slurm_that_does_not_answer_leaves_the_description_and_says_so(
    limited: tuple[Emulation, list[str]], tmp_path: Path
) -> None:
    search = copied("noctua2", "silent", tmp_path)
    done = hpc(
        "submit", "--dry-run", *SMALL, search, "cluster=silent", environment={"SLURM_CONF": str(tmp_path / "none")}
    )
    assert "no Slurm of silent answers here: checked against cluster/silent.yaml" in done.stderr


def test_a_hanging_slurm_delays_by_two_seconds_at_most(tmp_path: Path) -> None:
    for name in ("scontrol", "sacctmgr", "sbatch", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    search = copied("noctua2", "silent", tmp_path)
    start = time.monotonic()
    done = hpc(
        *("submit", "--dry-run", *SMALL, search, "cluster=silent"),
        environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert "no Slurm of silent answers" in done.stderr
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("shipped", ["noctua2", "a100_4x8", "a100_8x8", "h100_32x8", "l40_16x2"])
def test_what_is_detected_is_what_was_described(
    shipped: str, slurm_home: Path, described: Callable[..., Cluster], tmp_path: Path
) -> None:
    search = copied(shipped, "site", tmp_path)
    truth = described("site", search)
    with emulate.emulated(truth, emulate.Options(fast=True)) as emulation:
        told = json.loads(
            hpc(
                "cluster", "detect", "--output", str(tmp_path / "out"), "--json", environment=emulation.environment
            ).stdout
        )
        assert Path(told["file"]) == tmp_path / "out" / "cluster" / "site.yaml"
        again = hpc("cluster", "detect", "--output", str(tmp_path / "out"), status=2, environment=emulation.environment)
        assert "is there already. Try: --force" in again.stderr
        if shipped == "noctua2":
            words = ["job=hello", "cluster=site", f"cluster.runs={tmp_path}/runs", "job.nodes=2"]
            hpc("submit", *words, "--config-dir", str(tmp_path / "out"), "--wait")
    found = compose.cluster(["cluster=site", f"hydra.searchpath=[file://{tmp_path}/out]"])
    assert comparable(found) == comparable(truth)


def comparable(cluster: Cluster) -> dict[str, object]:
    """What Slurm can know of a cluster. A100 come in two sizes under one name."""
    kinds = {
        name: replace(kind, interconnect="", gpu_memory_gb=0.0 if kind.gpu_type == "a100" else kind.gpu_memory_gb)
        for name, kind in cluster.node_types.items()
    }
    return {
        "partitions": {
            name: (kinds[each.node_type], each.max_time, each.default_time, each.max_nodes, each.preemptible)
            for name, each in cluster.partitions.items()
        },
        "default": cluster.default_partition,
        "max_array_size": cluster.max_array_size,
        "exclusive": cluster.exclusive,
        "names": {cluster.name, cluster.slurm_name or cluster.name},
    }


def test_the_doctor_sends_a_job_to_two_nodes(limited: tuple[Emulation, list[str]]) -> None:
    _, places = limited
    told = json.loads(hpc("doctor", "--job", "--json", *places).stdout)
    by_name = {row["what"]: row for row in told["findings"]}
    assert {row["level"] for row in told["findings"]} <= {"ok", "warn"}
    for what in ("controller", "cluster name", "partition gpu", "job", "node n2gpu1201", "node n2gpu1202"):
        assert by_name[what]["level"] == "ok", by_name[what]
    assert "4 GPUs visible" in by_name["node n2gpu1201"]["found"]


def test_the_doctor_says_what_the_description_has_too_much(
    limited: tuple[Emulation, list[str]], update: Callable[..., AbstractContextManager[None]]
) -> None:
    _, places = limited
    with update("partitionname=gpu", "MaxTime=1:00:00", "MaxTime=7-0"):
        told = json.loads(hpc("doctor", "--json", *places, "cluster.max_array_size=5000").stdout)
        refused = hpc("doctor", "--job", *places, "job.time=2:00:00", status=1).stdout
    by_name = {row["what"]: row for row in told["findings"]}
    assert by_name["partition gpu"]["advice"] == "in the description: max_time: 01:00:00"
    assert by_name["MaxArraySize"]["level"] == "warn"
    assert "bad   job: job.time=2:00:00" in refused
