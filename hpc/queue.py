"""What Slurm says of runs: one squeue a cluster, whatever the number of runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpc import slurm
from hpc.config import Launcher
from hpc.runs import Run
from hpc.submit import target
from monitoring.snapshot import JobState


def states(found: Iterable[Run], known: Mapping[Path, JobState] | None = None) -> Mapping[Path, JobState]:
    """The job of each run that Slurm knows, by run folder. Runs on this machine are told by their own files.

    Args:
        known: what was answered before; it stays, with its age, where Slurm does not answer now. No answer is not an
            empty queue.
    """
    by_cluster: dict[str, list[Run]] = {}
    result: dict[Path, JobState] = {}
    for run in found:
        job_id = run.job_id
        if job_id is None or run.state().get("state") in ("finished", "failed", "cancelled"):
            continue
        if job_id.startswith("local-"):
            continue
        by_cluster.setdefault(str(run.state().get("cluster", "")), []).append(run)
    for cluster, members in by_cluster.items():
        environment = target(cluster, Launcher.slurm)
        try:
            rows = slurm.queue([str(run.job_id) for run in members], environment, timeout=10)
        except slurm.SlurmError:
            result.update({run.folder: known[run.folder] for run in members if known and run.folder in known})
            continue
        for run in members:
            row = rows.get(str(run.job_id))
            if row is not None:
                result[run.folder] = job_state(row, emulated=bool(environment))
    return result


def job_state(row: slurm.QueueRow, *, emulated: bool) -> JobState:
    """A row of squeue as the monitor takes it."""
    return JobState(
        job_id=row.job_id,
        state=row.state,
        reason=row.reason,
        nodes=row.node_list,
        submitted=slurm.unix(row.submitted),
        started=slurm.unix(row.started),
        ends=slurm.unix(row.ends),
        emulated=emulated,
        seen=time.time(),
    )
