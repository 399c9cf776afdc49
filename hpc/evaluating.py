"""While a run trains: each checkpoint that is kept is given to a job of its own that evaluates it.

A command does it, in a process of its own: Slurm may take its time, and the supervisor has signals to hand on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from hpc import evaluations, slurm
from hpc.config import Config, Launcher, TrainJob
from hpc.runs import Run
from trainer import checkpoint_folder as checkpoints

EVERY = 2.0  # seconds between two looks at the folder of checkpoints
AT_ONCE = 2  # commands under way
TRIES = 3  # of one checkpoint; then a person is told what to type
PAUSE = 60.0  # seconds before the next try
LAST = 30.0  # seconds that the commands under way are given when the run has finished


class Evaluating:
    """Has the checkpoints of one run evaluated. ``look`` takes no time; call it often.

    Args:
        say: writes a line into the run's log.
    """

    def __init__(self, run: Run, config: Config, say: Callable[[str], None]) -> None:
        self.run = run
        self.config = config
        self.say = say
        self.wanted = isinstance(config.job, TrainJob) and config.job.evaluate_checkpoints
        self.by_hand = f"hpc evaluate {run.id} --missing"
        self._next = 0.0
        self._tries: dict[int, tuple[int, float]] = {}  # by step: how many, and when the next may be
        self._under_way: dict[int, subprocess.Popen[bytes]] = {}
        self._done: set[int] = set()

    def look(self) -> None:
        """Start what is due."""
        now = time.monotonic()
        if not self.wanted or now < self._next:
            return
        self._next = now + EVERY
        self._advance(now, last=False)

    def finish(self, asked: Callable[[], object]) -> None:
        """The run has finished: also its last checkpoint, which stays. Waits a little for the commands under way.

        Args:
            asked: whether this process has to leave.
        """
        end = time.monotonic() + LAST
        while self.wanted and not asked() and time.monotonic() < end:
            self._advance(time.monotonic(), last=True)
            if not self._under_way:
                return
            time.sleep(0.1)

    def _advance(self, now: float, *, last: bool) -> None:
        self._reap()
        due = self._due(now, last=last)
        cluster = self.config.cluster
        if due and cluster.launcher is Launcher.slurm and not cluster.slurm_from_compute:
            self.wanted = False
            self.say(f"compute nodes may not submit here; to evaluate its checkpoints type: {self.by_hand}")
            return
        for step in due:
            self._start(step, now)

    def _due(self, now: float, *, last: bool) -> list[int]:
        try:
            steps = checkpoints.complete_steps(self.run.checkpoints)
        except OSError:
            return []
        every = self.config.train.checkpoint.keep_every
        kept = [step for step in steps if not every or step % every == 0 or (last and step == steps[-1])]
        due = [step for step in kept if step not in self._done and step not in self._under_way]
        known = {step for step in due if evaluations.submitted(self.run, step) or evaluations.read(self.run, step)}
        self._done |= known
        ready = [step for step in due if step not in known and self._tries.get(step, (0, 0.0))[1] <= now]
        return ready[: AT_ONCE - len(self._under_way)]

    def _start(self, step: int, now: float) -> None:
        tries = self._tries.get(step, (0, 0.0))[0] + 1
        self._tries[step] = tries, now + PAUSE
        self.say(f"checkpoint of step {step}: submitting its evaluation")
        command = [sys.executable, "-P", "-m", "hpc", "evaluate", str(self.run.folder), "--step", str(step)]
        try:  # its output goes where this process's does: the run's log
            self._under_way[step] = subprocess.Popen(
                command, env=slurm.clean_environment(), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
            )
        except OSError as error:
            self.say(f"could not start it: {error}")

    def _reap(self) -> None:
        for step, process in list(self._under_way.items()):
            code = process.poll()
            if code is None:
                continue
            del self._under_way[step]
            if code == 0:
                self._done.add(step)
            elif code == 2 or self._tries[step][0] >= TRIES:  # refused: it would be again
                self._done.add(step)
                self.say(f"the evaluation of step {step} could not be submitted. To try it again: {self.by_hand}")
