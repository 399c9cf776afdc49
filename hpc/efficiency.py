"""How well a run used what it was given, and what to ask for next time. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpc.accounting import GIB, Allocation
from hpc.request import clock

MARGIN = 1.25  # of what was used, to ask for
SHORT = 0.6  # below this share of the time asked, less is advised
LITTLE = 0.5  # the same for memory
CLOSE = 120.0  # seconds: an end this near to where the grace begins was the time limit's doing
LONG_ENOUGH = 600.0  # seconds below which shares of a run say little


@dataclass(frozen=True)
class Asked:
    """What a run asked for, and the most that it could have."""

    time: float  # seconds; inf for no limit
    most_time: float
    grace: float  # seconds
    memory_gb: int | None  # a node; None: all of it
    node_memory_gb: int
    gpu_memory_gb: float
    ranks_per_node: int
    whole_nodes: bool


@dataclass(frozen=True)
class Training:
    """What the run's own records say of all its attempts."""

    step_seconds: float  # of all steps
    lost_seconds: float  # of those that were done again
    checkpoint_seconds: float  # for which training waited
    evaluation_seconds: float
    mfu: float | None  # 0 to 1, mean over the time of the steps
    peak_memory_gib: float | None  # of a rank on its GPU; None where ranks compute on CPUs
    gpu_util: float | None = None  # 0 to 1, mean over ranks and time: a kernel was running
    kwh: float | None = None  # of the GPUs


@dataclass(frozen=True)
class Advice:
    """One override for the next submission, and why."""

    override: str
    why: str


@dataclass(frozen=True)
class Efficiency:
    """Of a run, or of several together. Shares are 0 to 1; None is not known."""

    starts: int
    seconds: float  # all allocations
    limit_seconds: float | None  # the same, as asked
    waited_seconds: float | None  # in the queue, as far as it is known
    node_hours: float
    gpu_hours: float | None
    cpu_share: float | None  # of the time of all cores
    cores_used: float | None  # on average
    cores: int | None  # the most at once
    memory_used_gib: float | None  # on one node, at most
    memory_asked_gib: float | None  # a node
    step_share: float | None  # of the allocations' time in training steps
    training: Training | None
    advice: tuple[Advice, ...]
    remarks: tuple[str, ...]

    @property
    def time_share(self) -> float | None:
        return _share(self.seconds, self.limit_seconds)

    @property
    def memory_share(self) -> float | None:
        return _share(self.memory_used_gib, self.memory_asked_gib)


