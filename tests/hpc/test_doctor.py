"""What the doctor says of a site, and how it looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc import compose, doctor, probes
from hpc.doctor import Finding, Level
from tests.hpc import sites


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.level.name for finding in findings}


def test_a_site_as_it_should_be() -> None:
    cluster = compose.cluster(["cluster=noctua2"])
    site = sites.site(accounting=True)
    found = [*doctor.slurm(site, 0.1, cluster, 0.4), *doctor.partitions(site, cluster)]
    assert set(levels(found).values()) == {"ok"}, found
    assert doctor.worst(found) is Level.ok


def test_what_is_described_and_not_there_is_named_as_it_is_to_be_written() -> None:
    cluster = compose.cluster(["cluster=noctua2", "cluster.max_array_size=5000"])
    nodes = "".join(sites.node(n, {"Gres": "gpu:a100:2", "RealMemory": "204800"}) for n in range(1201, 1211))
    short = sites.PARTITIONS.replace("MaxTime=7-00:00:00", "MaxTime=1-00:00:00")
    site = sites.site(short, nodes, ClusterName="n2", JobRequeue="0", SLURM_VERSION="20.11.9", PreemptMode="CANCEL")
    found = [*doctor.slurm(site, 3.0, cluster, 60), *doctor.partitions(site, cluster)]
    wrong = {finding.what: finding.advice for finding in found if finding.level is Level.warn}
    assert list(wrong) == [
        *("controller", "cluster name", "controller's clock", "requeue", "preemption", "MaxArraySize", "partition gpu")
    ]
    for setting in ("max_time: 1-00:00:00", "max_nodes: 10", "memory_gb: 200", "gpus: 2 of type a100"):
        assert setting in wrong["partition gpu"]
    missing = doctor.partitions(sites.site(short.replace("=gpu ", "=g "), nodes), cluster)
    assert [finding.level for finding in missing] == [Level.bad]


@pytest.mark.parametrize(
    ("kind", "alone", "level"),
    [
        ("nfs4", False, "ok"),
        ("lustre", False, "ok"),
        ("fuse.glusterfs", False, "ok"),
        ("tmpfs", True, "bad"),
        ("ext4", False, "bad"),
        ("overlay", False, "bad"),
        ("ext4", True, "ok"),
    ],
)
def test_file_systems(kind: str, alone: bool, level: str) -> None:
    assert doctor.file_system("cluster.runs", "/x", kind, alone=alone).level.name == level


def test_room_and_quota() -> None:
    assert doctor.space("room", 2**40, None).level is Level.ok
    assert doctor.space("room", 2**40, 10).level is Level.bad
    assert doctor.space("room", 2**20, None).level is Level.bad
    assert doctor.space("room", 20 * 2**30, 10**9).level is Level.warn
    head = "Disk quotas for user alice (uid 1000):\n     Filesystem  blocks   quota   limit   grace   files\n"
    over = doctor.quota("quota", head + "  nfs:/home  1050000*  1000000  1100000  6days  1234\n")
    within = doctor.quota("quota", head + "  nfs:/home  10  1000000  1100000    1234\n")
    assert over and over.level is Level.bad and "1.0 of 1.0 GiB on nfs:/home" in over.found
    near = doctor.quota("quota", head + "  nfs:/home  1000000  1000000  1100000    1234\n")
    assert near and near.level is Level.warn
    assert within and within.level is Level.ok
    assert doctor.quota("quota", "Disk quotas for user alice (uid 1000): none\n") is None


@given(st.lists(st.sampled_from(["/", "/scratch", "/scratch/a b", "/home", "/scratch/a b/c"]), unique=True))
def test_the_deepest_mount_holds_a_path(points: list[str]) -> None:
    mounts = "".join(f"dev{n} {point.replace(' ', chr(92) + '040')} fs{n} rw 0 0\n" for n, point in enumerate(points))
    above = [point for point in points if Path(point) in (p := Path("/scratch/a b/c/runs"), *p.parents)]
    deepest = max(above, key=len, default="/")
    kind = f"fs{points.index(deepest)}" if deepest in points else "unknown"
    assert probes.mount(Path("/scratch/a b/c/runs"), mounts) == (deepest, kind)


def test_an_interpreter_is_asked_and_not_imported_from() -> None:
    found = probes.packages(sys.executable)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["hydra-core"]
    with pytest.raises(OSError):
        probes.packages("/no/such/python")
    [finding] = doctor.python("python", "python", {"python": "3.10.1"})
    assert finding.level is Level.bad


def test_writing_leaves_nothing(tmp_path: Path) -> None:
    written = probes.write(tmp_path / "not" / "there")
    assert len(written.taken) == probes.WRITES
    assert abs(written.skew) < 2
    assert list(tmp_path.iterdir()) == []


def report(node: str, **changes: object) -> dict[str, object]:
    return {
        **{"node": node, "python": "3.11.7", "torch": "2.13.0", "gpus_visible": 4, "driver": "", "interface": True},
        **{"interfaces": "lo", "slurm": True, "skew": 0.1, "seen": 2, **changes},
    }


def test_reports_of_nodes() -> None:
    cluster = compose.cluster(["cluster=noctua2"])
    assert set(levels(list(doctor.reports([report("a"), report("b")], 2, cluster, 4))).values()) == {"ok"}
    worse = [report("a", gpus_visible=3, seen=1, interface=False, slurm=False), report("b", torch="2.12.0")]
    found = list(doctor.reports(worse, 2, cluster, 4))
    assert sum(finding.level is Level.bad for finding in found) == 3
    assert "torch on nodes" in levels(found)
    [first, *_] = doctor.reports([report("a")], 2, cluster, 4)
    assert first.level is Level.bad


def hpc(*words: str, home: Path, status: int, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home,
        env={**os.environ, "HPC_HOME": str(home / "h"), "HPC_RUNS": str(home / "runs"), **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_a_laptop_with_a_job(here: Path) -> None:
    told = json.loads(hpc("doctor", "--job", "--json", home=here, status=0))
    assert told["worst"] in ("ok", "warn")
    by_name = {row["what"]: row for row in told["findings"]}
    assert by_name["job"]["level"] == "ok"
    assert by_name["run folder on nodes"]["level"] == "ok"


def test_memory_is_no_place_for_runs_and_no_slurm_is_said(here: Path) -> None:
    text = hpc("doctor", "cluster=noctua2", home=here, status=1, HPC_RUNS="/dev/shm/runs")
    assert "bad   cluster.runs: /dev/shm/runs on tmpfs" in text
    assert "bad   controller: " in text or "bad   programs: " in text
    assert not Path("/dev/shm/runs").exists()
