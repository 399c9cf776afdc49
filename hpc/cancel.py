"""Ending a run, or a sweep, so that no attempt follows."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from hpc import following, runs, slurm
from hpc.errors import Failed
from hpc.queue import belongs, controller, local_lives
from hpc.runs import Run, write_text
from hpc.sweep import Sweep
from hpc.waiting import outcome
from monitoring.job import OVER


def cancel(run: Run, *, now: bool) -> str:
    """Mark the run as cancelled, then end its job. Returns what was done, in words."""
    if outcome(run) is not None:
        return f"has ended already: {'finished' if run.finished else run.state().get('state')}"
    # The marker first: should this process die here, the run's next attempt ends by itself.
    try:
        write_text(run.cancel_file, f"{time.time()}{' now' if now else ''}\n")
    except OSError as error:
        raise runs.disk_failure(error, "mark the run as cancelled") from error
    job_id = run.job_id
    if job_id is None:
        run.set_state("cancelled", reason="before it was submitted")
        return "cancelled before it was submitted"
    if job_id.startswith("local-"):
        return _cancel_local(run, job_id, now)
    return _cancel_slurm(run, job_id, now)


def _cancel_local(run: Run, job_id: str, now: bool) -> str:
    if following.before(run) and run.state().get("state") == "queued":
        run.set_state("cancelled", reason="before it began")  # its process is that of the stages before it
        return "cancelled before it began"
    lives = local_lives(run)
    if lives is None:
        raise Failed(
            f"the run is on {run.host} and this is {socket.gethostname()}: it ends instead of its next attempt. "
            f"To end it at once, there type: hpc cancel {run.folder}"
        )
    try:
        if lives:
            # Ranks die with their supervisor.
            os.kill(int(job_id.removeprefix("local-")), signal.SIGKILL if now else signal.SIGTERM)
    except ProcessLookupError:
        lives = False
    if not lives:
        run.set_state("cancelled", reason="its supervisor was gone")
        return "cancelled; nothing was running"
    if now:
        run.set_state("cancelled", reason="hpc cancel --now")
        return "ended"
    return "asked to save and end"


def _cancel_slurm(run: Run, job_id: str, now: bool) -> str:
    environment = controller(run)
    if environment is None and not run.emulated:
        raise Failed(
            f"an emulated {run.cluster} is up here, and job {job_id} is the real one's. Type: "
            f"hpc emulate down cluster={run.cluster}; hpc cancel {run.id}"
        )
    row = None if environment is None else slurm.queue([job_id], environment).get(job_id)
    if row is None or row.state in OVER or not belongs(row, run):
        run.set_state("cancelled", reason="its job had left the queue")
        return "cancelled; its job had left the queue"
    if "_" in job_id and (run.config().job.runs_per_node or 1) > 1:
        # A signal to the job would reach the others of its node; who supervises them all sees the marker.
        if row.state == "RUNNING":
            return f"job {job_id}, which it shares with other runs, was asked to {'' if now else 'save and '}end it"
        run.set_state("cancelled", reason="hpc cancel")
        return f"cancelled; the other runs of job {job_id} go on"
    if row.state == "RUNNING" and not now:
        slurm.signal_batch(job_id, "USR2", environment)
        return f"job {job_id} was asked to save and end (at once: hpc cancel --now {run.id})"
    slurm.cancel(job_id, environment)
    for _ in range(50):
        # Leaving its nodes may take it as long as the site's KillWait.
        if slurm.in_queue(job_id, environment) in (None, "COMPLETING"):
            break
        time.sleep(0.2)
    else:
        raise Failed(
            f"job {job_id} is still in the queue after scancel; look with: squeue -j {job_id}. Should it start again, "
            "it will end without an attempt"
        )
    run.set_state("cancelled", reason="hpc cancel")
    return f"job {job_id} was cancelled"


def cancel_sweep(sweep: Sweep, *, now: bool) -> dict[str, str]:
    """End all runs of a sweep, and let none begin. Returns what was done with those that had begun, by id."""
    from hpc.standing import ENDED, drop_waiting, standings

    # The marker first: should this process die here, what has not begun ends as it begins.
    write_text(sweep.cancel_file, f"{time.time()}\n")
    told = {}
    for row in standings(sweep):
        run = Run(Path(row.folder))
        if row.state not in ENDED and run.config_file.exists():
            told[row.run] = cancel(run, now=now)
    drop_waiting(sweep)
    return told
