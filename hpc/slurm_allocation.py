"""A Slurm job that a supervisor runs in."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import attempt, exits, following, ledger, slurm
from hpc.allocation import TERM_PATIENCE, Ranks
from hpc.config import Config
from hpc.errors import Failed
from hpc.exits import SRUN_LOG, Exit, shell_status
from hpc.ledger import Record
from hpc.processes import end_with_parent
from hpc.request import Request
from hpc.requeue import Cause
from hpc.runs import Run
from hpc.script import rank_command, step_options
from hpc.slurm import SlurmError

SAFE_HOLD = 45  # seconds from SIGTERM to a start that no teardown outlasts: KillWait is 30 by default
EARLY = 75.0  # seconds by which a signal may come early: Slurm's manual says 60
COMPLETING_PATIENCE = 120.0  # seconds that an owner's job may take to leave its nodes
REQUEUE_PATIENCE = 3600.0  # seconds for which a controller that is away is asked again to requeue
SETTLE = 1.0  # seconds after a requeue at which Slurm is asked whether it stands; less than a requeue's hold
STEP_PATIENCE = 40.0  # seconds that a step may take to end: KillWait is 30 by default
HOLD_PATIENCE = 10.0  # seconds for which a requeued job is asked for an earlier start


class OutsideOfJob(Exception):
    """A supervisor of a run on Slurm was started by hand."""


@dataclass
class SlurmAllocation:
    config: Config
    request: Request
    folder: Path
    job_id: str
    restart_count: int
    nodes: list[str]
    ends: float

    @classmethod
    def from_environment(cls, config: Config, request: Request, folder: Path) -> SlurmAllocation:
        env = os.environ
        if "SLURM_JOB_ID" not in env:
            raise OutsideOfJob(
                f"a supervisor runs inside a Slurm job. Type: sbatch {shlex.quote(str(Run(folder).script))}"
            )
        job_id = env["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in env:
            # The last task's own id is that of the whole array: asking by it would requeue every task.
            job_id = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        return cls(
            config=config,
            request=request,
            folder=folder,
            job_id=job_id,
            restart_count=int(env.get("SLURM_RESTART_COUNT", "0")),
            nodes=slurm.hostnames(env["SLURM_JOB_NODELIST"]),
            ends=_end_of(job_id, config, request),
        )

    def start(self, folder: Path, environment: Mapping[str, str]) -> Ranks:
        command = [
            "srun",
            *step_options(self.config, self.request, folder),
            *rank_command(self.config, self.folder),
        ]
        env = {k: v for k, v in os.environ.items() if k not in attempt.PER_RANK}
        return start_step(command, {**env, **environment}, folder, self.job_id)

    def clear(self) -> None:
        if self.config.cluster.slurm_from_compute:
            # Its srun was told to stop, and the ranks by it: what they save is not lost.
            slurm.end_steps(self.job_id, STEP_PATIENCE, grace=TERM_PATIENCE)

    def owner_lives(self, run: Run, record: Record) -> bool:
        if record.ended is not None and record.action in ("end", "stop"):
            return False
        end = time.monotonic() + COMPLETING_PATIENCE
        try:
            # A job that is leaving its nodes has either ended or will be queued again: one must see which.
            while (state := self._in_queue(record.job_id)) == "COMPLETING" and time.monotonic() < end:
                time.sleep(1.0)
        except SlurmError:
            limit = ledger.STALE_SECONDS if record.ended is None else ledger.HELD_SECONDS
            return ledger.silent_for(run, record) < limit
        return state is not None

    def _in_queue(self, job_id: str) -> str | None:
        if not self.config.cluster.slurm_from_compute:
            raise SlurmError("Slurm is not to be asked from compute nodes here")
        return slurm.in_queue(job_id)

    def taken_away(self) -> str | None:
        if not self.config.cluster.slurm_from_compute:
            return None
        if down := self._down():
            return down
        # Should saving take all the time that Slurm gives, the job is at least not held for two minutes.
        with contextlib.suppress(SlurmError):
            slurm.start_at(self.job_id, SAFE_HOLD)
        return None

    def end_unbidden(self) -> tuple[Cause, str] | None:
        # srun may learn of a dead node or a cancelled job before this process does. A preemption with a grace time
        # may signal the ranks alone, which then save and leave by themselves.
        told, down = self._told_and_down()
        if down:
            return Cause.node_failure, down
        cause = self._verdict(told)
        return None if cause is None else (cause, f"the ranks ended, job state {told['JobState']}")

    def _verdict(self, told: Mapping[str, str]) -> Cause | None:
        """Why Slurm is ending the job, by what it says of it; None while it does not, or does not answer.

        Until its processes are gone a job is COMPLETING, whatever ended it. One that Slurm itself put back into the
        queue counts a restart more than this one was started with; one that a person cancelled does not.
        """
        state = told.get("JobState", "")
        restarts = told.get("Restarts", "")
        if slurm.unix(told.get("PreemptTime", "")) is not None:
            return Cause.preemption
        if restarts.isdecimal() and int(restarts) > self.restart_count:
            return Cause.preemption
        if state == "COMPLETING":
            late = self.ends - time.time() <= self.request.grace + EARLY
            return Cause.time_limit if late else Cause.cancelled
        known = {"CANCELLED": Cause.cancelled, "TIMEOUT": Cause.time_limit, "NODE_FAIL": Cause.node_failure}
        return known.get(state, Cause.preemption if state in ("PREEMPTED", "PENDING", "REQUEUED") else None)

    def _told(self) -> dict[str, str]:
        """What Slurm says of this job; nothing if it does not answer."""
        if self.config.cluster.slurm_from_compute:
            with contextlib.suppress(SlurmError):
                return slurm.job(self.job_id)
        return {}

    def _told_and_down(self) -> tuple[dict[str, str], str | None]:
        """What Slurm says of this job, then which of its nodes are down. In this order: a node is down before its
        job counts a restart, so a job that was put back for a dead node cannot look like a preempted one."""
        return self._told(), self._down()

    def _down(self) -> str | None:
        if not self.config.cluster.slurm_from_compute:
            return None
        here = os.environ.get("SLURMD_NODENAME")
        with contextlib.suppress(SlurmError):
            # This process runs, so its own node is up whatever a controller that was just started may believe.
            if down := [node for node in slurm.down_nodes(self.nodes) if node != here]:
                return f"node {', '.join(down)} is down"
        return None

    def cause_of_stop(self, reason: str, grace: float) -> tuple[Cause, str]:
        told, down = self._told_and_down()
        if reason == "SIGTERM" and down:
            return Cause.node_failure, down
        if (ends := slurm.unix(told.get("EndTime", ""))) is not None and told.get("JobState") == "RUNNING":
            self.ends = ends  # a person, or an administrator, may have changed the limit meanwhile
        left = self.ends - time.time()
        evidence = f"{reason} with {left:.0f} s left, job state {told.get('JobState', 'unknown')}"
        if cause := self._verdict(told):
            return cause, evidence
        if reason == "deadline" or left <= grace + EARLY:
            return Cause.time_limit, evidence
        return Cause.preemption, evidence

    def requeue(self, hold: int, exclude: Sequence[str]) -> str:
        # From here on only SIGKILL ends this process: the requeue sends SIGTERM to it and to scontrol.
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        script = Run(self.folder).script
        by_hand = f"sbatch {shlex.quote(str(script))}"
        if not self.config.cluster.slurm_from_compute:
            raise Failed(
                "no job may queue itself again here (cluster.slurm_from_compute=false). What was computed is saved; "
                f"from a login node type: {by_hand}"
            )
        try:
            if self.queued_again(hold, [*self._excluded(), *exclude] if exclude else []):
                return "ended"
            why = "Slurm did not take the requeue"
        except slurm.Forbidden as error:
            why = f"no requeue on this site ({error})"
        try:
            options = [f"--exclude={','.join([*self._excluded(), *exclude])}"] if exclude else []
            successor = slurm.sbatch(script, None, f"--dependency=afterany:{self.job_id}", *options)
        except SlurmError as error:
            raise Failed(f"{why}, nor a successor ({error}). What was saved is there; type: {by_hand}") from error
        print(f"{why}; job {successor} follows this one", flush=True)
        run = Run(self.folder)
        run.set_state("requeued", job_id=successor)
        following.repoint(run)  # before this job ends, which is what they wait for
        return "ended"

    def _excluded(self) -> list[str]:
        """What was asked for in the request, which an update would replace."""
        return [self.config.job.exclude] if self.config.job.exclude else []

    def queued_again(self, hold: int, exclude: Sequence[str] = ()) -> bool:
        """Requeue, however long the controller is away. A start can only be set for a job that waits: Slurm's taking
        that is the proof that the requeue came through, whatever its own answer was."""
        began = time.monotonic()
        queued, said, pause = False, "", 0.5
        while time.monotonic() < began + REQUEUE_PATIENCE:
            if not queued and slurm.requeue(self.job_id):
                queued, began, pause = True, time.monotonic(), 0.5
            try:
                slurm.start_at(self.job_id, hold, exclude)
                time.sleep(SETTLE)
                if not self._forgotten():
                    return True
                queued = False
            except SlurmError as error:
                if "node name" in error.stderr.lower():  # such as a node that the site took away meanwhile
                    exclude = ()
                if queued and self._forgotten():
                    queued = False
                elif queued and time.monotonic() > began + HOLD_PATIENCE:
                    return True  # it starts all the same, when Slurm's own hold is over
                if str(error) != said:
                    said = str(error)
                    print(f"could not set the start time yet: {said}", flush=True)
            time.sleep(pause)
            pause = pause if queued else min(10.0, pause * 1.5)
        return queued

    def _forgotten(self) -> bool:
        """Whether Slurm does not know that it took a requeue, or does not answer.

        A controller that dies before it wrote it down comes back believing that the job runs, and takes the end of this
        process for the end of the job.
        """
        try:
            told = slurm.job(self.job_id)
        except SlurmError:
            return True
        restarts = told.get("Restarts", "")
        counted = restarts.isdecimal() and int(restarts) > self.restart_count
        return told.get("JobState") == "RUNNING" and not counted


def _end_of(job_id: str, config: Config, request: Request) -> float:
    if config.cluster.slurm_from_compute:
        with contextlib.suppress(SlurmError):
            ends = slurm.unix(slurm.job(job_id).get("EndTime", ""))
            if ends is not None:
                return ends
    return time.time() + request.time


def start_step(
    command: list[str], environment: Mapping[str, str], folder: Path, job_id: str, name: str | None = None
) -> SlurmStep:
    """Start an srun. Its own words go to a file, where also a later supervisor finds them; it must not outlive this."""
    with (folder / SRUN_LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # srun then tells its ranks
        )
    return SlurmStep(process, job_id, folder / SRUN_LOG, name)


@dataclass
class SlurmStep:
    """The ranks behind one srun, which hands signals on to all of them."""

    process: subprocess.Popen[bytes]
    job_id: str
    log: Path
    name: str | None = None  # by which Slurm knows the ranks, where others share the job

    def poll(self) -> int | None:
        code = self.process.poll()
        return None if code is None else shell_status(code)

    def ask_to_stop(self) -> None:
        self.process.send_signal(signal.SIGUSR2)

    def end(self, *, now: bool) -> None:
        if not now:
            self.process.send_signal(signal.SIGTERM)
            return
        with contextlib.suppress(SlurmError):
            slurm.end_steps(self.job_id, 5.0, name=self.name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.process.kill()

    def exits(self) -> list[Exit]:
        return exits.of_srun(exits.tail(self.log))
