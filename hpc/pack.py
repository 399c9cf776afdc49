"""Several runs of a sweep in one job, where a site gives only whole nodes.

The batch process is the parent of one supervisor for each run, which has its share of the node, its folder, its
attempts and its end as if it were alone. Only the parent queues the job again, once all of them have left: then those
go on that have not ended. A signal from Slurm goes to all of them, ``hpc cancel RUN`` to that one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import attempt, slurm, supervise
from hpc.allocation import TERM_PATIENCE, Ranks
from hpc.config import Config, GpuRequest
from hpc.errors import Failed
from hpc.processes import end_with_parent
from hpc.request import Request, resolve
from hpc.runs import Run
from hpc.script import rank_command, share_options, step_options
from hpc.slurm import SlurmError
from hpc.slurm_allocation import STEP_PATIENCE, SlurmAllocation, start_step
from hpc.supervisor import POLL, REPEAT, say
from hpc.sweep import Sweep

LOOK = 1.0  # seconds between two looks at who was cancelled
DEATHS = 2  # of a run's supervisor, after which the run is given up


@dataclass
class SharedAllocation(SlurmAllocation):
    """One run's part of a job that it shares with others."""

    place: int = 0  # among the runs of the node

    @classmethod
    def of(cls, run: Run, config: Config, request: Request, place: int) -> SharedAllocation:
        """The part of the job that this process is in, of the run at that place among those of the node."""
        found = cls.from_environment(config, request, run.folder)
        assert isinstance(found, cls)
        found.place = place
        return found

    def start(self, folder: Path, environment: Mapping[str, str]) -> Ranks:
        name = self.folder.name
        words = [*step_options(self.config, self.request, folder), *share_options(self.config, self.request, name)]
        command = ["srun", *words, *rank_command(self.config, self.folder)]
        env = {k: v for k, v in os.environ.items() if k not in attempt.PER_RANK} | self._gpus()
        return start_step(command, {**env, **environment}, folder, self.job_id, name)

    def clear(self) -> None:
        slurm.end_steps(self.job_id, STEP_PATIENCE, grace=TERM_PATIENCE, name=self.folder.name)

    def _gpus(self) -> dict[str, str]:
        """Where Slurm knows of no GPUs, nobody else deals them out."""
        each = self.request.gpus_per_node
        if self.config.cluster.gpu_request is not GpuRequest.none or not each:
            return {}
        mine = range(self.place * each, (self.place + 1) * each)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}

    def requeue(self, hold: int, exclude: Sequence[str]) -> str:
        if not self.config.cluster.slurm_from_compute:
            raise Failed(
                "no job may queue itself again here (cluster.slurm_from_compute=false). What was computed is saved; "
                f"from a login node type: hpc sweep resume {Path(self.folder).name.rpartition('.')[0]}"
            )
        return "ended"  # the parent sees by the run's state what it is to do


@dataclass
class Child:
    """The supervisor of one run."""

    run: Run
    config: Config
    place: int
    pid: int = 0
    deaths: int = 0
    told: bool = False  # that the run was cancelled


