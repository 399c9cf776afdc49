"""The request against what a site gives: its described limits, and those that its Slurm names where it answers. Pure.

Slurm takes many a job that can never start and lets it wait for ever: EnforcePartLimits=NO is the default, and limits
of accounting hold a job back without a word. Such a job is refused here. Of two limits the tighter one counts, and a
group may describe less than its site allows.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpc import check_access
from hpc.config import Config, Launcher
from hpc.request import Request, clock, seconds
from hpc.site import Site
from hpc.terms import GPU, Limit, Terms, among, excluded, features, size, tightest, where
from trainer.problems import Problem


def problems(config: Config, request: Request, site: Site | None = None) -> list[Problem]:
    """Why the site would not take this job, or never start it.

    Args:
        site: what its Slurm says; None where it does not answer, or there is none.
    """
    terms = Terms(config, request, site) if site is not None else None
    if terms is not None and (found := list(check_access.partition(terms))):
        return found
    found = [*_time(config, request, terms), *_nodes(config, request, terms), *_memory(config, request, terms)]
    if terms is not None:
        found += [*check_access.problems(terms), *_named(terms)]
        told = {problem.field for problem in found}
        found += [problem for problem in _fitting(terms) if problem.field not in told]
    return found


def hints(config: Config, request: Request, site: Site) -> list[str]:
    """What is no mistake, and yet keeps the job from starting soon or running as expected."""
    terms, found, name = Terms(config, request, site), [], request.partition
    if terms.partition is not None and terms.partition.state == "DOWN":
        found.append(f"the job waits until the partition is up again ({terms.source('State', 'DOWN')})")
    up = sum(node not in site.down for group in terms.featured for node in group.names)
    if site.nodes is not None and up < request.nodes:
        found.append(
            f"the job waits for nodes: {up} of those of partition {name} that fit are up now (scontrol show node)"
        )
    reservation = (site.reservations or {}).get(terms.reservation or "")
    if reservation is not None:
        found.append(f"reservation {reservation.name} ends {reservation.end}, whatever job.time says")
    known = config.cluster.slurm_name or config.cluster.name
    if site.name and site.name.lower() != known.lower():
        found.append(
            f"the Slurm that answers here calls itself {site.name}, not {known}. If it is the right one: "
            f"cluster.slurm_name={site.name}"
        )
    return found


def _described(config: Config) -> str:
    """Where a cluster's description lies, as Hydra finds it."""
    return f"cluster/{config.cluster.name}.yaml"


def _time(config: Config, request: Request, terms: Terms | None) -> Iterator[Problem]:
    limits = []
    if terms is not None and terms.partition is not None:
        most = terms.partition.max_time
        if not terms.lifted("PartitionTimeLimit"):
            limits.append(Limit(most, terms.source("MaxTime", clock(most))))
        limits += terms.accounting("max_wall", "MaxWall")
    most = tightest([*limits, Limit(seconds(request.limits.max_time), _described(config))])
    if request.time > most.value:
        allowed = f"{where(config, request)} gives at most {clock(most.value)} ({most.source})"
        yield Problem("job.time", config.job.time or clock(request.time), allowed, f"job.time={clock(most.value)}")


def _node_limits(terms: Terms) -> Iterator[Limit]:
    partition, site = terms.partition, terms.site
    assert partition is not None
    yield Limit(partition.total_nodes, terms.source("TotalNodes", partition.total_nodes))
    if partition.max_nodes is not None and not terms.lifted("PartitionMaxNodes"):
        yield Limit(partition.max_nodes, terms.source("MaxNodes", partition.max_nodes))
    yield from terms.nodes_by_tres()
    reservation = (site.reservations or {}).get(terms.reservation or "")
    if reservation is not None and "FLEX" not in reservation.flags:
        yield Limit(reservation.nodes, f"scontrol show reservation {reservation.name}: NodeCnt={reservation.nodes}")


