"""A request against what Slurm says: a limit crossed by one is refused with its source and the nearest legal value."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpc.check import problems
from hpc.check_access import submission
from hpc.check_site import hints
from hpc.compose import compose
from hpc.request import resolve
from hpc.site import Site
from tests.hpc import sites


def found(site: Site, *overrides: str) -> list[str]:
    config = compose(["job=hello", "cluster=noctua2", *overrides])
    return [str(problem) for problem in problems(config, resolve(config), site)]


def partition(old: str, new: str) -> str:
    assert old in sites.PARTITIONS
    return sites.PARTITIONS.replace(old, new)


def test_what_slurm_gives_is_taken_with_accounting_and_without() -> None:
    assert found(sites.site()) == []
    # Eight nodes of four: the 32 GPUs that QoS normal gives a user.
    assert found(sites.site(accounting=True), "job.nodes=8") == []


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        (
            *("MaxTime=7-00:00:00", "MaxTime=01:00:00", ["job.time=1:00:01"]),
            "job.time=1:00:01: partition gpu of noctua2 gives at most 01:00:00 (scontrol show partition gpu: "
            "MaxTime=01:00:00). Try: job.time=01:00:00",
        ),
        ("MaxNodes=UNLIMITED", "MaxNodes=2", ["job.nodes=3"], "gpu: MaxNodes=2). Try: job.nodes=2"),
        ("TotalNodes=24", "TotalNodes=23", [], "job.nodes=24: partition gpu of noctua2 gives 1 to 23 nodes (scontrol"),
        ("MinNodes=0", "MinNodes=3", ["job.nodes=2"], "gives 3 to 24 nodes (scontrol show partition gpu: MinNodes=3)"),
        (
            "State=UP",
            "State=DRAIN",
            [],
            "job.partition=gpu: takes no jobs now (scontrol show partition gpu: State=DRAIN)",
        ),
        ("State=UP", "State=INACTIVE", [], "State=INACTIVE)"),
        ("PartitionName=gpu ", "PartitionName=g ", [], "has no such partition (scontrol show partition: g)"),
        (
            "AllowGroups=ALL",
            "AllowGroups=games,b",
            [],
            "is not for alice (scontrol show partition gpu: AllowGroups=games,b)",
        ),
        (
            "AllowAccounts=ALL",
            "AllowAccounts=b",
            ["job.account=a"],
            "job.account=a: partition gpu of noctua2 does not take",
        ),
        ("AllowAccounts=ALL", "DenyAccounts=a", ["job.account=a"], "DenyAccounts=a)"),
        (
            "ReqResv=NO",
            "ReqResv=YES",
            [],
            "is for reservations (scontrol show partition gpu: ReqResv=YES). Try: job.reserv",
        ),
        (
            *("MaxMemPerNode=UNLIMITED", "MaxMemPerNode=102400", ["job.memory_gb=101"]),
            "gives 1 to 100 GiB (scontrol show partition gpu: MaxMemPerNode=102400). Try: job.memory_gb=100",
        ),
        ("MaxMemPerNode=UNLIMITED", "MaxMemPerNode=102400", [], "null (480, all of a node)"),
        (
            *("MaxMemPerNode=UNLIMITED", "MaxMemPerCPU=1024", ["job.memory_gb=129"]),
            "MaxMemPerCPU=1024, on 128 CPUs). Try: job.memory_gb=128",
        ),
        (
            *("MaxCPUsPerNode=UNLIMITED", "MaxCPUsPerNode=100", []),
            "cores=128: a node of partition gpu of noctua2 gives 100 CPUs (scontrol show partition gpu: MaxCPUsPer",
        ),
    ],
)
def test_a_limit_of_the_partition(old: str, new: str, overrides: list[str], message: str) -> None:
    [text] = found(sites.site(partition(old, new)), *overrides)
    assert message in text


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        (
            {"Gres": "gpu:a100:3"},
            [],
            "gpus=4: 24 nodes of partition gpu of noctua2 have 3 each (scontrol show node: Gres=gpu",
        ),
        ({"Gres": "gpu:a100:3"}, ["cluster.exclusive=false"], "and each rank takes one"),
        ({"Gres": "gpu:h100:4"}, [], "gpu_type=a100: 24 nodes of partition gpu of noctua2 have no such GPU"),
        ({"Gres": "(null)"}, [], "gpus=4: 24 nodes of partition gpu of noctua2 have 0 each"),
        ({"CPUEfctv": "126"}, [], "cluster.node_types.gpu.cores=126"),
        (
            {"RealMemory": "400000"},
            ["job.memory_gb=391"],
            "(scontrol show node: RealMemory=400000). Try: job.memory_gb=390",
        ),
    ],
)
def test_a_limit_of_the_nodes(changes: dict[str, str], overrides: list[str], message: str) -> None:
    nodes = "".join(sites.node(number, changes) for number in range(1201, 1225))
    [text] = found(sites.site(nodes=nodes), *overrides)
    assert message in text


def test_only_as_many_nodes_as_are_asked_for_must_fit() -> None:
    nodes = "".join(sites.node(n, {"RealMemory": "400000"} if n < 1205 else {}) for n in range(1201, 1225))
    assert found(sites.site(nodes=nodes), "job.nodes=20", "job.memory_gb=480") == []
    [text] = found(sites.site(nodes=nodes), "job.nodes=21", "job.memory_gb=391")
    assert text.endswith("Try: job.memory_gb=390")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["job.constraint=nvlink"],
            "no node has the feature nvlink (scontrol show node: a100, ib). Try: job.constraint=a100",
        ),
        (["job.constraint='ib&a100'", "job.nodes=13"], "leaves 12 of the 24 nodes"),
        (["job.constraint='[ib|a100]*2'"], ""),
        (["job.constraint='!ib'"], ""),
        (
            ["job.exclude='n2gpu[1201-1202]'"],
            "leaves 22 of the 24 nodes of partition gpu of noctua2 (scontrol show node)",
        ),
        (["job.exclude='n2gpu[1201-1202]'", "job.nodes=22"], ""),
        (["job.exclude='n2gpu1200'"], "there is no node n2gpu1200 (scontrol show node). Try: job.exclude=null"),
        (["job.reservation=r1", "job.nodes=1"], "is for others (scontrol show reservation r1: Accounts=sub)"),
        (["job.reservation=r2", "job.nodes=1"], "job.reservation=r2: there are: r1, open (scontrol show reservation)"),
        (["job.reservation=open", "job.nodes=5"], "(scontrol show reservation open: NodeCnt=4). Try: job.nodes=4"),
        (["job.reservation=open", "job.nodes=4"], ""),
    ],
)
def test_features_nodes_and_reservations(overrides: list[str], message: str) -> None:
    texts = found(sites.site(), *overrides)
    assert [message in text for text in texts] == ([True] if message else [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["job.account=games"], "the accounts of alice here are: lang, sub, speech (sacctmgr show assoc user=alice)"),
        (
            ["job.account=sub", "job.qos=long", "job.nodes=1", "job.time=1:00:00"],
            "account sub gives: normal (sacctmgr show assoc user=alice format=account,qos)",
        ),
        (
            ["job.qos=long", "job.nodes=1", "job.time=13:00:00"],
            "(sacctmgr: QoS long MaxWall=12:00:00). Try: job.time=12:00:00",
        ),
        (
            ["job.qos=long", "job.time=1:00:00", "job.nodes=2"],
            "job.nodes=2: partition gpu of noctua2 gives 1 node (sacctmgr: QoS long MaxTRES=gres/gpu=6, and this "
            "job takes 4 GPUs of each node). Try: job.nodes=1",
        ),
        (["job.nodes=9"], "(sacctmgr: QoS normal MaxTRESPU=gres/gpu=32, and this job takes 4 GPUs of each node)"),
        (
            ["job.account=sub", "job.nodes=8", "job.time=5-00:00:01"],
            "(sacctmgr: association alice/sub MaxWall=5-00:00:00)",
        ),
        (["job.qos=big", "job.nodes=13"], "(sacctmgr: account lang GrpTRES=node=12). Try: job.nodes=12"),
    ],
)
def test_a_limit_of_accounting(overrides: list[str], message: str) -> None:
    [text] = found(sites.site(accounting=True), *overrides)
    assert message in text


def test_a_qos_may_lift_the_partitions_limits_unless_they_are_enforced() -> None:
    short = partition("MaxTime=7-00:00:00", "MaxTime=1:00:00").replace("MaxNodes=UNLIMITED", "MaxNodes=1")
    big = ["job.qos=big", "job.nodes=2", "job.time=2:00:00"]
    assert found(sites.site(short, accounting=True), *big) == []
    assert len(found(sites.site(short, accounting=True, EnforcePartLimits="ALL"), *big)) == 2


def test_limits_that_accounting_does_not_enforce_do_not_count() -> None:
    site = sites.site(accounting=True, AccountingStorageEnforce="associations")
    assert found(site, "job.nodes=24", "job.qos=long") == []


def test_the_qos_of_a_partition_comes_before_the_jobs() -> None:
    site = sites.site(partition("QoS=N/A", "QoS=part"), accounting=True)
    [text] = found(site, "job.nodes=1")
    assert "gives 64 CPUs (sacctmgr: QoS part of partition gpu MaxTRESPerNode=cpu=64)" in text


def test_a_group_may_describe_less_than_its_site_allows() -> None:
    [text] = found(sites.site(), "cluster.partitions.gpu.max_time=1:00:00", "job.time=2:00:00")
    assert "gives at most 01:00:00 (cluster/noctua2.yaml)" in text


def test_a_part_that_did_not_answer_is_not_checked() -> None:
    site = replace(sites.site(), nodes=None, reservations=None)
    assert found(site, "job.constraint=x", "job.exclude=y", "job.reservation=z") == []


@pytest.mark.parametrize(
    ("site", "runs", "message"),
    [
        (sites.site(), 10_000, ""),
        (
            sites.site(),
            10_001,
            "hpc submit=10001 runs: 10000 more are taken now (scontrol show config: MaxJobCount=10000)",
        ),
        (sites.site(accounting=True), 1, "MaxSubmitJobs=4, and 5 of yours are in the queue). Try: wait for some"),
    ],
)
def test_the_number_of_jobs(site: Site, runs: int, message: str) -> None:
    config = compose(["job=hello", "cluster=noctua2"])
    texts = [str(problem) for problem in submission(config, resolve(config), site, runs)]
    assert [message in text for text in texts] == ([True] if message else [])


def test_hints_are_no_refusals() -> None:
    config = compose(["job=hello", "cluster=noctua2", "job.reservation=open", "job.nodes=4"])
    nodes = "".join(sites.node(n, {"State": "DOWN*"} if n < 1223 else {}) for n in range(1201, 1225))
    site = sites.site(partition("State=UP", "State=DOWN"), nodes, ClusterName="noctua1")
    told = hints(config, resolve(config), site)
    assert ["is up again" in told[0], "2 of those" in told[1], "ends 2026" in told[2], "noctua1" in told[3]] == [
        True
    ] * 4
    assert problems(config, resolve(config), site) == []
