"""Judging a site: each finding says what was found, whether it will do, and what to do about it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hpc.config import Cluster, GpuRequest, Host, Launcher
from hpc.quota import NEARLY, uses
from hpc.request import clock, seconds
from hpc.site import Site
from hpc.terms import size

NEEDED = ("sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
OLDEST = (22, 5)  # Slurm's version that all of this was tried on
SLOW_ANSWER = 1.0  # seconds of scontrol
SLOW_WRITE = 0.05  # seconds to write, sync and rename a small file; a run does so a few times a minute
SKEW = 5.0  # seconds between two clocks; munge itself gives up at 300
GIB = 2**30

# File systems that other nodes see, and those that end with this machine's memory.
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "fhgfs", "ceph", "weka", "panfs", "pvfs", "orangefs", "gluster", "cifs")
SHARED += ("smb", "afs", "9p", "virtiofs", "gfs2", "ocfs2", "dvs", "quobyte", "daos", "vast", "sshfs")
MEMORY = ("tmpfs", "ramfs", "devtmpfs")


class Level(Enum):
    """How a finding is judged."""

    ok = "ok"
    warn = "warn"  # works, with something to know
    bad = "bad"  # runs would fail or be lost


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Finding:
    return Finding(Level.ok, what, found)


def warn(what: str, found: str, advice: str) -> Finding:
    return Finding(Level.warn, what, found, advice)


def bad(what: str, found: str, advice: str) -> Finding:
    return Finding(Level.bad, what, found, advice)


# -- Slurm ---------------------------------------------------------------------------------------------------


def programs(there: Mapping[str, bool]) -> Finding:
    """Slurm's programs, by whether they are installed here."""
    missing = [name for name in NEEDED if not there.get(name)]
    if missing:
        return bad("programs", f"not here: {', '.join(missing)}", "call this on a login node, or: module load slurm")
    return ok("programs", ", ".join(name for name, here in there.items() if here))


def slurm(site: Site, answered: float | None, cluster: Cluster, clock_skew: float | None) -> Iterator[Finding]:
    """What the controller says of itself."""
    text = f"Slurm {site.config.get('SLURM_VERSION')}, answered in {answered or 0:.2f} s"
    if site.version < OLDEST:
        yield warn("controller", text, "older than 22.05, on which this was tried: rehearse with hpc doctor --job")
    elif answered is not None and answered > SLOW_ANSWER:
        yield warn("controller", text, "hpc submit waits for it; ask the site whether slurmctld is overloaded")
    else:
        yield ok("controller", text)
    known = cluster.slurm_name or cluster.name
    if site.name.lower() == known.lower():
        yield ok("cluster name", site.name)
    else:
        yield warn("cluster name", f"{site.name}, described as {known}", f"slurm_name: {site.name} in the description")
    if clock_skew is not None:
        yield of_clock("controller's clock", clock_skew)
    yield from _requeue(site)
    yield _preemption(site)
    yield _array(site, cluster)
    yield _accounting(site)


def of_clock(what: str, skew: float) -> Finding:
    """Two clocks, ``skew`` seconds apart."""
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's" if abs(skew) >= 1 else "agrees"
    if abs(skew) < SKEW:
        return ok(what, text)
    return warn(what, text, "times in logs and heartbeats will not fit together: ask the site about its time service")


def _requeue(site: Site) -> Iterator[Finding]:
    if site.requeue:
        yield ok("requeue", "allowed (JobRequeue=1)")
    else:
        yield warn(
            "requeue", "off by default (JobRequeue=0)", "where it is forbidden, a successor job follows on a time limit"
        )


def _preemption(site: Site) -> Finding:
    mode, wait = site.config.get("PreemptMode", "OFF"), site.config.get("KillWait", "")
    user_signal = "preempt_send_user_signal" in site.config.get("SlurmctldParameters", "")
    if mode == "OFF":
        return ok("preemption", f"off; KillWait {wait}")
    text = f"{mode}; KillWait {wait}" + (", USR2 comes first" if user_signal else "")
    if mode.startswith("CANCEL"):
        return warn(
            "preemption", text, "a preempted job is ended and not requeued: use partitions that are not preempted"
        )
    return ok("preemption", text)


def _array(site: Site, cluster: Cluster) -> Finding:
    most = site.max_array_size or 0
    text = f"{most}, described as {cluster.max_array_size}"
    if cluster.max_array_size > most:
        return warn(
            "MaxArraySize", text, f"max_array_size: {most} in the description; sweeps take the lower one anyway"
        )
    return ok("MaxArraySize", text)


