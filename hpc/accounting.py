"""What a run was given and what it used, one allocation after the other: from sacct, or from the run's own ledger.

An allocation is one start of a job: a job that was requeued twice is three of them, and several attempts may share
one. Slurm counts the memory of a step by its largest task; of a node that is taken as the largest task for each of the
tasks on it, so it is an upper bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hpc.ledger import Record
from hpc.request import Request
from hpc.slurm import unix
from monitoring.job import OVER

KIB, GIB = 2**10, 2**30
_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_TIME = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)([nc]?)")


@dataclass(frozen=True)
class Allocation:
    """One start of a job. None where it is not known."""

    job_id: str  # array-safe
    state: str  # as Slurm spells it, in full and without additions; "" where only the ledger speaks
    submitted: float | None  # unix time; of a requeued job when it was requeued
    began: float | None
    ended: float | None
    seconds: float
    limit: float | None  # seconds; inf for no limit
    nodes: int
    cpus: int | None
    gpus: int | None
    memory_asked: float | None  # bytes a node
    cpu_seconds: float | None = None  # of all its processes
    memory_used: float | None = None  # bytes on the node that used most, at most
    folder: str = ""  # that the job works in

    @property
    def waited(self) -> float | None:
        """Seconds in the queue, Slurm's hold of a requeued job included."""
        if self.submitted is None or self.began is None:
            return None
        return max(0.0, self.began - self.submitted)

    @property
    def live(self) -> bool:
        return self.state in ("RUNNING", "SUSPENDED", "COMPLETING", "PENDING") or (not self.state and not self.ended)


def _sacct(name: str) -> Any:
    return field(metadata={"name": name})


@dataclass(frozen=True)
class Row:
    """One line of sacct, a job or a step of one; each field carries the name that sacct knows it by."""

    job_id: str = _sacct("JobID")
    state: str = _sacct("State")
    submitted: str = _sacct("Submit")
    began: str = _sacct("Start")
    ended: str = _sacct("End")
    elapsed: str = _sacct("ElapsedRaw")  # seconds
    limit: str = _sacct("TimelimitRaw")  # minutes
    nodes: str = _sacct("NNodes")
    cpus: str = _sacct("AllocCPUS")
    tres: str = _sacct("AllocTRES")
    memory: str = _sacct("ReqMem")
    cpu_time: str = _sacct("TotalCPU")
    largest: str = _sacct("MaxRSS")  # of its tasks
    tasks: str = _sacct("NTasks")
    folder: str = _sacct("WorkDir")


NAMES = [f.metadata["name"] for f in fields(Row)]


def duration(text: str) -> float | None:
    """A time as sacct prints it, in seconds: 1-02:03:04, 02:03:04, 02:03.456; None for anything else."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = match.groups()
    return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)


def memory(text: str) -> tuple[float, str] | None:
    """An amount as sacct prints it, in bytes, and of what it is: "n" a node, "c" a core, "" a job (or a task).

    123K, 1.5G, 4000Mn, 2Gc; None for nothing, for 0, which stands for all there is, and for anything else.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        return None
    amount = float(match[1]) * _UNITS[match[2]]
    return (amount, match[3]) if amount else None


def state(text: str) -> str:
    """A state without what Slurm adds to it: "CANCELLED by 1000" -> CANCELLED, "OUT_OF_ME+" -> OUT_OF_MEMORY."""
    word = text.split()[0] if text.split() else ""
    if word.endswith("+"):
        return next((known for known in sorted(OVER) if known.startswith(word[:-1])), word[:-1])
    return word


