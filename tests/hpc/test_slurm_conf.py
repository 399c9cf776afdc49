"""The configuration of an emulated cluster, without starting one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.config import Cluster, Launcher, NodeType, Partition
from hpc.emulate.accounting import registration
from hpc.emulate.slurm_conf import (
    SOCKET_PATH_LIMIT,
    Options,
    Site,
    compress,
    described,
    expand,
    longest_socket,
    node_names,
    render,
)
from hpc.errors import Refused

ACCOUNTED = Options(accounting=True)
SITE = Site(Path("/h/emulated/site"), "laptop", "ada", 12000, 12001, (22, 5))


def site_cluster(**changes: object) -> Cluster:
    values: dict[str, object] = {
        "name": "site",
        "node_types": {
            "gpu": NodeType(
                count=3,
                names="g[08-10]",
                cores=64,
                sockets=2,
                memory_gb=256,
                gpus=4,
                gpu_type="a100",
                features=["ib", "nvme"],
            ),
            "cpu": NodeType(count=1, names="login", cores=8, memory_gb=16),
        },
        "partitions": {
            "gpu": Partition("gpu", max_time="1-00:00:00", default_time="2:00:00", max_nodes=2),
            "cpu": Partition("cpu"),
        },
        "default_partition": "gpu",
        "max_array_size": 11,
        "runs": "runs",
        "data": "data",
    }
    return Cluster(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def files(cluster: Cluster, options: Options = Options(), site: Site = SITE) -> dict[str, str]:  # noqa: B008
    return render(described(cluster, options), options, site)


def line(text: str, start: str) -> str:
    found = [entry for entry in text.splitlines() if entry.startswith(start)]
    assert len(found) == 1, (start, text)
    return found[0]


def test_golden_slurm_conf() -> None:
    assert (
        files(site_cluster())["slurm.conf"]
        == """\