def _accounting(site: Site) -> Finding:
    enforced = site.config.get("AccountingStorageEnforce", "none")
    if not site.config.get("AccountingStorageType", "").endswith("slurmdbd"):
        return ok("accounting", "none: sacct has no answers, and no account is checked")
    if site.associations is None:
        return warn(
            "accounting", "sacctmgr does not answer", "limits of accounts and QoS are not checked before sbatch"
        )
    mine = ", ".join(dict.fromkeys(each.account for each in site.associations)) or "none"
    text = f"accounts of {site.user}: {mine}; enforced: {enforced}"
    if not site.associations and site.enforces("associations"):
        return bad("accounting", text, f"ask the site for an account: sacctmgr show assoc user={site.user} is empty")
    return ok("accounting", text)


def partitions(site: Site, cluster: Cluster) -> Iterator[Finding]:
    """Each described partition beside Slurm's. That a group allows itself less is its own affair."""
    for name, described in cluster.partitions.items():
        what, real = f"partition {name}", site.partitions.get(name)
        if real is None:
            yield bad(what, f"Slurm has none of this name; it has {', '.join(site.partitions)}", "hpc cluster detect")
            continue
        node, groups = cluster.node_types[described.node_type], site.nodes_of(name)
        more = []
        if seconds(described.max_time) > real.max_time:
            more.append(f"max_time: {clock(real.max_time)}")
        most = real.max_nodes if real.max_nodes is not None else math.inf
        if (described.max_nodes or node.count) > min(most, size(groups) or most):
            more.append(f"max_nodes: {min(most, size(groups)):g}")
        if groups:
            memory, cpus = max(g.memory for g in groups) // 1024, max(g.cpus for g in groups)
            gpus = max(g.gpus_of(node.gpu_type) for g in groups)
            more += [f"memory_gb: {memory}"] if node.memory_gb > memory else []
            more += [f"cores: {cpus}"] if node.cores > cpus else []
            if node.gpus > gpus and cluster.gpu_request is not GpuRequest.none:
                kinds = sorted({f"{kind}:{n}" for g in groups for kind, n in g.gpus})
                more.append(f"gpus: {gpus} of type {node.gpu_type or 'any'}; there is {', '.join(kinds) or 'none'}")
        down = sum(node in site.down for group in groups for node in group.names)
        text = f"{real.state}, {size(groups)} nodes" + (f", {down} of them down" if down else "")
        if more:
            yield warn(what, f"{text}; Slurm gives less than described", f"in the description: {', '.join(more)}")
        elif real.state != "UP" or (groups and down == size(groups)):
            yield warn(what, text, f"jobs wait until it is up: scontrol show partition {name}")
        else:
            yield ok(what, text)


# -- file systems, Python ------------------------------------------------------------------------------------


def file_system(what: str, path: str, kind: str, *, alone: bool) -> Finding:
    """Whether the other nodes see a folder, as far as its kind of file system shows.

    Args:
        alone: all nodes are this machine.
    """
    text = f"{path} on {kind}"
    if kind in MEMORY:
        return bad(what, text, "that is this machine's memory, gone at its next start: choose a shared file system")
    if any(kind.removeprefix("fuse.").startswith(name) for name in SHARED):
        return ok(what, text)
    if alone:
        return ok(what, f"{text}; all nodes are this machine")
    return bad(what, text, "that looks like this machine's own disk, which no other node sees: choose a shared one")


def space(what: str, free: int, inodes: int | None) -> Finding:
    """Room on a file system.

    Args:
        free: bytes.
        inodes: None where the file system does not count them.
    """
    text = f"{free / GIB:,.0f} GiB free" + (f", {inodes:,} files" if inodes is not None else "")
    if free < GIB or (inodes is not None and inodes < 1000):
        return bad(what, text, "no room for a run: clear up, or cluster.runs=DIR elsewhere")
    if free < 50 * GIB or (inodes is not None and inodes < 100_000):
        return warn(what, text, "a checkpoint takes up to 16 bytes for each parameter: clear up before a long run")
    return ok(what, text)


def quota(what: str, text: str) -> Finding | None:
    """What ``quota`` or ``lfs quota`` printed. None if that says nothing of a limit."""
    found = sorted(uses(text), key=lambda use: (use.over, use.share))
    if not found:
        return None
    if found[-1].over or found[-1].share >= 1:
        return bad(what, f"over: {found[-1]}", "writing fails soon or already: clear up, or ask for more")
    if found[-1].share >= NEARLY:
        return warn(what, str(found[-1]), "clear up before a long run, or ask for more")
    return ok(what, f"within the limits: {found[-1]}")


