"""Runs that begin when others have finished, such as the stages of a pipeline.

A run's manifest names those before it (``after``), and the folder of each of these names those that follow. Slurm is
told by ``--dependency=afterok``, which says little: a run that was cancelled ends well for Slurm, and a job that gives
its run to a successor ends too. So a run that is started looks for itself whether those before it are FINISHED.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from hpc import slurm
from hpc.errors import Failed
from hpc.runs import Run, read_json, write_json
from hpc.slurm import SlurmError
from hpc.waiting import outcome

FILE = "followers.json"
PATIENCE = 15.0  # seconds for which a file system may not show yet that a run has finished


def before(run: Run) -> list[Run]:
    """The runs that must have finished before this one begins."""
    return _runs((read_json(run.manifest_file) or {}).get("after"))


def followers(run: Run) -> list[Run]:
    """The runs that begin after this one."""
    return _runs((read_json(run.folder / FILE) or {}).get("runs"))


def note(run: Run, following: Sequence[Run]) -> None:
    """Write down which runs begin after this one."""
    write_json(run.folder / FILE, {"runs": [str(each.folder) for each in following]})


def _runs(folders: object) -> list[Run]:
    return [Run(Path(each)) for each in folders if isinstance(each, str)] if isinstance(folders, list) else []


def jobs_before(run: Run) -> list[str]:
    """The jobs that this run's job has to wait for."""
    return [str(each.job_id) for each in before(run) if not each.finished and each.job_id]


def dependency(run: Run) -> list[str]:
    """What sbatch is told beside the run's script."""
    jobs = jobs_before(run)
    # Without the second a job whose dependency cannot be met any more stays in the queue for ever.
    return [f"--dependency=afterok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes"] if jobs else []


def repoint(run: Run) -> None:
    """Have the jobs that wait for a run wait for its newest one."""
    for each in followers(run):
        if each.job_id and not _begun(each):
            # Should it fail, the follower starts, sees that this run goes on, and queues itself again.
            with contextlib.suppress(SlurmError):
                slurm.depend(each.job_id, jobs_before(each))


def unfinished(run: Run) -> Run | None:
    """The first of the runs before this one that has not finished; None if all have, or this one has begun already."""
    if _begun(run):
        return None
    end = time.monotonic() + PATIENCE
    while (found := next((each for each in before(run) if not _finished(each)), None)) is not None:
        if time.monotonic() > end or _outcome(found) == 1:
            return found
        time.sleep(0.5)
    return None


def _finished(run: Run) -> bool:
    # Listing the folder makes network file systems look again instead of answering from memory.
    with contextlib.suppress(OSError):
        return run.finished_file.name in {path.name for path in run.folder.iterdir()}
    return False


def goes_on(run: Run) -> bool:
    """Whether a run that has not finished may still do so."""
    return _outcome(run) is None


def _outcome(run: Run) -> int | None:
    try:
        return outcome(run)
    except Failed:  # its folder is gone
        return 1


def _begun(run: Run) -> bool:
    try:
        return any(run.attempts.iterdir())
    except OSError:
        return False


def why(run: Run) -> str:
    """Why those after a run do not begin."""
    stage = (read_json(run.manifest_file) or {}).get("stage") or f"{run.name}/{run.id}"
    if not run.config_file.exists():
        return f"stage {stage} did not finish: its folder {run.folder} is gone"
    state = run.state()
    reason = f": {state['reason']}" if state.get("reason") else ""
    return f"stage {stage} did not finish: it is {state.get('state', 'unknown')}{reason}"


def give_up(run: Run) -> None:
    """Have the runs after one that ended unfinished say that they will not begin, and those after them."""
    if run.finished or goes_on(run):
        return
    for each in followers(run):
        if not _begun(each) and each.config_file.exists() and each.state().get("state") == "queued":
            with contextlib.suppress(OSError):
                each.set_state("failed", reason=why(run))
            give_up(each)