# EMULATED: site, on this machine only
ClusterName=site
SlurmctldHost=laptop(127.0.0.1)
SlurmUser=ada
SlurmdUser=ada
SlurmctldPort=12000
AuthType=auth/munge
AuthInfo=socket=/h/emulated/site/munge/sock
StateSaveLocation=/h/emulated/site/state
SlurmdSpoolDir=/h/emulated/site/spool/%n
SlurmctldPidFile=/h/emulated/site/run/slurmctld.pid
SlurmdPidFile=/h/emulated/site/run/slurmd-%n.pid
SlurmctldLogFile=/h/emulated/site/log/slurmctld.log
SlurmdLogFile=/h/emulated/site/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
TreeWidth=50
SlurmdParameters=config_overrides
MaxArraySize=11
MaxJobCount=10000
NodeName=g[08-10] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[12001-12003] CPUs=64 Boards=1 \
SocketsPerBoard=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=262144 Gres=gpu:a100:4 Feature=ib,nvme
NodeName=login NodeHostname=localhost NodeAddr=127.0.0.1 Port=12004 CPUs=8 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16384
PartitionName=gpu Nodes=g[08-10] Default=YES MaxTime=1-00:00:00 OverSubscribe=EXCLUSIVE \
DefaultTime=2:00:00 MaxNodes=2
PartitionName=cpu Nodes=login Default=NO MaxTime=UNLIMITED OverSubscribe=EXCLUSIVE
"""
    )


def test_gpus_are_links_in_the_emulations_own_directory() -> None:
    assert files(site_cluster())["gres.conf"] == (
        "AutoDetect=off\nNodeName=g[08-10] Name=gpu Type=a100 File=/h/emulated/site/dev/nvidia[0-3]\n"
    )


@pytest.mark.parametrize(("version", "plugin"), [((22, 5), "cgroup/v1"), ((23, 2), "disabled"), ((24, 11), "disabled")])
def test_cgroups_stay_unused_in_every_version(version: tuple[int, int], plugin: str) -> None:
    site = Site(SITE.directory, SITE.host, SITE.user, 12000, 12001, version)
    assert files(site_cluster(), site=site)["cgroup.conf"] == f"CgroupPlugin={plugin}\n"


def test_the_sites_own_name_is_what_slurm_says() -> None:
    text = files(site_cluster(slurm_name="pc2"))["slurm.conf"]
    assert line(text, "ClusterName") == "ClusterName=pc2"


def test_defaults_of_a_site_stay_without_fast_and_credentials_always() -> None:
    slow, fast = (files(site_cluster(), Options(fast=on))["slurm.conf"] for on in (False, True))
    for name in ("SchedulerParameters", "KillWait", "SlurmdTimeout"):
        assert name not in slow
        assert name in fast
    assert "cred_expire" not in slow + fast


def test_node_timeout_wins_over_fast() -> None:
    text = files(site_cluster(), Options(fast=True, node_timeout=7))["slurm.conf"]
    assert line(text, "SlurmdTimeout") == "SlurmdTimeout=7"


def test_preemptible_adds_a_lower_tier_beside_the_default_partition() -> None:
    text = files(site_cluster(), Options(preemptible=True))["slurm.conf"]
    assert line(text, "PreemptType") == "PreemptType=preempt/partition_prio"
    assert line(text, "PartitionName=gpu ").endswith("PriorityTier=10 PreemptMode=OFF")
    added = line(text, "PartitionName=gpu_preempt")
    assert "Nodes=g[08-10] Default=NO MaxTime=1-00:00:00" in added
    assert added.endswith("PriorityTier=1 PreemptMode=REQUEUE")


def test_fewer_nodes_of_each_type() -> None:
    small = described(site_cluster(), Options(nodes=2))
    assert node_names(small) == ["g08", "g09", "login"]
    assert "Port=[12001-12002]" in files(site_cluster(), Options(nodes=2))["slurm.conf"]


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, Options(nodes=0), "Allowed: 1 to 3"),
        ({}, Options(nodes=4), "Allowed: 1 to 3"),
        ({"launcher": Launcher.local}, Options(), "launcher=local"),
        ({"name": "../x"}, Options(), "cluster.name=../x"),
        ({"default_partition": "none"}, Options(), "allowed: gpu"),
        ({"partitions": {"gpu": Partition("tpu")}}, Options(), "cluster.partitions.gpu.node_type=tpu"),
        ({"node_types": {"gpu": NodeType(4, "g[1-3]", 8, 1, 8)}}, Options(), "are 3"),
        ({"node_types": {"gpu": NodeType(1, "g[1-", 8, 1, 8)}}, Options(), "names=g[1-"),
        ({"node_types": {"gpu": NodeType(1, "g1", 9, 2, 8)}}, Options(), "multiple of sockets=2"),
        (
            {"node_types": {"gpu": NodeType(1, "g1", 8, 1, 8), "cpu": NodeType(1, "g1", 8, 1, 8)}},
            Options(),
            "g1 is in two node types",
        ),
    ],
)
def test_what_cannot_be_emulated_is_refused(changes: dict[str, object], options: Options, said: str) -> None:
    cluster = site_cluster(**({"partitions": {"gpu": Partition("gpu")}} | changes))
    with pytest.raises(Refused) as refusal:
        described(cluster, options)
    assert said in str(refusal.value)


def test_the_longest_socket_is_that_of_a_batch_step() -> None:
    directory = Path("/" + "d" * 60)
    assert longest_socket(directory, site_cluster()) == len(f"{directory}/spool/login/login_1234567.4294967291")
    assert longest_socket(Path("/tmp/hpc-1000/emulated/noctua2"), site_cluster()) <= SOCKET_PATH_LIMIT


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[08-11,3]", ["n08", "n09", "n10", "n11", "n3"]),
        ("a[1-2],b", ["a1", "a2", "b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
    ],
)
def test_expand(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n1]", "n[a-b]", "n[]"])
def test_expand_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        expand(text)


HOSTS = st.builds(
    lambda prefix, number, width: prefix + str(number).zfill(width),
    st.sampled_from(["n", "gpu-", "r1n"]),
    st.integers(0, 1200),
    st.integers(1, 5),
)


@given(st.lists(HOSTS | st.sampled_from(["login", "head"]), min_size=1, max_size=40))
def test_compress_is_the_inverse_of_expand(names: list[str]) -> None:
    assert expand(compress(names)) == names


def test_compress_is_what_a_person_would_write() -> None:
    assert compress(["n2gpu1201", "n2gpu1202", "n2gpu1203", "login"]) == "n2gpu[1201-1203],login"


def test_accounting_is_there_where_it_was_asked_for() -> None:
    site = replace(SITE, accounting_port=12009)
    plain, accounted = files(site_cluster()), files(site_cluster(), ACCOUNTED, site)
    assert "slurmdbd.conf" not in plain
    assert "AccountingStorage" not in plain["slurm.conf"]
    for text in ("AccountingStoragePort=12009", "AccountingStoragePass=/h/emulated/site/munge/sock"):
        assert text in accounted["slurm.conf"].splitlines()
    assert "DbdPort=12009" in accounted["slurmdbd.conf"].splitlines()
    assert "StorageUser=ada" in accounted["slurmdbd.conf"].splitlines()
    assert "StoragePort" not in accounted["slurmdbd.conf"]


def test_the_account_is_that_of_the_description() -> None:
    assert registration(site_cluster(), "ada") == [
        ["add", "cluster", "site"],
        ["add", "account", "default", "cluster=site"],
        ["add", "user", "ada", "account=default"],
    ]
    told = registration(site_cluster(account="hpc-lola", qos="long", slurm_name="pc2"), "root")
    assert told[1] == ["add", "qos", "long"]
    assert told[2] == ["add", "account", "hpc-lola", "cluster=pc2", "qos=normal,long", "defaultqos=long"]
    assert told[-1] == ["modify", "user", "root", "set", "defaultaccount=hpc-lola"]


@pytest.mark.parametrize("name", ["a b", "a,b", "a'b", "a;touch pwned", "cluster=x", "-i"])
def test_a_name_that_sacctmgr_would_take_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="account"):
        registration(site_cluster(account=name), "ada")
