"""From what Slurm says of a site to its description, in the manner of ``conf/cluster``. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpc.emulate.slurm_conf import compress
from hpc.request import clock
from hpc.site import Nodes, Partition, Site

# What a type of GPU is called by, its memory in GiB, its dense bf16 tensor peak in TFLOP/s (0: it has no bf16), and a
# word of doubt. The first pattern that is found counts. Of two sizes under one name the smaller is assumed: it refuses
# what might have fitted, and not the reverse.
GPUS: tuple[tuple[str, float, float, str], ...] = (
    (r"gh200", 96, 989, ""),
    (r"h200", 141, 989, ""),
    (r"h100", 80, 989, ""),
    (r"a100[-_]?(pcie[-_]?|sxm4?[-_]?)?80", 80, 312, ""),
    (r"a100", 40, 312, "40 or 80"),
    (r"v100[-_]?(pcie[-_]?|sxm2[-_]?)?32", 32, 0, ""),
    (r"v100", 16, 0, "16 or 32"),
    (r"l40s", 48, 362, ""),
    (r"l40", 48, 181, ""),
    (r"a40", 48, 150, ""),
    (r"a30", 24, 165, ""),
    (r"a6000", 48, 155, ""),
    (r"mi300x", 192, 1307, ""),
    (r"t4", 16, 0, ""),
)


@dataclass(frozen=True)
class Kind:
    """Nodes that a request cannot tell apart: the same in everything but their partitions."""

    cores: int
    sockets: int
    memory_gb: int
    gpus: int
    gpu_type: str
    features: tuple[str, ...]


def gpu(kind: str, features: Iterable[str] = ()) -> tuple[float, float, str]:
    """GiB and TFLOP/s of a GPU, and what to look up; noughts where it is not known.

    Args:
        kind: its type as Slurm spells it.
        features: of its node, which may say how large it is: a100_80.
    """
    for pattern, memory, peak, doubt in GPUS if kind else ():
        if any(re.search(rf"(?<![a-z0-9]){pattern}", name.lower()) for name in (kind, *features)):
            return memory, peak, doubt
    return 0, 0, "not known"


def kinds(site: Site) -> dict[Kind, list[str]]:
    """The nodes of a site by what they have, those in no partition left out."""
    found: dict[Kind, list[str]] = {}
    for group in site.nodes or ():
        if set(group.partitions) & set(site.partitions):
            found.setdefault(_kind(group), []).extend(group.names)
    return {kind: sorted(names, key=_natural) for kind, names in found.items()}


def _kind(group: Nodes) -> Kind:
    name, number = max(group.gpus, key=lambda each: each[1], default=("", 0))
    return Kind(group.cores, group.sockets, group.memory // 1024, number, name, group.features)


def _natural(name: str) -> list[object]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def node_types(site: Site) -> dict[str, Kind]:
    """A short name for each kind of node: what it is for, with a number where several are alike in that."""
    named: dict[str, Kind] = {}
    for kind in kinds(site):
        base = re.sub(r"[^A-Za-z0-9_]", "_", kind.gpu_type) or "gpu" if kind.gpus else "cpu"
        number = sum(name == base or re.fullmatch(rf"{base}_\d+", name) is not None for name in named)
        named[f"{base}_{number + 1}" if number else base] = kind
    return named


def preemptible(site: Site, partition: Partition) -> bool:
    """Whether jobs of a partition give way to those of another."""
    if site.config.get("PreemptType") != "preempt/partition_prio" or partition.preempt_mode in ("OFF", "GANG"):
        return False
    return any(other.tier > partition.tier for other in site.partitions.values())


def describe(site: Site, name: str, date: str) -> str:
    """The YAML of a site, to be checked by whoever knows it.

    Args:
        name: what it shall be called here.
        date: when it was asked, for the reader.
    """
    types = node_types(site)
    lines = [
        f"# {name}, as its Slurm {site.config.get('SLURM_VERSION', '')} described itself on {date}. Look through it:",
        "# Slurm does not know of modules, networks and the memory of GPUs.",
        f"name: {_yaml(name)}",
    ]
    if site.name != name:
        lines.append(f"slurm_name: {_yaml(site.name)}")
    lines.append("node_types:")
    for key, kind in types.items():
        lines += _node_type(key, kind, kinds(site)[kind])
    lines.append("partitions:")
    for partition in usable(site):
        lines += _partition(site, partition, types)
    lines += [
        f"default_partition: {_yaml(default(site))}",
        f"max_array_size: {site.max_array_size or 1001}",
        f"gpu_request: {'gres' if any(kind.gpus for kind in types.values()) else 'none'}",
        *_exclusive(site),
        *_account(site),
        "rendezvous:",
        "  host: node_addr",
        "  # interface: ib0",
        "# modules: [...]",
        "runs: ${oc.env:HPC_RUNS,runs}",
        "data: ${oc.env:HPC_DATA,data}",
    ]
    return "\n".join(lines) + "\n"


def usable(site: Site) -> list[Partition]:
    """Partitions that have nodes and take jobs of the user's groups."""
    return [
        partition
        for partition in site.partitions.values()
        if site.nodes_of(partition.name)
        and (not partition.allow_groups or set(partition.allow_groups) & set(site.groups) or site.user == "root")
    ]


