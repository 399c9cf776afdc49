"""Where each run of a sweep stands: from the folders of those that have begun, and one squeue for the others."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.config import Launcher
from hpc.errors import Failed
from hpc.listing import Row, read
from hpc.queue import controller
from hpc.sweep import Array, Sweep
from monitoring.job import OVER

POLL = 2.0  # seconds between two looks while waiting; each asks Slurm once
# Of these nothing more comes unless somebody asks for it.
ENDED = ("finished", "failed", "cancelled", "gone", "never began")


@dataclass(frozen=True)
class Standing:
    """One run of a sweep."""

    number: int
    run: str  # its id
    name: str
    state: str  # pending before it has begun; then as `hpc status` has it; "never began" if nothing will begin it
    reason: str
    step: int | None
    tokens: int | None
    folder: str
    changes: dict[str, Any]


def standings(sweep: Sweep) -> list[Standing]:
    """All runs of a sweep, by number.

    Raises:
        SlurmError: if there are runs that have not begun, and Slurm does not say what will become of them.
    """
    runs = [sweep.run(number) for number in range(len(sweep.members))]
    begun = [number for number, run in enumerate(runs) if run.config_file.exists()]
    rows = dict(zip(begun, read([runs[number] for number in begun]), strict=True))
    settled = {number for number, row in rows.items() if row.state in ("running", "finished", "failed", "cancelled")}
    jobs = tasks(sweep) if len(settled) < len(runs) else {}
    found = []
    for number, (run, member) in enumerate(zip(runs, sweep.members, strict=True)):
        row = rows.get(number)
        state, reason = _state(sweep, row, None if number in settled else jobs.get(number))
        step, tokens = (row.step, row.tokens) if row else (None, None)
        place = str(run.folder)
        found.append(Standing(number, run.id, member.name, state, reason, step, tokens, place, dict(member.changes)))
    return found


def _state(sweep: Sweep, row: Row | None, job: tuple[str, str] | None) -> tuple[str, str]:
    """State and reason of a run, by its own folder or the task of an array that will begin it, or go on with it."""
    if job is not None:
        return job
    if row is None:
        if sweep.cancelled:
            return "cancelled", "before it began"
        return "never began", "it was not submitted" if sweep.submitter else "its job is gone"
    if row.state == "queued":  # and no job is there to take it up
        return "gone", "its job is gone"
    return row.state, row.reason


def tasks(sweep: Sweep) -> dict[int, tuple[str, str]]:
    """What becomes of the tasks that are still in the queue, by number of the run."""
    if sweep.launcher is Launcher.local:
        alive = [array for array in sweep.arrays if array.job_id and local_lives(sweep, array.job_id)]
        return {number: ("pending", "the runs before it come first") for array in alive for number in array.runs}
    environment = controller(sweep)
    arrays = [] if environment is None else submitted(sweep, environment)
    if not arrays:
        return {}
    rows = slurm.queue([str(array.job_id) for array in arrays], environment)
    found: dict[int, tuple[str, str]] = {}
    for array in arrays:
        for number, job_id in array.jobs().items():
            row = rows.get(job_id)
            if row is not None and row.state not in OVER and _of(sweep, row):
                found[number] = row.state.lower(), "" if row.reason == "None" else row.reason
    return found


def submitted(sweep: Sweep, environment: Mapping[str, str]) -> list[Array]:
    """The arrays that Slurm was given. Whoever submitted them may have died before it wrote down the last one's id."""
    known = [array for array in sweep.arrays if array.job_id]
    unknown = [array for array in sweep.arrays if not array.job_id]
    if not unknown:
        return known
    queued = [row for row in slurm.queue(None, environment).values() if row.folder and _of(sweep, row)]
    mine = {row.job_id.partition("_")[0] for row in queued}
    lost = sorted(mine - {str(array.job_id) for array in known}, key=int)
    # They are submitted in their order, and each id is written down before the next one.
    return known + [replace(unknown[0], job_id=job_id) for job_id in lost[:1]]


def held(sweep: Sweep, environment: Mapping[str, str]) -> list[str]:
    """The arrays that wait for their release, by job id."""
    arrays = [str(array.job_id) for array in sweep.arrays if array.job_id]
    rows = slurm.queue(arrays, environment).values() if arrays else ()
    waiting = {row.job_id.partition("_")[0] for row in rows if row.reason == "JobHeldUser" and _of(sweep, row)}
    return [job_id for job_id in arrays if job_id in waiting]


def interrupted(sweep: Sweep) -> str | None:
    """That not all runs of a sweep were submitted, and what to type; None if they were."""
    who = sweep.submitter
    if who is None or sweep.cancelled:
        return None
    if who.lives():
        return f"it is just being submitted, by process {who.pid} on {who.host}"
    return (
        f"its submission was interrupted, and what is in the queue is held. To submit the rest and let all begin: "
        f"hpc sweep resume {sweep.id}; to give it up: hpc sweep cancel {sweep.id}"
    )


def drop_waiting(sweep: Sweep) -> None:
    """Take those tasks out of the queue that have not started."""
    environment = controller(sweep) if sweep.launcher is Launcher.slurm else None
    if environment is None:
        return  # without Slurm, whoever takes them in turn sees the marker
    arrays = [str(array.job_id) for array in submitted(sweep, environment)]
    rows = slurm.queue(arrays, environment).values() if arrays else ()
    waiting = {row.job_id.partition("_")[0] for row in rows if row.state == "PENDING" and _of(sweep, row)}
    for job_id in sorted(waiting):
        slurm.cancel_waiting(job_id, environment)


def _of(sweep: Sweep, row: slurm.QueueRow) -> bool:
    return not row.folder or Path(row.folder).resolve() == sweep.folder.resolve()


def local_lives(sweep: Sweep, job_id: str) -> bool:
    """Whether the process that takes the runs of a sweep in turn lives; from another machine it seems to."""
    from hpc.processes import process_lives

    if sweep.host != socket.gethostname():
        return True
    pid = job_id.removeprefix("local-")
    return pid.isdecimal() and process_lives(int(pid), sweep.manifest_file.stat().st_mtime + 60)


def wait(sweep: Sweep, say: Callable[[str], None]) -> list[Standing]:
    """Block until no run of the sweep goes on, saying how many are in which state. Returns where they stand then."""
    said = ""
    while True:
        began = time.monotonic()
        sweep = Sweep(sweep.folder)  # anew each time: another command may have added an array
        if (why := interrupted(sweep)) and not (sweep.submitter and sweep.submitter.lives()):
            raise Failed(f"{sweep.name}/{sweep.id}: {why}")
        try:
            now = standings(sweep)
        except slurm.SlurmError as error:  # no answer says nothing of the runs
            now, text = [], str(error)
        else:
            text = tally(now)
        if text != said:
            say(text)
            said = text
        if now and all(each.state in ENDED for each in now):
            return now
        time.sleep(max(POLL, 10 * (time.monotonic() - began)))  # a look at a thousand folders takes its time


def tally(found: list[Standing]) -> str:
    """How many runs are in which state, in words."""
    counts = Counter(each.state for each in found)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())