def writing(what: str, taken: Sequence[float]) -> Finding:
    """Seconds that it took each time to write, sync and rename a small file."""
    middle, longest = sorted(taken)[len(taken) // 2], max(taken)
    text = f"{1000 * middle:.1f} ms to write, sync and rename a file, {1000 * longest:.0f} ms at most"
    if middle > SLOW_WRITE:
        return warn(
            what, text, "records and markers of runs will be slow: try another file system with cluster.runs=DIR"
        )
    return ok(what, text)


REQUIRED = ("hydra-core", "omegaconf", "submitit", "numpy", "psutil", "orjson")


def python(what: str, interpreter: str, found: Mapping[str, str | None]) -> Iterator[Finding]:
    """The interpreter of the ranks: its version and packages, None for one that is missing."""
    version = tuple(int(part) for part in (found.get("python") or "0.0").split(".")[:2])
    missing = [name for name in REQUIRED if not found.get(name)]
    text = f"{interpreter} is Python {found.get('python')}"
    if version < (3, 11):
        yield bad(what, text, "at least 3.11 is needed: cluster.python=PATH")
    elif missing:
        yield bad(what, f"{text}, without {', '.join(missing)}", f"{interpreter} -m pip install .")
    elif not found.get("torch"):
        yield warn(what, f"{text}, without torch", f"for training: {interpreter} -m pip install '.[train]'")
    else:
        yield ok(what, f"{text}, torch {found['torch']}")


# -- what the job on the nodes reported ----------------------------------------------------------------------


def reports(found: Sequence[Mapping[str, object]], ranks: int, cluster: Cluster, gpus: int) -> Iterator[Finding]:
    """What each node saw.

    Args:
        found: one report a rank, as ``jobs.doctor`` writes them.
        ranks: how many there should be, one a node.
        gpus: that a node of them is described with.
    """
    nodes = ", ".join(str(each["node"]) for each in found)
    if len(found) < ranks:
        advice = "cluster.runs must be a folder that every node sees"
        yield bad("run folder on nodes", f"{len(found)} of {ranks} reports can be seen here ({nodes})", advice)
    else:
        yield ok("run folder on nodes", f"seen from {nodes}, and from here")
    for each in found:
        yield from _report(each, ranks, cluster, gpus)
    for name in ("python", "torch"):
        versions = {str(each[name]) for each in found}
        if len(versions) > 1:
            yield warn(f"{name} on nodes", f"{', '.join(sorted(versions))}", "nodes should have the same")


def _report(each: Mapping[str, object], ranks: int, cluster: Cluster, gpus: int) -> Iterator[Finding]:
    node, wrong = f"node {each['node']}", []
    seen, visible, driver = int(str(each["seen"])), int(str(each["gpus_visible"])), str(each["driver"])
    if seen < ranks:
        wrong.append(
            bad(node, f"sees the files of {seen} of {ranks} nodes", "cluster.runs=DIR on a shared file system")
        )
    if gpus and visible != gpus:
        wrong.append(
            bad(node, f"{visible} GPUs visible, described with {gpus}", "gpus or gpu_request in the description")
        )
    if not each["interface"] and cluster.rendezvous.interface:
        wrong.append(bad(node, f"has no interface {cluster.rendezvous.interface}", f"it has: {each['interfaces']}"))
    if not each["slurm"] and cluster.slurm_from_compute and cluster.launcher is Launcher.slurm:
        wrong.append(warn(node, "cannot ask Slurm", "slurm_from_compute: false in the description"))
        if cluster.rendezvous.host is Host.node_addr:
            wrong.append(warn(node, "cannot ask Slurm for its address", "rendezvous: {host: hostname}"))
    if abs(skew := float(str(each["skew"]))) >= SKEW:
        wrong.append(of_clock(f"{node}'s clock", skew))
    yield from wrong
    if not wrong:
        torch = f"torch {each['torch']}" if each["torch"] else "no torch"
        text = f"Python {each['python']}, {torch}, {visible} GPUs visible{f' ({driver})' if driver else ''}"
        yield ok(node, text + (", Slurm answers" if each["slurm"] else ""))


def worst(findings: Iterable[Finding]) -> Level:
    """The worst of them."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.ok)