def default(site: Site) -> str:
    """The partition that Slurm takes where none is named; else the first."""
    found = usable(site)
    return next((each.name for each in found if each.default), found[0].name)


def _node_type(key: str, kind: Kind, names: list[str]) -> Iterator[str]:
    yield f"  {_yaml(key)}:"
    yield f"    count: {len(names)}"
    yield f"    names: {_names(names)}"
    yield f"    sockets: {kind.sockets}"
    yield f"    cores: {kind.cores}"
    yield f"    memory_gb: {kind.memory_gb}"
    if kind.gpus:
        memory, peak, doubt = gpu(kind.gpu_type, kind.features)
        yield f"    gpus: {kind.gpus}"
        if kind.gpu_type:
            yield f"    gpu_type: {_yaml(kind.gpu_type)}"
        yield f"    gpu_memory_gb: {memory:g}" + (f"  # {doubt}: nvidia-smi says" if doubt else "")
        yield f"    gpu_peak_tflops: {peak:g}" + ("" if peak else "  # dense bf16, not known")
    if kind.features:
        yield f"    features: [{', '.join(map(_yaml, kind.features))}]"


def _partition(site: Site, partition: Partition, types: dict[str, Kind]) -> Iterator[str]:
    here: dict[str, int] = {}
    for group in site.nodes_of(partition.name):
        key = next(name for name, kind in types.items() if kind == _kind(group))
        here[key] = here.get(key, 0) + len(group.names)
    main = max(here, key=lambda key: (types[key].gpus > 0, here[key]))
    yield f"  {_yaml(partition.name)}:" + ("" if partition.state == "UP" else f"  # {partition.state} when asked")
    yield f"    node_type: {_yaml(main)}" + (
        f"  # also {', '.join(f'{n} {key}' for key, n in here.items() if key != main)}" if len(here) > 1 else ""
    )
    if not math.isinf(partition.max_time):
        yield f"    max_time: {_yaml(clock(partition.max_time))}"
    if partition.default_time is not None:
        yield f"    default_time: {_yaml(clock(partition.default_time))}"
    most = partition.max_nodes if partition.max_nodes is not None else here[main]
    if most < len(kinds(site)[types[main]]):
        yield f"    max_nodes: {most}"
    if preemptible(site, partition):
        yield "    preemptible: true"


def _exclusive(site: Site) -> Iterator[str]:
    whole = site.partitions[default(site)].exclusive
    yield f"exclusive: {'true' if whole else 'false  # jobs may share nodes; true asks for whole ones all the same'}"


def _account(site: Site) -> Iterator[str]:
    mine = list(dict.fromkeys(each.account for each in site.associations or ()))
    if not mine:
        return
    usual = site.associations[0].default_account if site.associations else None
    others = [name for name in mine if name != usual]
    yield f"account: {_yaml(usual or mine[0])}" + (f"  # or {', '.join(others)}" if usual and others else "")


def _names(names: list[str]) -> str:
    """Node names in Slurm's notation, whose brackets YAML leaves alone behind a letter."""
    text = compress(names)
    return text if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*\[[0-9,-]+\]", text) else _yaml(text)


def _yaml(text: str) -> str:
    """A scalar that YAML reads as this very text."""
    import yaml

    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./+-]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text)
