"""A site's description from what its Slurm says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc import compose
from hpc.config import Cluster
from hpc.detect import describe, gpu
from hpc.site import Site
from tests.hpc import sites


def described(site: Site, tmp_path: Path, name: str = "mine") -> Cluster:
    """What Hydra makes of the text."""
    (tmp_path / "cluster").mkdir(exist_ok=True)
    (tmp_path / "cluster" / f"{name}.yaml").write_text(describe(site, name, "2026-11-22"))
    return compose.cluster([f"cluster={name}", f"hydra.searchpath=[file://{tmp_path}]"])


def test_node_types_are_what_a_request_can_tell_apart(tmp_path: Path) -> None:
    nodes = sites.NODES + sites.node(
        1, {"NodeName": "old7", "Gres": "(null)", "Sockets": "1", "Partitions": "cpu", "AvailableFeatures": "ib"}
    )
    nodes += sites.node(2, {"Partitions": "", "NodeName": "spare1"})
    cpu = sites.PARTITIONS.replace("PartitionName=gpu", "PartitionName=cpu").replace("Default=YES", "Default=NO")
    cluster = described(sites.site(sites.PARTITIONS + cpu, nodes, accounting=True), tmp_path)
    found = {name: (kind.count, kind.names, kind.gpus, kind.features) for name, kind in cluster.node_types.items()}
    assert found == {
        "a100": (12, "n2gpu[1201-1212]", 4, ["ib", "a100"]),
        "a100_2": (12, "n2gpu[1213-1224]", 4, ["ib"]),
        "cpu": (1, "old7", 0, ["ib"]),
    }
    assert (cluster.name, cluster.slurm_name, cluster.default_partition) == ("mine", "noctua2", "gpu")
    assert {name: each.node_type for name, each in cluster.partitions.items()} == {"gpu": "a100", "cpu": "cpu"}
    assert cluster.partitions["gpu"].max_time == "7-00:00:00"
    assert (cluster.account, cluster.exclusive, cluster.max_array_size) == ("lang", True, 1001)


def test_names_that_yaml_would_read_as_something_else_stay_text(tmp_path: Path) -> None:
    odd = sites.PARTITIONS.replace("PartitionName=gpu", "PartitionName=2080").replace(
        "MaxTime=7-00:00:00", "MaxTime=1:00"
    )
    nodes = sites.node(1, {"Gres": "gpu:1e3:2", "AvailableFeatures": "yes,1.5,null,a[1]", "Partitions": "2080"})
    cluster = described(sites.site(odd, nodes), tmp_path)
    assert list(cluster.partitions) == ["2080"]
    assert cluster.partitions["2080"].max_time == "00:01:00"
    [kind] = cluster.node_types.values()
    assert (kind.gpu_type, kind.features) == ("1e3", ["yes", "1.5", "null", "a[1]"])


@pytest.mark.parametrize(
    ("kind", "features", "memory", "peak"),
    [
        ("a100", (), 40, 312),
        ("a100", ("a100_80",), 80, 312),
        ("nvidia_a100_80gb_pcie", (), 80, 312),
        ("A100-SXM4-40GB", (), 40, 312),
        ("h100", (), 80, 989),
        ("l40s", (), 48, 362),
        ("l40", (), 48, 181),
        ("v100-sxm2-32gb", (), 32, 0),
        ("1g.5gb", (), 0, 0),
        ("", ("a100",), 0, 0),
    ],
)
def test_gpus_are_known_by_their_type(kind: str, features: tuple[str, ...], memory: float, peak: float) -> None:
    assert gpu(kind, features)[:2] == (memory, peak)


def test_partitions_that_give_way(tmp_path: Path) -> None:
    low = sites.PARTITIONS.replace("PartitionName=gpu", "PartitionName=low").replace("Default=YES", "Default=NO")
    low = low.replace("PriorityTier=10", "PriorityTier=1").replace("PreemptMode=OFF", "PreemptMode=REQUEUE")
    nodes = sites.NODES.replace("Partitions=gpu", "Partitions=gpu,low")
    partitions = described(sites.site(sites.PARTITIONS + low, nodes), tmp_path).partitions
    assert {name: each.preemptible for name, each in partitions.items()} == {"gpu": False, "low": True}
