"""What Slurm says of runs: one squeue a cluster, whatever the number of runs."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hpc import slurm, sweep
from hpc.config import Launcher
from hpc.departed import Departed
from hpc.runs import Run
from hpc.submit import target
from hpc.sweep import Sweep
from monitoring.job import NO_JOB, JobState


class Task(NamedTuple):
    """A run of a sweep that has not begun, and the array's task that will begin it."""

    run: Run
    job_id: str
    sweep: Sweep


def states(
    found: Iterable[Run],
    known: Mapping[Path, JobState] | None = None,
    tasks: Iterable[Task] = (),
    departed: Departed | None = None,
) -> Mapping[Path, JobState]:
    """The job of each run that is in Slurm's hands, by run folder; its state is NO_JOB if Slurm knows it no more.

    So it is of a run without Slurm whose supervisor was killed.

    Args:
        known: what was answered before; it stays, with its age, where Slurm does not answer now. No answer is not an
            empty queue.
        tasks: runs that have not begun are asked about with the others.
        departed: what is to ask the accounting how the jobs of runs ended that left the queue; None: nothing is.
    """
    by_cluster: dict[tuple[str, bool], list[tuple[Run, str, Run | Sweep]]] = {}
    result: dict[Path, JobState] = {}
    for run in found:
        job_id = run.job_id
        if job_id is None or run.state().get("state") in ("finished", "failed", "cancelled"):
            continue
        if job_id.startswith("local-") and local_lives(run) is False:
            result[run.folder] = JobState(job_id=job_id, state=NO_JOB, seen=time.time())
        if re.fullmatch(r"\d+(_\d+)?", job_id):
            by_cluster.setdefault((run.cluster, run.emulated), []).append((run, job_id, run))
    for run, job_id, of in tasks:
        by_cluster.setdefault((of.cluster, of.emulated), []).append((run, job_id, of))
    for (_, emulated), members in by_cluster.items():
        environment = controller(members[0][2])
        if environment is not None:
            result.update(_answered(members, environment, known or {}, departed))
        elif emulated:
            result.update({run.folder: _gone(job_id, emulated) for run, job_id, _ in members})
    return result


def _answered(
    members: Sequence[tuple[Run, str, Run | Sweep]],
    environment: Mapping[str, str],
    known: Mapping[Path, JobState],
    departed: Departed | None,
) -> dict[Path, JobState]:
    """What one Slurm says of jobs: of each the run, its id, and whose it is, the run's or a sweep's."""
    try:
        rows = slurm.queue([job_id for _, job_id, _ in members], environment, timeout=10)
    except slurm.SlurmError:
        folders = [run.folder for run, _, _ in members]
        return {folder: known[folder] for folder in folders if folder in known}
    result = {}
    for run, job_id, of in members:
        row = rows.get(job_id)
        ours = row is not None and (belongs(row, run) if of is run else _works_in(row, of.folder))
        emulated = of.emulated
        result[run.folder] = job_state(row, emulated=emulated) if row and ours else _gone(job_id, emulated)
    if departed is not None:
        left = [(run, job_id) for run, job_id, of in members if of is run and result[run.folder].over]
        for (folder, _), end in departed.ends(left, environment).items():
            result[folder] = replace(result[folder], state=end.state, ended=end.at)
    return result


def controller(run: Run | Sweep) -> Mapping[str, str] | None:
    """What Slurm's programs must find in their environment to speak to the cluster of a run or a sweep.

    None where its emulated cluster is down, or an emulated one hides the real one: to the Slurm that answers, the
    run's job id would be another job's.
    """
    environment = target(run.cluster, Launcher.slurm)
    return environment if bool(environment) == run.emulated else None


def belongs(row: slurm.QueueRow, run: Run) -> bool:
    """Whether a job is this run's and not another of its number, as on a cluster that was set up anew."""
    if _works_in(row, run.folder):
        return True
    of_sweep = sweep.of_run(run)  # whose arrays work in its folder
    return of_sweep is not None and _works_in(row, of_sweep)


def _works_in(row: slurm.QueueRow, folder: Path) -> bool:
    return not row.folder or Path(row.folder).resolve() == folder.resolve()


def local_lives(run: Run) -> bool | None:
    """Whether the supervisor of a run without Slurm lives; None where that cannot be seen from this machine."""
    if run.host != socket.gethostname():
        return None
    from hpc.processes import process_lives

    pid = (run.job_id or "").removeprefix("local-")
    return pid.isdecimal() and process_lives(int(pid), run.config_file.stat().st_mtime + 60)


def _gone(job_id: str, emulated: bool) -> JobState:
    return JobState(job_id=job_id, state=NO_JOB, emulated=emulated, seen=time.time())


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