def _nodes(config: Config, request: Request, terms: Terms | None) -> Iterator[Problem]:
    nodes, place, described = request.nodes, where(config, request), _described(config)
    limits = list(_node_limits(terms)) if terms is not None else []
    most = tightest(
        [*limits, Limit(min(request.node.count, request.limits.max_nodes or request.node.count), described)]
    )
    least, source = 1, most.source
    partition = terms.partition if terms is not None else None
    if terms is not None and partition is not None and not terms.lifted("PartitionMinNodes"):
        least = max(1, partition.min_nodes)
        source = terms.source("MinNodes", least) if nodes < least and least > 1 else source
    if least <= nodes <= most.value:
        return
    if most.value < least:
        fix = _other_qos(terms) if terms is not None and most.source.startswith("sacctmgr") else ""
        yield Problem("job.nodes", str(nodes), f"{place} gives no job of this shape ({most.source})", fix)
        return
    span = f"{least} to {int(most.value)} nodes" if most.value > least else f"{least} node{'s' * (least > 1)}"
    allowed = f"{place} gives {span} ({source})"
    yield Problem("job.nodes", str(nodes), allowed, f"job.nodes={min(max(nodes, least), int(most.value))}")


def _other_qos(terms: Terms) -> str:
    others = [name for name in (terms.association.qos if terms.association else ()) if name != terms.qos_name]
    return f"job.qos={others[0]}" if others else "another job.account or job.partition"


