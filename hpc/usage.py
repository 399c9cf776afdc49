"""What runs were given and what they used, gathered: sacct where it answers, else their ledgers; their records."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc import accounting, ledger, slurm
from hpc.accounting import Allocation
from hpc.config import Config, Launcher
from hpc.efficiency import Asked, Efficiency, Training, efficiency
from hpc.errors import Refused
from hpc.queue import controller
from hpc.request import Request, resolve, seconds
from hpc.runs import Run, read_json
from trainer.config import Device

if TYPE_CHECKING:
    from hpc.sweep import Sweep
    from monitoring.columns import Columns


@dataclass(frozen=True)
class Usage:
    """A run with its allocations, oldest first, and what follows from them."""

    run: Run
    source: str  # sacct or ledger
    why: str  # the ledger speaks, and not sacct
    allocations: tuple[Allocation, ...]
    efficiency: Efficiency


def of_run(run: Run) -> Usage:
    """The usage of one run over all its attempts."""
    config = run.config()
    known, why = _ask(run, _jobs(run), config.cluster.launcher)
    return _usage(run, resolve(config), asked(config), known, why)


def of_sweep(sweep: Sweep) -> tuple[list[Usage], Efficiency]:
    """The usage of those runs of a sweep that have begun, by number, and of all together. One sacct.

    Raises:
        Refused: if none has begun.
    """
    runs = [sweep.run(number) for number in range(len(sweep.members))]
    requests: dict[int, tuple[Request, Asked]] = {}
    for array in sweep.arrays:  # whose runs ask for the same
        config = sweep.config(array.runs[0])
        both = resolve(config), asked(config)
        requests |= dict.fromkeys(array.runs, both)
    begun = [number for number, run in enumerate(runs) if run.config_file.exists() and number in requests]
    if not begun:
        raise Refused(f"no run of {sweep.name}/{sweep.id} has begun. Look: hpc sweep status {sweep.id}")
    jobs = dict.fromkeys(job.partition("_")[0] for number in begun for job in _jobs(runs[number]))
    known, why = _ask(sweep, list(jobs), sweep.launcher)
    found = [_usage(runs[number], *requests[number], known, why) for number in begun]
    ways = {requests[number][1] for number in begun}
    return found, _together(found, ways.pop() if len(ways) == 1 else None)


def _together(found: Sequence[Usage], way: Asked | None) -> Efficiency:
    trainings = [each.efficiency.training for each in found]
    hits = sum(_limits_hit(each.run) for each in found)
    return efficiency([a for each in found for a in each.allocations], _join(trainings), way, hits)


def _usage(run: Run, request: Request, way: Asked, known: Mapping[str, Sequence[Allocation]] | None, why: str) -> Usage:
    found = accounting.of_run(known, run.id, _jobs(run)) if known is not None else []
    source = "sacct" if found else "ledger"
    if not found:
        why = why or "sacct knows none of its jobs"
        submitted = (read_json(run.manifest_file) or {}).get("submitted")
        records = ledger.history(run)
        silence = ledger.silent_for(run, records[-1]) if records else 0.0
        # Without a last word it lived until its last heartbeat.
        until = time.time() - silence
        since = submitted if isinstance(submitted, float) else None
        found = accounting.from_ledger(records, request, submitted=since, now=until)
    measured = training(run, way)
    said = efficiency(found, measured, way, _limits_hit(run))
    return Usage(run, source, "" if source == "sacct" else why, tuple(found), said)


def _jobs(run: Run) -> list[str]:
    known = [record.job_id for record in ledger.history(run)] + [run.job_id or ""]
    return [job for job in dict.fromkeys(known) if job.partition("_")[0].isdecimal()]


def _limits_hit(run: Run) -> int:
    return sum(record.cause == "time_limit" for record in ledger.history(run))


def _ask(whose: Run | Sweep, job_ids: list[str], launcher: Launcher) -> tuple[dict[str, list[Allocation]] | None, str]:
    """What sacct knows of jobs, by job id, or why it was not asked or did not answer."""
    if launcher is Launcher.local:
        return None, "it runs without Slurm"
    if not job_ids:
        return None, "it has no job yet"
    environment = controller(whose)
    if environment is None:
        return None, f"the emulated {whose.cluster} is down" if whose.emulated else "an emulated cluster hides the real"
    try:
        lines = slurm.sacct(accounting.NAMES, job_ids, environment)
    except slurm.SlurmError as error:
        return None, str(error)
    by_job: dict[str, list[Allocation]] = {}
    for each in accounting.allocations(accounting.parse(lines)):
        by_job.setdefault(each.job_id, []).append(each)
    return by_job, ""


def asked(config: Config) -> Asked:
    """What a configuration asks for, and the most that it could have."""
    request = resolve(config)
    no_gpu = config.train.device is Device.cpu or not request.gpus_per_node
    return Asked(
        time=request.time,
        most_time=seconds(request.limits.max_time),
        grace=float(request.grace),
        memory_gb=config.job.memory_gb,
        node_memory_gb=request.node.memory_gb,
        gpu_memory_gb=0.0 if no_gpu else request.node.gpu_memory_gb,
        ranks_per_node=request.ranks_per_node,
        whole_nodes=config.cluster.exclusive,
    )


def training(run: Run, way: Asked) -> Training | None:
    """What a run's records say of where its time went; None if there are none."""
    from monitoring.history import History

    history = History(run.folder)
    history.refresh()
    sums = dict.fromkeys(("step_s", "checkpoint_s", "evaluation_s"), 0.0)
    lost = weighed = weight = peak = 0.0
    for stretch in history.stretches():
        for name in sums:
            if (column := stretch.metrics.get(name)) is not None:
                sums[name] += sum(column.values)
        if (steps := stretch.metrics.get("step_s")) is not None:
            took = dict(zip(steps.rows, steps.values, strict=True))
            lost += sum(value for row, value in took.items() if row >= stretch.kept)
            if (mfu := stretch.metrics.get("mfu")) is not None:
                for row, value in zip(mfu.rows, mfu.values, strict=True):
                    if value == value:  # a NaN would spoil the mean
                        weighed += value * took.get(row, 0.0)
                        weight += took.get(row, 0.0)
        if (memory := stretch.metrics.get("peak_memory_gib")) is not None:
            peak = max([peak, *memory.values])
    if not sums["step_s"]:
        return None
    on_gpu = way.gpu_memory_gb > 0 and not run.emulated
    gpu_util, kwh = _devices(run)
    return Training(
        step_seconds=sums["step_s"],
        lost_seconds=lost,
        checkpoint_seconds=sums["checkpoint_s"],
        evaluation_seconds=sums["evaluation_s"],
        mfu=weighed / weight if weight and on_gpu else None,
        peak_memory_gib=peak if peak and on_gpu else None,
        gpu_util=gpu_util,
        kwh=kwh,
    )


