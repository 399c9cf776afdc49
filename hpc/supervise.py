"""The batch process of a run or of a sweep's task, and what it does before and after it supervises.

python -m hpc.supervise RUN_FOLDER              inside a job, or where there is no Slurm
python -m hpc.supervise --sweep FOLDER ARRAY    the run of a sweep that this task is
python -m hpc.supervise --turns RUN_FOLDER ...  without Slurm: one run after the other
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hpc import following, keeper, notify, slurm
from hpc.allocation import Allocation
from hpc.config import Config, Launcher
from hpc.errors import Failed, Refused
from hpc.local_allocation import LocalAllocation
from hpc.request import Request, resolve
from hpc.runs import Run, disk_failure
from hpc.slurm_allocation import OutsideOfJob, SlurmAllocation
from hpc.supervisor import Supervisor, say
from hpc.sweep import Sweep


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    if argv[0] == "--turns":
        return max(_own_supervisor(Run(Path(folder))) for folder in argv[1:])
    return _task(Path(argv[1]), int(argv[2])) if argv[0] == "--sweep" else supervise(Run(Path(argv[0])))


def _task(folder: Path, number: int) -> int:
    """The task of a sweep's array that this job is: its run begins, or goes on, in a folder of its own."""
    found = Sweep(folder)
    if found.cancelled:
        say("the sweep was cancelled")
        return 0
    try:
        if "SLURM_ARRAY_TASK_ID" not in os.environ:
            return _in_turn(found, number)
        array_id, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
        if found.arrays[number].per_task > 1:
            from hpc.pack import Pack

            return Pack(found, number, array_id, task).main()
        run, config = found.begin(found.arrays[number].runs[task], f"{array_id}_{task}")
        log_to(run)
        _drop_empty(found.logs / f"{array_id}_{task}.log")
    except (Refused, Failed) as error:
        say(str(error))
        return error.status
    except OSError as error:
        failure = disk_failure(error, "write the run's folder")
        say(str(failure))
        return failure.status
    return supervise(run, config)


def _in_turn(sweep: Sweep, number: int) -> int:
    """Without Slurm: one run after the other, each with a supervisor of its own."""
    worst = 0
    for run_number in sweep.arrays[number].runs:
        if sweep.cancelled:
            break
        run, _ = sweep.begin(run_number, None)
        worst = max(worst, _own_supervisor(run))
    return worst


def _own_supervisor(run: Run) -> int:
    with run.log.open("ab") as log:
        command = [sys.executable, "-P", "-u", "-m", "hpc.supervise", str(run.folder)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False)
    return done.returncode


def log_to(run: Run) -> None:
    """From here on this process works, and prints, in the run's folder."""
    os.chdir(run.folder)
    with run.log.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def _drop_empty(before: Path) -> None:
    with contextlib.suppress(OSError):
        if before.stat().st_size == 0:
            before.unlink()


def _allocation(run: Run, config: Config, request: Request) -> Allocation:
    """The allocation that this process is the supervisor of."""
    if config.cluster.launcher is Launcher.local:
        return LocalAllocation(config, request, run.folder)
    return SlurmAllocation.from_environment(config, request, run.folder)


def supervise(
    run: Run, config: Config | None = None, place: Callable[[Run, Config, Request], Allocation] | None = None
) -> int:
    """Supervise a run to its end, or until its job was queued again. Returns the exit status.

    Args:
        config: the run's, where it has been read already.
        place: what finds the allocation that this process is in, unless it is as the cluster says.
    """
    try:
        config = config or run.config()
        if not run.cancelled and (early := following.unfinished(run)) is not None:
            return _too_early(run, config, early)
        allocation = (place or _allocation)(run, config, resolve(config))
        return Supervisor(run, config, allocation).main()
    except (Refused, Failed) as error:
        say(str(error))
        run.set_state("failed", reason=str(error))
        _notify(run)
        following.give_up(run)
        return error.status
    except OutsideOfJob as error:
        say(str(error))  # and not into the run's state: the run may well be alive in its job
        return Refused.status
    except OSError as error:
        failure = disk_failure(error, "keep the run's records")
        say(str(failure))
        with contextlib.suppress(OSError):
            run.set_state("failed", reason=str(failure))
            _notify(run)
            following.give_up(run)
        return failure.status


def _notify(run: Run) -> None:
    with contextlib.suppress(Refused, OSError):  # its configuration may be what is wrong
        notify.ended(run, run.config(), say)


def _too_early(run: Run, config: Config, before: Run) -> int:
    """Started although a run before this one has not finished: wait for it again, or end with it.

    Raises:
        Failed: if nothing is to be waited for.
    """
    waits = following.goes_on(before) and config.cluster.launcher is Launcher.slurm
    if not waits or not config.cluster.slurm_from_compute:
        raise Failed(following.why(before))
    job_id = slurm.sbatch(run.script, None, *following.dependency(run))
    say(f"{before.name}/{before.id} goes on; job {job_id} waits for it")
    run.set_state("queued", job_id=job_id)
    following.repoint(run)
    return 0


if __name__ == "__main__":
    sys.exit(keeper.keep(lambda: main(sys.argv[1:])))