class Pack:
    """The runs of one task of an array, and the process that they share a job with."""

    def __init__(self, sweep: Sweep, number: int, array_id: str, task: int) -> None:
        self.sweep = sweep
        self.array = sweep.arrays[number]
        self.job_id = f"{array_id}_{task}"
        self.task = task
        self.asked: signal.Signals | None = None

    def main(self) -> int:
        """Supervise all runs until each has ended or the job was queued again. Returns the exit status."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        begun = [self.sweep.begin(number, self.job_id) for number in self.array.of_task(self.task)]
        runs = [run for run, _ in begun]
        children = [Child(run, config, place) for place, (run, config) in enumerate(begun) if not _over(run)]
        say(f"job {self.job_id}: {len(children)} runs share this node: {', '.join(each.run.id for each in children)}")
        for child in children:
            self._start(child)
        worst = self._watch(children)
        waiting = [run for run in runs if run.state().get("state") == "requeued" and not _over(run)]
        if waiting:
            return self._requeue(waiting)
        return worst

    def _on_signal(self, number: int, frame: object) -> None:
        if self.asked is not signal.SIGTERM:
            self.asked = signal.Signals(number)

    def _start(self, child: Child) -> None:
        # A fork shares all that is imported, which takes a supervisor most of its start.
        sys.stdout.flush()
        child.pid = os.fork()
        if child.pid:
            return
        status = 1
        try:
            end_with_parent(signal.SIGKILL)
            supervise.log_to(child.run)
            status = supervise.supervise(
                child.run,
                child.config,
                lambda run, config, request: SharedAllocation.of(run, config, request, child.place),
            )
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _watch(self, children: list[Child]) -> int:
        """Wait until all supervisors have left. Returns the worst exit status."""
        worst, alive = 0, list(children)
        next_look = forwarded = 0.0
        while alive:
            now = time.monotonic()
            for child in list(alive):
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid and not self._revived(child, os.waitstatus_to_exitcode(status)):
                    alive.remove(child)
                    worst = max(worst, abs(os.waitstatus_to_exitcode(status)))
            if self.asked and now >= forwarded + REPEAT:  # again and again: one that just starts may not hear it
                forwarded = now
                for child in alive:
                    os.kill(child.pid, self.asked)
            if now >= next_look:
                next_look = now + LOOK
                for child in alive:
                    self._end_cancelled(child)
            time.sleep(POLL)
        return worst

    def _revived(self, child: Child, status: int) -> bool:
        """A supervisor that was killed is started again, as long as the job goes on."""
        if status >= 0:
            return False
        say(f"the supervisor of {child.run.id} was ended by signal {-status}")
        child.deaths += 1
        if self.asked:
            child.run.set_state("requeued")
            return False
        if child.deaths > DEATHS:
            child.run.set_state("failed", reason=f"its supervisor was killed {child.deaths} times")
            return False
        self._start(child)
        return True

    def _end_cancelled(self, child: Child) -> None:
        if child.told or not child.run.cancelled:
            return
        child.told = True
        os.kill(child.pid, signal.SIGUSR2)
        if "now" in child.run.cancel_file.read_text(encoding="utf-8"):
            with contextlib.suppress(SlurmError):
                slurm.end_steps(self.job_id, 0.0, name=child.run.id)

    def _requeue(self, waiting: list[Run]) -> int:
        # From here on only SIGKILL ends this process: the requeue sends SIGTERM to it and to scontrol.
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        say(f"{len(waiting)} runs go on: {', '.join(run.id for run in waiting)}")
        config = waiting[0].config()
        try:
            if self._queued_again(config):
                return 0
            why = "Slurm did not take the requeue"
        except slurm.Forbidden as error:
            why = f"no requeue on this site ({error})"
        try:
            words = [f"--array={self.task}", f"--dependency=afterany:{self.job_id}"]
            successor = f"{slurm.sbatch(self.sweep.folder / self.array.script, None, *words)}_{self.task}"
        except SlurmError as error:
            why = f"{why}, nor a successor ({error}). What was saved is there; type: hpc sweep resume {self.sweep.id}"
            say(why)
            for run in waiting:
                run.set_state("failed", reason=why)
            return Failed.status
        say(f"{why}; job {successor} follows this one")
        for run in waiting:
            run.set_state("requeued", job_id=successor)
        return 0

    def _queued_again(self, config: Config) -> bool:
        whole = SlurmAllocation.from_environment(config, resolve(config), self.sweep.folder)
        return whole.queued_again(config.cluster.requeue_hold)


def _over(run: Run) -> bool:
    """Whether a run has ended, so that it is not started again with the others of its node."""
    return run.finished or run.state().get("state") in ("failed", "cancelled")