def resources(text: str) -> dict[str, str]:
    """A list of trackable resources: ``cpu=256,gres/gpu=8,mem=960G`` by name."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def gpus(tres: Mapping[str, str]) -> int:
    """How many GPUs are among resources; where only kinds are counted, their sum."""
    if "gres/gpu" in tres:
        return _count(tres["gres/gpu"]) or 0
    return sum(_count(value) or 0 for name, value in tres.items() if name.startswith("gres/gpu:"))


def _count(text: str) -> int | None:
    return int(text) if text.strip().isascii() and text.strip().isdigit() else None


def parse(lines: Iterable[Sequence[str]]) -> list[Row]:
    """What sacct printed, split; a line with another number of fields is left out."""
    return [Row(*parts) for parts in lines if len(parts) == len(NAMES)]


def allocations(rows: Iterable[Row]) -> list[Allocation]:
    """The allocations that sacct's lines tell of, in its order: each job's line is followed by those of its steps."""
    groups: list[tuple[Row, list[Row]]] = []
    for row in rows:
        if "." not in row.job_id:
            groups.append((row, []))
        elif groups and row.job_id.startswith(f"{groups[-1][0].job_id}."):
            groups[-1][1].append(row)
    return [_allocation(job, steps) for job, steps in groups]


def _allocation(job: Row, steps: list[Row]) -> Allocation:
    tres = resources(job.tres)
    nodes = _count(job.nodes) or 0
    cpus = _count(job.cpus) or _count(tres.get("cpu", ""))
    found = Allocation(
        job_id=job.job_id,
        state=state(job.state),
        submitted=unix(job.submitted),
        began=unix(job.began),
        ended=unix(job.ended),
        seconds=float(_count(job.elapsed) or 0),
        limit=_limit(job.limit),
        nodes=nodes,
        cpus=cpus,
        gpus=gpus(tres) if tres else None,
        memory_asked=_asked(tres.get("mem", ""), job.memory, nodes, cpus),
        folder=job.folder,
    )
    if found.live:
        return found  # what its steps use is told when they end
    cpu_seconds = duration(job.cpu_time)
    if not cpu_seconds and found.seconds > 1:  # steps that died with their node told nothing
        cpu_seconds = None
    return replace(found, cpu_seconds=cpu_seconds, memory_used=_used(steps))


def _limit(minutes: str) -> float | None:
    count = _count(minutes)
    return count * 60.0 if count is not None else math.inf if minutes.strip().upper() == "UNLIMITED" else None


def _asked(allocated: str, requested: str, nodes: int, cpus: int | None) -> float | None:
    """Bytes a node that were set aside: as Slurm counted them or, by the notation of older ones, as was asked."""
    found = memory(allocated) or memory(requested)
    if found is None or not nodes:
        return None
    amount, of = found
    if of == "n":
        return amount
    if of == "c":
        return amount * cpus / nodes if cpus else None
    return amount / nodes


def _used(steps: list[Row]) -> float | None:
    """Bytes on one node: of the largest step of ranks, one follows another, and of the batch script beside them."""
    ranks, beside = [0.0], 0.0
    for step in steps:
        found = memory(step.largest)
        if found is None:
            continue
        if step.job_id.rpartition(".")[2] in ("batch", "extern"):
            beside += found[0]
        else:
            ranks.append(found[0] * math.ceil((_count(step.tasks) or 1) / (_count(step.nodes) or 1)))
    return max(ranks) + beside or None


def of_run(found: Mapping[str, Sequence[Allocation]], run_id: str, job_ids: Collection[str]) -> list[Allocation]:
    """Those allocations that are of a run's jobs, and not of others that had their numbers; oldest first.

    A job is known by its working folder's name, which also holds for a run's folder that was moved.

    Args:
        found: by job id.
    """
    names = {run_id, run_id.partition(".")[0]}  # a run of a sweep works in the sweep's folder
    ours = [each for job_id in job_ids for each in found.get(job_id, ()) if Path(each.folder).name in names]
    return sorted(ours, key=lambda each: each.began or each.submitted or 0.0)


def from_ledger(
    records: Iterable[Record], request: Request, *, submitted: float | None, now: float
) -> list[Allocation]:
    """The allocations of a run as its attempts tell of them.

    Args:
        records: of all attempts, oldest first.
        request: what was asked for; attempts before a change of it are taken to have asked for the same.
        submitted: when the first job was.
        now: until when an attempt is counted that has not ended.
    """
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.job_id, record.restart_count), []).append(record)
    found: list[Allocation] = []
    for (job_id, _), members in groups.items():
        began, ended = members[0].began, members[-1].ended
        before = found[-1] if found else None
        if before is not None:
            submitted = before.ended if before.job_id == job_id else None
        nodes = len(members[-1].nodes) or request.nodes
        found.append(
            Allocation(
                job_id=job_id,
                state="",
                submitted=submitted,
                began=began,
                ended=ended,
                seconds=max(0.0, (ended or now) - began),
                limit=request.time,
                nodes=nodes,
                cpus=nodes * request.cpus_per_rank * request.ranks_per_node,
                gpus=nodes * request.gpus_per_node,
                memory_asked=None,
            )
        )
    return found