def efficiency(
    found: Sequence[Allocation], training: Training | None, asked: Asked | None, limits_hit: int = 0
) -> Efficiency:
    """What allocations used of what they were given.

    Args:
        training: None where nothing was recorded.
        asked: None where that is not known or not the same for all: nothing is advised then.
        limits_hit: how many attempts ended because of the time limit.
    """
    began = [each for each in found if each.began is not None]
    seconds = sum(each.seconds for each in began)
    counted = [each for each in began if each.cpu_seconds is not None and each.cpus and each.seconds]
    core_seconds = sum(each.seconds * (each.cpus or 0) for each in counted)
    cpu_seconds = sum(each.cpu_seconds or 0.0 for each in counted)
    limits = [each.limit for each in began if each.limit is not None]
    gpus = [each.seconds * each.gpus for each in began if each.gpus is not None]
    advice, remarks = _advise(began, training, asked, limits_hit) if asked else ([], [])
    return Efficiency(
        starts=len(began),
        seconds=seconds,
        limit_seconds=sum(limits) if limits and len(limits) == len(began) and math.isfinite(sum(limits)) else None,
        waited_seconds=_sum(each.waited for each in began),
        node_hours=sum(each.seconds * each.nodes for each in began) / 3600,
        gpu_hours=sum(gpus) / 3600 if gpus and len(gpus) == len(began) else None,
        cpu_share=_share(cpu_seconds, core_seconds),
        cores_used=_share(cpu_seconds, sum(each.seconds for each in counted)),
        cores=max((each.cpus for each in counted if each.cpus), default=None),
        memory_used_gib=_most(each.memory_used for each in began),
        memory_asked_gib=_most(each.memory_asked for each in began),
        step_share=min(1.0, training.step_seconds / seconds) if training and seconds else None,
        training=training,
        advice=tuple(advice),
        remarks=tuple(remarks),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _sum(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _most(values) -> float | None:
    return max((value / GIB for value in values if value is not None), default=None)


def _advise(
    began: list[Allocation], training: Training | None, asked: Asked, limits_hit: int
) -> tuple[list[Advice], list[str]]:
    ended = [each for each in began if not each.live]
    if not ended:
        return [], ["it has not ended once: what to ask for shows later"]
    advice, remarks = [], []
    for found in (_time(ended, asked, limits_hit), _memory(ended, asked)):
        if isinstance(found, Advice):
            advice.append(found)
        elif found:
            remarks.append(found)
    return advice, remarks + _remarks(ended, training, asked)


def _time(ended: list[Allocation], asked: Asked, limits_hit: int) -> Advice | str | None:
    longest = max(each.seconds for each in ended)
    total = sum(each.seconds for each in ended)
    limit = asked.time
    if math.isinf(limit):
        return None
    if limits_hit or longest >= limit - asked.grace - CLOSE > 0:
        times = f"{limits_hit} time{'s' * (limits_hit != 1)}" if limits_hit else "about"
        if asked.most_time <= limit:
            return f"the time limit of {clock(limit)} was reached {times}, and the partition gives no more"
        wanted = min(nice_time(total * 1.1 + asked.grace), asked.most_time)
        if wanted <= limit:
            return None
        return Advice(f"job.time={clock(wanted)}", f"its time limit of {clock(limit)} was reached {times}")
    wanted = nice_time(longest * MARGIN + asked.grace)
    if longest < SHORT * limit and wanted <= 0.75 * limit:
        why = f"the longest of its jobs took {clock(longest)} of the {clock(limit)} asked; shorter ones start sooner"
        return Advice(f"job.time={clock(wanted)}", why)
    return None


def _memory(ended: list[Allocation], asked: Asked) -> Advice | str | None:
    used, given = _most(each.memory_used for each in ended), _most(each.memory_asked for each in ended)
    if any(each.state == "OUT_OF_MEMORY" for each in ended):
        given = given or asked.memory_gb or asked.node_memory_gb
        if given >= asked.node_memory_gb:
            fewer = f"job.ranks_per_node below {asked.ranks_per_node}"
            return f"the memory of a whole node was not enough: fewer ranks on each need less, {fewer}"
        wanted = min(nice_gb(1.5 * given), asked.node_memory_gb)
        return Advice(f"job.memory_gb={wanted}", f"{given:.0f} GB a node were not enough")
    if used is None or given is None or used >= LITTLE * given:
        return None
    if asked.whole_nodes and asked.memory_gb is None:
        return None  # nodes are given whole: nobody else could have had it
    wanted = nice_gb(used * MARGIN + 1)
    if wanted >= 0.75 * given:
        return None
    return Advice(f"job.memory_gb={wanted}", f"it used at most {gb(used)} of the {gb(given)} GB a node asked")


def _remarks(ended: list[Allocation], training: Training | None, asked: Asked) -> list[str]:
    remarks = []
    seconds = sum(each.seconds for each in ended)
    if training is not None and seconds >= LONG_ENOUGH:
        share = training.step_seconds / seconds
        if share < 0.7:
            parts = {
                "checkpoints": training.checkpoint_seconds,
                "evaluation": training.evaluation_seconds,
                "starting, stopping and the rest": max(
                    0.0,
                    seconds - training.step_seconds - training.checkpoint_seconds - training.evaluation_seconds,
                ),
            }
            said = ", ".join(f"{name} {clock(value)}" for name, value in parts.items() if value >= 1)
            remarks.append(f"steps took {share:.0%} of the time; {said}")
        if training.lost_seconds > 0.05 * seconds:
            lost = clock(training.lost_seconds)
            remarks.append(f"{lost} of steps were done again after a failure: a smaller train.checkpoint.every_steps")
    if training is not None and training.peak_memory_gib and training.peak_memory_gib < 0.5 * asked.gpu_memory_gb:
        peak = f"{training.peak_memory_gib:.1f} of {asked.gpu_memory_gb:g} GB"
        remarks.append(f"GPU memory was filled to {peak}: a larger parallel.micro_batch may be faster")
    if training is not None and training.mfu is not None and training.mfu < 0.2:
        remarks.append("where the time of a step goes while it runs: hpc profile RUN")
    return remarks


def nice_time(seconds: float) -> float:
    """Rounded up to what a person would ask for: 5 minutes below an hour, then 15, then hours, then 6 hours."""
    for below, unit in ((3600, 300), (4 * 3600, 900), (48 * 3600, 3600)):
        if seconds <= below:
            return max(900.0, math.ceil(seconds / unit) * float(unit))
    return math.ceil(seconds / 21600) * 21600.0


def nice_gb(amount: float) -> int:
    """Rounded up: to whole GB up to 16, then by an eighth or less."""
    unit = 1
    while amount > 16 * unit:
        unit *= 2
    return max(1, math.ceil(amount / unit) * unit)


def gb(amount: float) -> str:
    return f"{amount:.0f}" if amount >= 10 else f"{amount:.1f}" if amount >= 0.1 else f"{amount:.2f}"