def _devices(run: Run) -> tuple[float | None, float | None]:
    """How much of the time the GPUs of a run ran a kernel, 0 to 1, and their kilowatt-hours, as their drivers say."""
    import numpy as np

    from monitoring import energy, layout
    from monitoring.ranks import DeviceFile, every_rank

    used, count = 0.0, 0

    def columns() -> Iterator[Columns]:
        nonlocal used, count
        for number in layout.attempt_numbers(run.folder):
            attempt = layout.attempt_folder(run.folder, number)
            for _, found in every_rank(attempt, DeviceFile, (*energy.METRICS, "gpu_util")):
                known = found.column("gpu_util")
                used, count = used + float(np.nansum(known)), count + int(np.isfinite(known).sum())
                yield found

    kwh = energy.kwh(columns())
    return used / count if count else None, kwh


def _join(trainings: Iterable[Training | None]) -> Training | None:
    known = [each for each in trainings if each is not None]
    if not known:
        return None
    rated = [(each.mfu, each.step_seconds) for each in known if each.mfu is not None]
    used = [(each.gpu_util, each.step_seconds) for each in known if each.gpu_util is not None]
    return Training(
        step_seconds=sum(each.step_seconds for each in known),
        lost_seconds=sum(each.lost_seconds for each in known),
        checkpoint_seconds=sum(each.checkpoint_seconds for each in known),
        evaluation_seconds=sum(each.evaluation_seconds for each in known),
        mfu=sum(m * s for m, s in rated) / sum(s for _, s in rated) if rated else None,
        peak_memory_gib=max((each.peak_memory_gib for each in known if each.peak_memory_gib), default=None),
        gpu_util=sum(u * s for u, s in used) / sum(s for _, s in used) if used else None,
        kwh=sum(each.kwh for each in known if each.kwh is not None) if any(each.kwh for each in known) else None,
    )
