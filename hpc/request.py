"""What a configuration asks of a cluster, every default filled in: nodes, ranks, cores, time. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hpc.config import CommandJob, Config, NodeType, Partition
from hpc.errors import Refused

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def seconds(text: str) -> float:
    """Slurm's notation of a time limit in seconds: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS, UNLIMITED.

    Raises:
        ValueError: for anything else.
    """
    if text.strip().upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise ValueError(text)
    days, *rest = match.groups()
    numbers = [int(n) for n in rest if n is not None]
    if days is not None:
        units = (3600, 60, 1)
        return int(days) * 86400 + sum(n * u for n, u in zip(numbers, units, strict=False))
    units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    return sum(n * u for n, u in zip(numbers, units, strict=True))


def clock(duration: float) -> str:
    """Seconds in the notation that Slurm itself prints: D-HH:MM:SS or HH:MM:SS."""
    if math.isinf(duration):
        return "UNLIMITED"
    minutes, second = divmod(round(duration), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days}-{text}" if days else text


@dataclass(frozen=True)
class Request:
    """One job, as asked of the scheduler."""

    partition: str
    limits: Partition
    node: NodeType
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int
    time: float  # seconds; inf where there is no limit
    grace: int  # seconds
    memory_gb: int  # of a node, that the run may have
    runs_per_node: int = 1  # of a sweep
    processes_per_rank: int = 1  # that compute: more than one where a rank is a program that starts them itself

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


def resolve(config: Config) -> Request:
    """Fill in what the request leaves to the cluster.

    Raises:
        Refused: if the partition is unknown or a time cannot be read.
    """
    cluster, job = config.cluster, config.job
    name = job.partition or cluster.default_partition
    if name not in cluster.partitions:
        raise Refused(
            f"job.partition={name}: cluster {cluster.name} has no such partition. Allowed: "
            f"{', '.join(cluster.partitions)}"
        )
    limits = cluster.partitions[name]
    if limits.node_type not in cluster.node_types:
        raise Refused(
            f"cluster.partitions.{name}.node_type={limits.node_type}: allowed: {', '.join(cluster.node_types)}"
        )
    node = cluster.node_types[limits.node_type]
    # Runs share nodes where Slurm gives them out. Without it they come one after the other.
    runs = 1 if job.runs_per_node is None or cluster.launcher.name != "slurm" else job.runs_per_node
    share = max(1, runs)
    ranks = job.ranks_per_node
    if ranks is None and isinstance(job, CommandJob):
        ranks = 1
    if ranks is None:
        ranks = node.gpus // share or (1 if cluster.launcher.name == "slurm" else node.cores)
    try:
        seconds(limits.max_time)
    except ValueError:
        raise Refused(
            f"cluster.partitions.{name}.max_time={limits.max_time}: no time that Slurm can read. Allowed: MM, MM:SS, "
            "HH:MM:SS, D-HH:MM:SS, UNLIMITED"
        ) from None
    asked = job.time if job.time is not None else (limits.default_time or limits.max_time)
    try:
        time = seconds(asked)
    except ValueError:
        raise Refused(
            f"job.time={asked}: no time that Slurm can read. Allowed: MM, MM:SS, HH:MM:SS, D-HH:MM:SS. "
            "Try: job.time=2-00:00:00"
        ) from None
    gpus = job.gpus_per_node
    if gpus is None:
        whole = cluster.exclusive or _starts_its_own(config)
        gpus = node.gpus // share if whole else min(node.gpus, ranks)
    return Request(
        partition=name,
        limits=limits,
        node=node,
        nodes=job.nodes if job.nodes is not None else _nodes(node, limits, runs),
        ranks_per_node=ranks,
        gpus_per_node=gpus,
        cpus_per_rank=job.cpus_per_rank or max(1, node.cores // share // max(1, ranks)),
        time=time,
        grace=job.grace,
        memory_gb=job.memory_gb or node.memory_gb // share,
        runs_per_node=runs,
        processes_per_rank=max(1, gpus) if _starts_its_own(config) else 1,
    )


def _nodes(node: NodeType, limits: Partition, runs: int) -> int:
    return 1 if runs > 1 else min(node.count, limits.max_nodes or node.count)


def _starts_its_own(config: Config) -> bool:
    """Whether a rank is a program that starts a process for each GPU of its node."""
    return isinstance(config.job, CommandJob) and config.job.ranks_per_node is None
