"""From what Slurm's programs printed to the parts of a ``Site``. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from hpc.site import Account, Association, Limits, Nodes, Partition, Qos, Reservation
from hpc.site_text import amounts, count, duration, gpus, pairs, rows, words

_UNAVAILABLE = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "FUTURE", "INVAL", "INVALID_REG", "UNKNOWN"}


def partition(line: str) -> Partition:
    """One line of ``scontrol show partition -o``."""
    get = pairs(line).get
    return Partition(
        name=get("PartitionName", ""),
        state=get("State", "UP"),
        default=get("Default") == "YES",
        max_time=duration(get("MaxTime", "")) or math.inf,
        default_time=duration(get("DefaultTime", "")),
        min_nodes=count(get("MinNodes", "")) or 0,
        max_nodes=count(get("MaxNodes", "")),
        total_nodes=count(get("TotalNodes", "")) or 0,
        max_memory=count(get("MaxMemPerNode", "")),
        max_memory_per_cpu=count(get("MaxMemPerCPU", "")),
        max_cpus=count(get("MaxCPUsPerNode", "")),
        exclusive=get("OverSubscribe") == "EXCLUSIVE",
        needs_reservation=get("ReqResv") == "YES",
        qos=next(iter(words(get("QoS", ""))), None),
        allow_accounts=words(get("AllowAccounts", "")),
        deny_accounts=words(get("DenyAccounts", "")),
        allow_qos=words(get("AllowQos", "")),
        deny_qos=words(get("DenyQos", "")),
        allow_groups=words(get("AllowGroups", "")),
        preempt_mode=get("PreemptMode", "OFF"),
        tier=count(get("PriorityTier", "")) or 0,
    )


def partitions(text: str) -> dict[str, Partition]:
    """What ``scontrol show partition -o`` printed, in its order."""
    found = (partition(line) for line in text.splitlines() if line.startswith("PartitionName="))
    return {each.name: each for each in found}


def nodes(text: str) -> tuple[tuple[Nodes, ...], frozenset[str]]:
    """What ``scontrol show node -o`` printed: nodes that are alike together, and the names of those that are down."""
    alike: dict[Nodes, list[str]] = {}
    down = set()
    for line in text.splitlines():
        get = pairs(line).get
        name = get("NodeName")
        if not name:
            continue
        sockets = count(get("Sockets", "")) or 1
        all_cpus = count(get("CPUTot", "")) or 1
        kind = Nodes(
            names=(),
            cpus=count(get("CPUEfctv", "")) or all_cpus,  # less than all where some are kept for the system
            cores=sockets * (count(get("CoresPerSocket", "")) or all_cpus),
            sockets=sockets,
            memory=count(get("RealMemory", "")) or 0,
            gpus=gpus(get("Gres", "")),
            features=words(get("AvailableFeatures", "")),
            partitions=words(get("Partitions", "")),
        )
        alike.setdefault(kind, []).append(name)
        if _UNAVAILABLE & set(re.findall(r"[A-Z_]+", get("State", ""))):
            down.add(name)
    return tuple(replace(kind, names=tuple(names)) for kind, names in alike.items()), frozenset(down)


def reservations(text: str) -> dict[str, Reservation]:
    """What ``scontrol show reservation -o`` printed."""
    found = {}
    for line in text.splitlines():
        get = pairs(line).get
        if name := get("ReservationName"):
            found[name] = Reservation(
                name,
                get("EndTime", ""),
                count(get("NodeCnt", "")) or 0,
                words(get("Users", "")),
                words(get("Accounts", "")),
                words(get("Groups", "")),
                words(get("Flags", "")),
            )
    return found


# sacctmgr's names of the columns that are asked for.
USER_COLUMNS = (
    *("Cluster", "Account", "Partition", "DefaultAccount", "DefaultQOS", "QOS"),
    *("MaxWall", "MaxTRES", "MaxTRESPerNode", "MaxSubmitJobs", "GrpTRES", "GrpSubmitJobs"),
)
ACCOUNT_COLUMNS = ("Cluster", "Account", "ParentName", "GrpTRES", "GrpSubmitJobs")
QOS_COLUMNS = (
    *("Name", "Flags", "MaxWall", "MaxTRES", "MaxTRESPerNode", "MaxTRESPU", "MaxTRESPA"),
    *("MaxSubmitPU", "MaxSubmitPA", "GrpTRES", "GrpSubmit"),
)


def _limits(row: Mapping[str, str]) -> Limits:
    def first(*names: str) -> str:
        return next((row[name] for name in names if row.get(name)), "")

    return Limits(
        max_wall=duration(first("MaxWall")),
        max_tres=amounts(first("MaxTRES")),
        max_tres_per_node=amounts(first("MaxTRESPerNode")),
        max_tres_per_user=amounts(first("MaxTRESPU")),
        max_tres_per_account=amounts(first("MaxTRESPA")),
        grp_tres=amounts(first("GrpTRES")),
        max_submit=count(first("MaxSubmitJobs", "MaxSubmitPU")),
        max_submit_per_account=count(first("MaxSubmitPA")),
        grp_submit=count(first("GrpSubmitJobs", "GrpSubmit")),
    )


def associations(text: str, cluster: str) -> tuple[Association, ...]:
    """The user's associations on a cluster, as ``sacctmgr show user withassoc`` printed them."""
    return tuple(
        Association(
            account=row["Account"],
            partition=row["Partition"],
            qos=words(row["QOS"]),
            default_qos=row["DefaultQOS"] or None,
            default_account=row["DefaultAccount"] or None,
            limits=_limits(row),
        )
        for row in rows(text, USER_COLUMNS)
        if row["Cluster"].lower() == cluster.lower() and row["Account"]
    )


def accounts(text: str, cluster: str) -> dict[str, Account]:
    """The accounts of a cluster, as ``sacctmgr show assoc user=`` printed them."""
    mine = [row for row in rows(text, ACCOUNT_COLUMNS) if row["Cluster"].lower() == cluster.lower()]
    return {row["Account"]: Account(row["Account"], row["ParentName"] or None, _limits(row)) for row in mine}


def all_qos(text: str) -> dict[str, Qos]:
    """What ``sacctmgr show qos`` printed."""
    return {row["Name"]: Qos(row["Name"], words(row["Flags"]), _limits(row)) for row in rows(text, QOS_COLUMNS)}


def queued(text: str) -> Counter[tuple[str, str]]:
    """Jobs by account and QoS, as ``squeue --array -o "%a|%q"`` printed them."""
    return Counter((account, qos) for account, bar, qos in (line.partition("|") for line in text.splitlines()) if bar)
