"""Blocking until a run has ended, by its own files; Slurm is asked only now and then, in case nothing writes them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from hpc import slurm
from hpc.config import Launcher
from hpc.errors import Failed
from hpc.runs import Run

ENDED = {"finished": 0, "failed": 1, "cancelled": 1}
ASK_SLURM_EVERY = 30.0  # seconds


def outcome(run: Run) -> int | None:
    """The exit status of a run that has ended; None while it may go on.

    Raises:
        Failed: if its folder is gone.
    """
    if not run.config_file.exists():
        raise Failed(f"the run folder {run.folder} is gone, or is no longer one")
    if run.finished:
        return 0
    return ENDED.get(run.state().get("state", ""))


def wait(run: Run, *, quiet: bool = False, poll: float = 0.2, timeout: float | None = None) -> int:
    """Block until the run has ended. Returns 0 if it finished, 1 if it failed or was cancelled.

    Args:
        quiet: say nothing but errors.
        poll: seconds between two looks at the run folder.
        timeout: seconds after which nobody waits any longer.

    Raises:
        TimeoutError: if the run has not ended by then.
    """
    said = ""
    end = None if timeout is None else time.monotonic() + timeout
    gone = Gone(run)
    while (code := outcome(run)) is None:
        line = _line(run)
        if not quiet and line != said:
            print(line, file=sys.stderr, flush=True)
            said = line
        if gone():
            raise Failed(
                f"job {run.job_id} of {run.name}/{run.id} left the queue and the run has not ended. "
                f"Its log: hpc logs {run.id}"
            )
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"{run.name}/{run.id} has not ended within {timeout:g} s")
        time.sleep(poll)
    settle(run, poll)
    if not quiet:
        print(_line(run), file=sys.stderr, flush=True)
    return code


def settle(run: Run, poll: float = 0.2, patience: float = 10.0) -> None:
    """Rank 0's marker comes a moment before the supervisor's last word; nothing should run after a wait."""
    end = time.monotonic() + patience
    while run.state().get("state") not in ENDED and time.monotonic() < end:
        time.sleep(poll)


def _line(run: Run) -> str:
    state = run.state()
    text = f"{run.name}/{run.id} {'finished' if run.finished else state.get('state', 'unknown')}"
    if "attempt" in state:
        text += f", attempt {state['attempt']}"
    return f"{text}: {state['reason']}" if state.get("reason") else text


class Gone:
    """Whether a run's job has vanished without a word: asked rarely, and only a clear answer counts."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lives: Callable[[], bool] = _liveness(run)
        self.next_look = time.monotonic() + ASK_SLURM_EVERY / 3
        self.misses = 0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + ASK_SLURM_EVERY / (3 if self.misses else 1)
        # Twice in a row: a job may be between the queue's answer and its own last word.
        self.misses = 0 if self.lives() else self.misses + 1
        return self.misses >= 2


def _liveness(run: Run) -> Callable[[], bool]:
    from hpc.queue import controller, local_lives

    if run.config().cluster.launcher is Launcher.local:
        return lambda: local_lives(run) is not False

    def queued() -> bool:
        environment = controller(run)
        if environment is None:
            return not run.emulated
        try:
            return run.job_id is None or slurm.in_queue(run.job_id, environment) is not None
        except slurm.SlurmError:
            return True

    return queued
