"""The terms on which a site takes a request: which account, QoS and nodes it comes to, whose limits count. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from hpc.config import Config, GpuRequest
from hpc.request import Request, clock
from hpc.site import Association, Limits, Nodes, Partition, Qos, Site

GPU = "gres/gpu"
_UNITS = {"cpu": "CPUs", "mem": "MiB", GPU: "GPUs"}


@dataclass(frozen=True)
class Limit:
    """At most ``value``, and who says so."""

    value: float
    source: str


def tightest(limits: Iterable[Limit]) -> Limit:
    """The lowest limit; of equal ones the first."""
    return min(limits, key=lambda limit: limit.value)


class Terms:
    """One request at one site, looked up once."""

    def __init__(self, config: Config, request: Request, site: Site) -> None:
        job, cluster = config.job, config.cluster
        self.config, self.request, self.site = config, request, site
        self.partition: Partition | None = site.partitions.get(request.partition)
        self.account = job.account or cluster.account
        self.reservation = job.reservation or cluster.reservation
        self.qos_name = job.qos or cluster.qos
        self.association: Association | None = None
        if site.associations:
            self.account = self.account or site.associations[0].default_account
            self.association = _association(site, self.account, request.partition)
        if self.qos_name is None and self.association is not None:
            self.qos_name = self.association.default_qos or _default(self.association.qos)
        self.nodes = site.nodes_of(request.partition)
        self.left = _without(self.nodes, excluded(config))
        self.featured = [each for each in self.left if required(config) <= set(each.features)]

    @property
    def where(self) -> str:
        return where(self.config, self.request)

    @property
    def qos(self) -> Qos | None:
        return (self.site.qos or {}).get(self.qos_name or "")

    def source(self, key: str, text: str | float) -> str:
        """A limit of the partition, as a person would look it up."""
        return f"scontrol show partition {self.request.partition}: {key}={text}"

    def lifted(self, flag: str) -> bool:
        """Whether the job's QoS lifts a limit of the partition. Not where the partition's limits are enforced."""
        if self.qos is None or self.site.config.get("EnforcePartLimits", "NO") != "NO":
            return False
        return flag in self.qos.flags

    # -- what accounting limits ------------------------------------------------------------------------------

    def _of_qos(self) -> list[tuple[str, Limits]]:
        """The partition's QoS comes before the job's, unless the job's says otherwise."""
        own = [(f"QoS {self.qos.name}", self.qos.limits)] if self.qos else []
        name = self.partition.qos if self.partition else None
        other = (self.site.qos or {}).get(name or "")
        shared = [(f"QoS {name} of partition {self.request.partition}", other.limits)] if other else []
        return own + shared if self.qos is not None and "OverPartQOS" in self.qos.flags else shared + own

    def _of_accounts(self) -> Iterator[tuple[str, Limits]]:
        if self.association is None:
            return
        yield f"association {self.site.user}/{self.association.account}", self.association.limits
        for name in lineage(self.site, self.association.account):
            yield f"account {name}", self.site.accounts[name].limits

    def set_by(self, field: str, key: str | None = None) -> Iterator[tuple[str, float]]:
        """Who limits something, and to what. Where a QoS does, what accounts say does not count.

        Nobody where accounting does not enforce limits.
        """
        if not self.site.enforces("limits"):
            return

        def value(limits: Limits) -> float | None:
            found = getattr(limits, field)
            return found.get(key) if key is not None else found

        for who, limits in self._of_qos():
            if (found := value(limits)) is not None:
                yield who, found
                return
        for who, limits in self._of_accounts():
            if (found := value(limits)) is not None:
                yield who, found

    def accounting(self, field: str, shown: str, key: str | None = None) -> Iterator[Limit]:
        """As ``set_by``, with where it can be looked up: sacctmgr's name of the column is ``shown``."""
        for who, value in self.set_by(field, key):
            text = clock(value) if field == "max_wall" else f"{value:g}"
            yield Limit(value, f"sacctmgr: {who} {shown}={f'{key}=' if key else ''}{text}")

    def nodes_by_tres(self) -> Iterator[Limit]:
        """How many nodes of this job accounting's limits of nodes, CPUs, memory and GPUs come to."""
        kinds = {"max_tres": "MaxTRES", "max_tres_per_user": "MaxTRESPU", "max_tres_per_account": "MaxTRESPA"}
        for tres, amount in self.per_node().items():
            for field, shown in {**kinds, "grp_tres": "GrpTRES"}.items():
                for limit in self.accounting(field, shown, tres):
                    unit = _UNITS.get(tres.partition(":")[0])
                    share = f", and this job takes {amount:g} {unit} of each node" if unit else ""
                    yield Limit(limit.value // amount, limit.source + share)

    def per_node(self) -> Mapping[str, float]:
        """What the job takes of each node, by TRES."""
        request, cluster = self.request, self.config.cluster
        cpus, memory = request.ranks_per_node * request.cpus_per_rank, (self.config.job.memory_gb or 0) * 1024
        if self.featured:
            whole = cluster.exclusive or (self.partition is not None and self.partition.exclusive)
            cpus = min(each.cpus for each in self.featured) if whole else cpus
            memory = memory or min(each.memory for each in self.featured)
        found: dict[str, float] = {"node": 1, "cpu": cpus, "mem": memory or request.node.memory_gb * 1024}
        if request.gpus_per_node and cluster.gpu_request is not GpuRequest.none:
            found[GPU] = request.gpus_per_node
            if request.node.gpu_type:
                found[f"{GPU}:{request.node.gpu_type}"] = request.gpus_per_node
        return {tres: amount for tres, amount in found.items() if amount > 0}

    def submitted(self) -> Iterator[tuple[Limit, int]]:
        """How many jobs may wait or run, each with how many do."""
        queued = self.site.queued
        if queued is None:
            return
        for field, shown in (("max_submit", "MaxSubmitJobs"), ("grp_submit", "GrpSubmitJobs")):
            for who, value in self.set_by(field):
                kind, name = who.split()[0], who.split()[1].rpartition("/")[2]
                counted = (n for (account, qos), n in queued.items() if name == (qos if kind == "QoS" else account))
                yield Limit(value, f"sacctmgr: {who} {shown}={value:g}"), sum(counted)


def where(config: Config, request: Request) -> str:
    """The partition, as messages name it."""
    return f"partition {request.partition} of {config.cluster.name}"


def lineage(site: Site, account: str | None) -> list[str]:
    """An account and those above it, nearest first."""
    found: list[str] = []
    while (known := site.accounts.get(account or "")) is not None and known.name not in found:
        found.append(known.name)
        account = known.parent
    return found


def excluded(config: Config) -> set[str]:
    """Nodes that the request excludes; none where they stand in a file or cannot be read."""
    given = config.job.exclude
    if not given or "/" in given:
        return set()
    from hpc.emulate.slurm_conf import expand

    try:
        return set(expand(given))
    except ValueError:
        return set()


def features(constraint: str) -> list[str]:
    """The names in a constraint such as ``a100&!old``, ``[rack1|rack2]``, ``ib*4``."""
    parts = re.split(r"[&|,()\[\]]", constraint)
    return [name for part in parts if (name := re.sub(r"\*\d+$", "", part.strip().lstrip("!")))]


def required(config: Config) -> set[str]:
    """Features that each node of the job must have; of a constraint with choices and counts none for certain."""
    given = config.job.constraint
    return set(features(given)) if given and not re.search(r"[|()\[\]*!]", given) else set()


def size(groups: Iterable[Nodes]) -> int:
    return sum(len(group.names) for group in groups)


def among(values: Iterable[tuple[int, int]], needed: int) -> int:
    """The most that each of ``needed`` nodes has, of (value, number of nodes) pairs."""
    for value, number in sorted(values, reverse=True):
        needed -= number
        if needed <= 0:
            return value
    return 0


def _without(groups: list[Nodes], names: set[str]) -> list[Nodes]:
    if not names:
        return groups
    left = (replace(group, names=tuple(name for name in group.names if name not in names)) for group in groups)
    return [group for group in left if group.names]


def _association(site: Site, account: str | None, partition: str) -> Association | None:
    mine = [a for a in site.associations or () if a.account == account and a.partition in ("", partition)]
    return max(mine, key=lambda each: each.partition, default=None)  # the one for this partition before that for all


def _default(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else "normal" if "normal" in names else None
