"""The configuration files of an emulated cluster, rendered from its description. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.errors import Refused

if TYPE_CHECKING:  # whoever holds a Cluster has paid for the import; who only asks whether one is up need not
    from hpc.config import Cluster, NodeType, Partition

# Where in the emulation's directory things lie; all of it is given to Slurm as absolute paths.
CONF = Path("etc/slurm.conf")
MUNGE_SOCKET = Path("munge/sock")
DATABASE_SOCKET = Path("mysql/sock")
ACCOUNTS_CONF = "slurmdbd.conf"  # beside slurm.conf, where slurmdbd looks for it

# sockaddr_un.sun_path holds 108 bytes with its NUL. The longest one is a step's:
# spool/<node>/<node>_<job>.<step>, where the batch step is 4294967291.
SOCKET_PATH_LIMIT = 107
_STEP = "_1234567.4294967291"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True)
class Options:
    """How an emulated cluster departs from the described one."""

    nodes: int | None = None  # at most so many of each node type; None: all
    fast: bool = False  # a scheduler and time-outs for impatient people; credential life is never lowered
    preemptible: bool = False  # add a partition whose jobs the default partition's jobs requeue
    node_timeout: int | None = None  # seconds after which a silent node counts as down; None: Slurm's default
    accounting: bool = False  # slurmdbd on a database of its own: sacct and sacctmgr answer, accounts are enforced


@dataclass(frozen=True)
class Site:
    """What the configuration depends on beside the cluster: where, who, which ports, which Slurm."""

    directory: Path
    host: str  # as gethostname() says, without the domain
    user: str
    controller_port: int
    node_port: int  # of the first node; the others follow it
    version: tuple[int, int]  # of Slurm, such as (22, 5)
    accounting_port: int = 0  # of slurmdbd, where there is one


def expand(expression: str) -> list[str]:
    """Slurm's notation of host names in full: ``n[08-10,12],login`` -> n08, n09, n10, n12, login.

    Raises:
        ValueError: if brackets are not closed or a range is none.
    """
    names = []
    for part in re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", expression):
        head, bracket, rest = part.partition("[")
        inside, closed, tail = rest.partition("]")
        if not bracket:
            names.append(part.strip())
            continue
        if not closed:
            raise ValueError(expression)
        for span in inside.split(","):
            low, _, high = span.partition("-")
            numbers = [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
            names += [head.strip() + number + end for number in numbers for end in (expand(tail) if tail else [""])]
    if expression.count("[") != expression.count("]") or not names:
        raise ValueError(expression)
    return names


def compress(names: Iterable[str]) -> str:
    """The inverse of ``expand``, order kept: n08, n09, n10, login -> ``n[08-10],login``."""
    groups: list[tuple[str, list[list[str]]]] = []  # prefix, [first, last] of each run of numbers
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)", name)
        prefix, number = match.groups() if match else (name, "")
        runs = groups[-1][1] if groups and groups[-1][0] == prefix and number and groups[-1][1] else None
        if runs is None:
            groups.append((prefix, [[number, number]] if number else []))
        elif number == str(int(runs[-1][1]) + 1).zfill(len(runs[-1][1])):
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = []
    for prefix, runs in groups:
        spans = [first if first == last else f"{first}-{last}" for first, last in runs]
        single = len(spans) == 1 and "-" not in spans[0]
        parts.append(prefix + (spans[0] if single else f"[{','.join(spans)}]" if spans else ""))
    return ",".join(parts)


def preemptible_partition(cluster: Cluster) -> str:
    """The name of the partition that ``--preemptible`` adds."""
    return f"{cluster.default_partition}_preempt"


def described(cluster: Cluster, options: Options) -> Cluster:
    """The cluster as it is emulated: fewer nodes where asked, and the preemptible partition.

    Raises:
        Refused: if it cannot be emulated.
    """
    _check(cluster)
    most = max(node_type.count for node_type in cluster.node_types.values())
    if options.nodes is not None and not 1 <= options.nodes <= most:
        raise Refused(f"--nodes {options.nodes}: {cluster.name} has {most} nodes. Allowed: 1 to {most}")
    node_types = {}
    for name, node_type in cluster.node_types.items():
        names = expand(node_type.names)[: options.nodes]
        node_types[name] = replace(node_type, count=len(names), names=compress(names))
    partitions = dict(cluster.partitions)
    if options.preemptible:
        default = cluster.partitions[cluster.default_partition]
        partitions[preemptible_partition(cluster)] = replace(default, preemptible=True)
    return replace(cluster, node_types=node_types, partitions=partitions)


def _check(cluster: Cluster) -> None:
    if cluster.launcher.name != "slurm":
        raise Refused(
            f"cluster={cluster.name} has launcher={cluster.launcher.name}: there is no Slurm to emulate, "
            f"hpc submit cluster={cluster.name} needs none. Try: hpc emulate up cluster=noctua2"
        )
    if not _NAME.fullmatch(cluster.name):
        raise Refused(f"cluster.name={cluster.name}: allowed: up to 40 letters, digits, '_', '-' and '.'")
    if cluster.default_partition not in cluster.partitions:
        raise Refused(
            f"cluster.default_partition={cluster.default_partition}: allowed: {', '.join(cluster.partitions)}"
        )
    for name, partition in cluster.partitions.items():
        if partition.node_type not in cluster.node_types:
            raise Refused(
                f"cluster.partitions.{name}.node_type={partition.node_type}: allowed: {', '.join(cluster.node_types)}"
            )
    seen: set[str] = set()
    for name, node_type in cluster.node_types.items():
        where = f"cluster.node_types.{name}"
        try:
            names = expand(node_type.names)
        except ValueError:
            raise Refused(f"{where}.names={node_type.names}: allowed: Slurm's notation, such as n[001-024]") from None
        if len(names) != node_type.count:
            raise Refused(f"{where}.count={node_type.count}: {where}.names={node_type.names} are {len(names)}")
        if seen & set(names):
            raise Refused(f"{where}.names={node_type.names}: {min(seen & set(names))} is in two node types")
        seen |= set(names)
        if node_type.sockets < 1 or node_type.cores < 1 or node_type.cores % node_type.sockets:
            raise Refused(f"{where}.cores={node_type.cores}: must be a multiple of sockets={node_type.sockets}")


def node_names(cluster: Cluster) -> list[str]:
    """All nodes, in the order in which they get their ports."""
    return [name for node_type in cluster.node_types.values() for name in expand(node_type.names)]


def longest_socket(directory: Path, cluster: Cluster) -> int:
    """Bytes of the longest Unix socket path that this emulation would need."""
    node = max(node_names(cluster), key=len)
    return max(len(bytes(path)) for path in (directory / "spool" / node / (node + _STEP), directory / DATABASE_SOCKET))


def render(cluster: Cluster, options: Options, site: Site) -> dict[str, str]:
    """Every configuration file of the emulation, by its name in ``etc/``.

    Args:
        cluster: as ``described`` gives it.
    """
    files = {
        "slurm.conf": _slurm_conf(cluster, options, site),
        "gres.conf": _gres_conf(cluster, site),
        # Every job tracks its processes without cgroups, which only root could use. 22.05 cannot switch them off,
        # but its cgroup/v1 touches nothing until it is used, where the default fails on a cgroup v2 machine.
        "cgroup.conf": f"CgroupPlugin={'disabled' if site.version >= (23, 2) else 'cgroup/v1'}\n",
    }
    if options.accounting:
        files[ACCOUNTS_CONF] = _slurmdbd_conf(site)
    return files


def _slurm_conf(cluster: Cluster, options: Options, site: Site) -> str:
    directory = site.directory
    settings: dict[str, object] = {
        "ClusterName": cluster.slurm_name or cluster.name,
        "SlurmctldHost": f"{site.host}(127.0.0.1)",
        "SlurmUser": site.user,
        "SlurmdUser": site.user,
        "SlurmctldPort": site.controller_port,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={directory / MUNGE_SOCKET}",
        "StateSaveLocation": directory / "state",
        "SlurmdSpoolDir": directory / "spool/%n",
        "SlurmctldPidFile": directory / "run/slurmctld.pid",
        "SlurmdPidFile": directory / "run/slurmd-%n.pid",
        "SlurmctldLogFile": directory / "log/slurmctld.log",
        "SlurmdLogFile": directory / "log/slurmd-%n.log",
        "MailProg": "/bin/true",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "GresTypes": "gpu",
        "ReturnToService": 2,
        # Straight to every node: relaying through others is for networks, and 24.11 would begin at 16 nodes.
        "TreeWidth": max(50, len(node_names(cluster))),
        # The nodes have the described cores and memory, whatever this machine has.
        "SlurmdParameters": "config_overrides",
        "MaxArraySize": cluster.max_array_size,
        "MaxJobCount": max(10_000, cluster.max_array_size),
    }
    if any(partition.preemptible for partition in cluster.partitions.values()):
        settings |= {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}
    if options.accounting:
        settings |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": site.accounting_port,
            "AccountingStoragePass": directory / MUNGE_SOCKET,  # that the controller finds this munge there, too
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStorageEnforce": "associations,limits,qos",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=2",  # seconds; a rehearsal is over before Slurm's 30
        }
    if options.fast:
        settings |= {"SchedulerParameters": "sched_interval=1,bf_interval=1", "KillWait": 5, "SlurmdTimeout": 20}
    if options.node_timeout is not None:
        settings["SlurmdTimeout"] = options.node_timeout
    lines = [f"# EMULATED: {cluster.name}, on this machine only"]
    lines += [f"{key}={value}" for key, value in settings.items()]
    port = site.node_port
    for node_type in cluster.node_types.values():
        lines.append(_node_line(node_type, port))
        port += node_type.count
    tiers = any(partition.preemptible for partition in cluster.partitions.values())
    for name, partition in cluster.partitions.items():
        lines.append(_partition_line(name, partition, cluster, tiers))
    return "\n".join(lines) + "\n"


def _slurmdbd_conf(site: Site) -> str:
    directory = site.directory
    settings = {
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": site.accounting_port,
        "SlurmUser": site.user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={directory / MUNGE_SOCKET}",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",  # by the socket that its environment names; the database has no port
        "StorageUser": site.user,
        "StorageLoc": "slurm",
        "LogFile": directory / "log/slurmdbd.log",
        "PidFile": directory / "run/slurmdbd.pid",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _node_line(node_type: NodeType, port: int) -> str:
    fields: dict[str, object] = {
        "NodeName": node_type.names,
        "NodeHostname": "localhost",
        "NodeAddr": "127.0.0.1",
        "Port": f"[{port}-{port + node_type.count - 1}]" if node_type.count > 1 else port,
        "CPUs": node_type.cores,
        "Boards": 1,
        "SocketsPerBoard": node_type.sockets,
        "CoresPerSocket": node_type.cores // node_type.sockets,
        "ThreadsPerCore": 1,
        "RealMemory": node_type.memory_gb * 1024,  # MiB
    }
    if node_type.gpus:
        fields["Gres"] = ":".join(filter(None, ("gpu", node_type.gpu_type, str(node_type.gpus))))
    if node_type.features:
        fields["Feature"] = ",".join(node_type.features)
    return " ".join(f"{key}={value}" for key, value in fields.items())


def _partition_line(name: str, partition: Partition, cluster: Cluster, tiers: bool) -> str:
    fields: dict[str, object] = {
        "PartitionName": name,
        "Nodes": cluster.node_types[partition.node_type].names,
        "Default": "YES" if name == cluster.default_partition else "NO",
        "MaxTime": partition.max_time,
    }
    if cluster.exclusive:
        fields["OverSubscribe"] = "EXCLUSIVE"
    if partition.default_time is not None:
        fields["DefaultTime"] = partition.default_time
    if partition.max_nodes is not None:
        fields["MaxNodes"] = partition.max_nodes
    if tiers:
        fields |= (
            {"PriorityTier": 1, "PreemptMode": "REQUEUE"}
            if partition.preemptible
            else {"PriorityTier": 10, "PreemptMode": "OFF"}
        )
    return " ".join(f"{key}={value}" for key, value in fields.items())


def _gres_conf(cluster: Cluster, site: Site) -> str:
    """GPUs as links to /dev/null: only for a character device does Slurm set CUDA_VISIBLE_DEVICES."""
    lines = ["AutoDetect=off"]
    for node_type in cluster.node_types.values():
        if node_type.gpus:
            kind = f" Type={node_type.gpu_type}" if node_type.gpu_type else ""
            files = "nvidia0" if node_type.gpus == 1 else f"nvidia[0-{node_type.gpus - 1}]"
            lines.append(f"NodeName={node_type.names} Name=gpu{kind} File={site.directory / 'dev' / files}")
    return "\n".join(lines) + "\n"