def _memory(config: Config, request: Request, terms: Terms | None) -> Iterator[Problem]:
    given, limits = config.job.memory_gb, [Limit(request.node.memory_gb, _described(config))]
    asked = given
    if terms is not None and terms.featured and request.nodes > 0:
        each = among(((group.memory, len(group.names)) for group in terms.featured), request.nodes)
        each = each or min(group.memory for group in terms.featured)
        limits.insert(0, Limit(each // 1024, f"scontrol show node: RealMemory={each}"))
        held = list(_memory_limits(terms))
        limits += held
        if held and given is None:
            # All of a node, which --mem=0 asks for, is held to these limits as well.
            asked, limits = each // 1024, held
    most = tightest(limits)
    if asked is not None and not 1 <= asked <= most.value:
        shown = str(given) if given is not None else f"null ({asked}, all of a node)"
        allowed = f"a node of {where(config, request)} gives 1 to {int(most.value)} GiB ({most.source})"
        yield Problem("job.memory_gb", shown, allowed, f"job.memory_gb={max(1, min(asked, int(most.value)))}")


def _memory_limits(terms: Terms) -> Iterator[Limit]:
    partition = terms.partition
    assert partition is not None
    if partition.max_memory is not None:
        yield Limit(partition.max_memory // 1024, terms.source("MaxMemPerNode", partition.max_memory))
    if partition.max_memory_per_cpu is not None:
        cpus = max(group.cpus for group in terms.featured)
        source = terms.source("MaxMemPerCPU", partition.max_memory_per_cpu)
        yield Limit(partition.max_memory_per_cpu * cpus // 1024, f"{source}, on {cpus} CPUs")
    for limit in terms.accounting("max_tres_per_node", "MaxTRESPerNode", "mem"):
        yield Limit(limit.value // 1024, limit.source)


def _named(terms: Terms) -> Iterator[Problem]:
    """Nodes and features that the site does not have: Slurm refuses the whole request for one."""
    site, job = terms.site, terms.config.job
    if site.nodes is None:
        return
    known = {name for group in site.nodes for name in group.names}
    if unknown := sorted(excluded(terms.config) - known):
        left = ",".join(sorted(excluded(terms.config) & known))
        allowed = f"there is no node {', '.join(unknown[:5])} (scontrol show node)"
        yield Problem(
            "job.exclude", str(job.exclude), allowed, f"'job.exclude=\"{left}\"'" if left else "job.exclude=null"
        )
    there = sorted({feature for group in site.nodes for feature in group.features})
    if unknown := [name for name in features(job.constraint or "") if name not in there]:
        here = sorted({feature for group in terms.nodes for feature in group.features})
        allowed = f"no node has the feature {unknown[0]} (scontrol show node: {', '.join(there) or 'no features'})"
        fix = f"job.constraint={here[0]}" if here else "job.constraint=null"
        yield Problem("job.constraint", str(job.constraint), allowed, fix)


def _fitting(terms: Terms) -> Iterator[Problem]:
    """Whether enough nodes of the partition are not excluded and have the features, the GPUs and the cores."""
    request, job = terms.request, terms.config.job
    needed = min(request.nodes, size(terms.nodes))  # more than there are was told of already
    if needed < 1 or terms.config.cluster.launcher is not Launcher.slurm:
        return
    for name, given, groups in (("exclude", job.exclude, terms.left), ("constraint", job.constraint, terms.featured)):
        if size(groups) < needed:
            allowed = f"leaves {size(groups)} of the {size(terms.nodes)} nodes of {terms.where} (scontrol show node)"
            fix = f"job.nodes={size(groups)}" if groups else f"job.{name}=null"
            yield Problem(f"job.{name}", str(given), allowed, fix)
            return
    yield from _gpus(terms, needed)
    yield from _cores(terms, needed)


def _type(terms: Terms) -> str:
    """The node type that the partition is described with."""
    return f"cluster.node_types.{terms.request.limits.node_type}"


def _gpus(terms: Terms, needed: int) -> Iterator[Problem]:
    request, kind, asked = terms.request, terms.request.node.gpu_type, terms.per_node().get(GPU, 0)
    most = among(((group.gpus_of(kind), len(group.names)) for group in terms.featured), needed)
    if asked <= most:
        return
    nodes = f"{needed} node{'s' * (needed > 1)} of {terms.where}"
    there = sorted({f"gpu:{name}:{n}".replace("::", ":") for group in terms.featured for name, n in group.gpus})
    source = f"scontrol show node: Gres={','.join(there) or '(null)'}"
    kinds = sorted({name for group in terms.featured for name, _ in group.gpus} - {kind})
    if not most and kinds:
        fix = f"{_type(terms)}.gpu_type={kinds[0] or repr('')}"
        yield Problem(f"{_type(terms)}.gpu_type", kind or "''", f"{nodes} have no such GPU ({source})", fix)
    elif terms.config.cluster.exclusive or not most:
        allowed = f"{nodes} have {most} each ({source})"
        yield Problem(f"{_type(terms)}.gpus", f"{asked:g}", allowed, f"{_type(terms)}.gpus={most}")
    else:
        allowed = f"{nodes} have {most} GPUs each, and each rank takes one ({source})"
        yield Problem("job.ranks_per_node", str(request.ranks_per_node), allowed, f"job.ranks_per_node={most}")


def _cores(terms: Terms, needed: int) -> Iterator[Problem]:
    request, partition = terms.request, terms.partition
    assert partition is not None
    cpus = among(((group.cpus, len(group.names)) for group in terms.featured), needed)
    limits = [Limit(cpus, f"scontrol show node: CPUEfctv={cpus}")]
    if partition.max_cpus is not None:
        limits.append(Limit(partition.max_cpus, terms.source("MaxCPUsPerNode", partition.max_cpus)))
    limits += terms.accounting("max_tres_per_node", "MaxTRESPerNode", "cpu")
    most, asked = tightest(limits), request.ranks_per_node * request.cpus_per_rank
    if asked <= most.value:
        return
    allowed = f"a node of {terms.where} gives {most.value:g} CPUs ({most.source})"
    if request.ranks_per_node > most.value:
        fix = f"job.ranks_per_node={max(1, int(most.value))}"
        yield Problem("job.ranks_per_node", str(request.ranks_per_node), allowed, fix)
    else:
        # Ranks share the cores that a node is described with.
        yield Problem(
            f"{_type(terms)}.cores", f"{request.node.cores}", allowed, f"{_type(terms)}.cores={int(most.value)}"
        )
