"""What Slurm itself says of a site, as one value. What a program did not answer is None, and proves nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from hpc.site_text import count, version, words


@dataclass(frozen=True)
class Partition:
    """A line of ``scontrol show partition``. None: no limit; an empty tuple: everybody."""

    name: str
    state: str = "UP"
    default: bool = False
    max_time: float = math.inf  # seconds
    default_time: float | None = None  # seconds
    min_nodes: int = 0
    max_nodes: int | None = None
    total_nodes: int = 0
    max_memory: int | None = None  # MiB per node
    max_memory_per_cpu: int | None = None  # MiB
    max_cpus: int | None = None  # per node
    exclusive: bool = False
    needs_reservation: bool = False
    qos: str | None = None
    allow_accounts: tuple[str, ...] = ()
    deny_accounts: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] = ()
    deny_qos: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ()
    preempt_mode: str = "OFF"
    tier: int = 1


@dataclass(frozen=True)
class Nodes:
    """Nodes that are alike."""

    names: tuple[str, ...]
    cpus: int  # that jobs may have, threads counted
    cores: int
    sockets: int
    memory: int  # MiB
    gpus: tuple[tuple[str, int], ...]  # type, which may be "", and count
    features: tuple[str, ...]
    partitions: tuple[str, ...]

    def gpus_of(self, kind: str) -> int:
        """How many GPUs of a type a node has; "" is any."""
        return sum(count for name, count in self.gpus if kind in ("", name))


@dataclass(frozen=True)
class Limits:
    """What accounting limits, of a QoS or of an association. Amounts by TRES: node, cpu, mem (MiB), gres/gpu."""

    max_wall: float | None = None  # seconds of a job
    max_tres: Mapping[str, float] = field(default_factory=dict)  # of a job
    max_tres_per_node: Mapping[str, float] = field(default_factory=dict)
    max_tres_per_user: Mapping[str, float] = field(default_factory=dict)
    max_tres_per_account: Mapping[str, float] = field(default_factory=dict)
    grp_tres: Mapping[str, float] = field(default_factory=dict)  # of all jobs together
    max_submit: int | None = None  # jobs of a user that wait or run
    max_submit_per_account: int | None = None
    grp_submit: int | None = None


@dataclass(frozen=True)
class Qos:
    """A row of ``sacctmgr show qos``."""

    name: str
    flags: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True)
class Association:
    """What a user may book on: an account, on one partition or on all. Limits as inherited from the accounts above."""

    account: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str | None
    default_account: str | None  # the user's
    limits: Limits


@dataclass(frozen=True)
class Account:
    """An account, whose own Grp limits hold for all below it."""

    name: str
    parent: str | None
    limits: Limits


@dataclass(frozen=True)
class Reservation:
    """A line of ``scontrol show reservation``. An empty tuple: nobody is named."""

    name: str
    end: str  # as Slurm prints it, local time
    nodes: int
    users: tuple[str, ...]
    accounts: tuple[str, ...]
    groups: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """A site as its Slurm describes it to one user."""

    config: Mapping[str, str]
    partitions: Mapping[str, Partition]
    user: str
    groups: tuple[str, ...] = ()
    nodes: tuple[Nodes, ...] | None = None
    down: frozenset[str] = frozenset()  # nodes that take no jobs now
    associations: tuple[Association, ...] | None = None  # the user's on this cluster
    accounts: Mapping[str, Account] = field(default_factory=dict)
    qos: Mapping[str, Qos] | None = None
    reservations: Mapping[str, Reservation] | None = None
    queued: Counter[tuple[str, str]] | None = None  # jobs of the user that wait or run, by account and QoS

    @property
    def name(self) -> str:
        return self.config.get("ClusterName", "")

    @property
    def version(self) -> tuple[int, int]:
        return version(self.config.get("SLURM_VERSION", ""))

    @property
    def max_array_size(self) -> int | None:
        return count(self.config.get("MaxArraySize", ""))

    @property
    def max_jobs(self) -> int | None:
        """Of all users together, waiting or running."""
        return count(self.config.get("MaxJobCount", ""))

    @property
    def requeue(self) -> bool:
        return self.config.get("JobRequeue") != "0"

    def enforces(self, what: str) -> bool:
        """Whether accounting enforces "associations", "limits" or "qos"."""
        return what in words(self.config.get("AccountingStorageEnforce", "").lower())

    def nodes_of(self, partition: str) -> list[Nodes]:
        return [each for each in self.nodes or () if partition in each.partitions]
