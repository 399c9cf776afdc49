"""What a supervisor runs in: a Slurm job, or this machine. The edge between its decisions and the world."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpc import attempt, exits, following, ledger, slurm
from hpc.config import Config, Launcher
from hpc.errors import Failed
from hpc.exits import SRUN_LOG, Exit
from hpc.ledger import Record
from hpc.request import Request
from hpc.requeue import Cause
from hpc.runs import Run
from hpc.script import rank_command, step_options
from hpc.slurm import SlurmError
from monitoring.layout import rank_log

# Seconds from SIGTERM to a start that no teardown outlasts: KillWait is 30 by default.
SAFE_HOLD = 45
EARLY = 75.0  # seconds by which a signal may come early: Slurm's manual says 60
COMPLETING_PATIENCE = 120.0  # seconds that an owner's job may take to leave its nodes
REQUEUE_PATIENCE = 3600.0  # seconds for which a controller that is away is asked again to requeue
TERM_PATIENCE = 24.0  # seconds for ranks to save after SIGTERM, of the 30 that Slurm's KillWait gives
STEP_PATIENCE = 40.0  # seconds that a step may take to end: KillWait is 30 by default
SETTLE = 1.0  # seconds after a requeue at which Slurm is asked whether it stands; less than a requeue's hold
HOLD_PATIENCE = 10.0  # seconds for which a requeued job is asked for an earlier start


class OutsideOfJob(Exception):
    """A supervisor of a run on Slurm was started by hand."""


class Ranks(Protocol):
    """All ranks of one attempt, started."""

    def poll(self) -> int | None:
        """None while any rank runs; then the exit status (128 + n for a signal n), 0 only if all ended with 0."""
        ...

    def ask_to_stop(self) -> None:
        """Send USR2 to every rank."""
        ...

    def end(self, *, now: bool) -> None:
        """End every rank: SIGTERM, or SIGKILL if ``now``."""
        ...

    def exits(self) -> list[Exit]:
        """Once all ended: those that did not end well."""
        ...


class Allocation(Protocol):
    """What a supervisor needs to know of, and do with, the place it runs in."""

    job_id: str
    restart_count: int
    nodes: list[str]
    ends: float  # unix time; inf if unlimited

    def start(self, folder: Path, environment: Mapping[str, str]) -> Ranks: ...

    def owner_lives(self, run: Run, record: Record) -> bool: ...

    def cause_of_stop(self, reason: str, grace: float) -> tuple[Cause, str]: ...

    def taken_away(self) -> str | None:
        """Called once on SIGTERM: Slurm ends the job. Returns why ranks cannot save any more, None if they can."""
        ...

    def end_unbidden(self) -> tuple[Cause, str] | None:
        """Why ranks ended although nobody asked this process to stop; None if the allocation is as it was."""
        ...

    def clear(self) -> None:
        """End what a supervisor that was killed in this allocation left behind.

        Raises:
            Failed: if it does not end.
        """
        ...

    def requeue(self, hold: int, exclude: Sequence[str]) -> str:
        """Queue again, not to start on the nodes of ``exclude``.

        Returns "ended" where

        Raises:
            Failed: if nothing will start this run again.
        """
        ...


def of(run: Run, config: Config, request: Request) -> Allocation:
    """The allocation that this process is the supervisor of."""
    if config.cluster.launcher is Launcher.local:
        return LocalAllocation(config, request, run.folder)
    return SlurmAllocation.from_environment(config, request, run.folder)


# -- Slurm -------------------------------------------------------------------------------------------------------


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
        return None if code is None else _status(code)

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


# -- this machine ------------------------------------------------------------------------------------------------


@dataclass
class LocalAllocation:
    config: Config
    request: Request
    folder: Path
    job_id: str = field(default_factory=lambda: f"local-{os.environ.get(attempt.KEEPER, os.getpid())}")
    restart_count: int = 0
    nodes: list[str] = field(default_factory=lambda: [socket.gethostname()])
    ends: float = math.inf

    def __post_init__(self) -> None:
        self.ends = time.time() + self.request.time

    def start(self, folder: Path, environment: Mapping[str, str]) -> Ranks:
        size = self.request.world_size
        command = rank_command(self.config, self.folder)
        processes = []
        for rank in range(size):
            identity = {
                attempt.RANK: str(rank),
                attempt.WORLD_SIZE: str(size),
                attempt.LOCAL_RANK: str(rank),
                attempt.NODE: self.nodes[0],
            }
            with rank_log(folder, rank).open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **environment, **identity},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
                    )
                )
        return LocalRanks(processes)

    def owner_lives(self, run: Run, record: Record) -> bool:
        if record.ended is not None and record.action in ("end", "stop"):
            return False
        if record.host != socket.gethostname():
            return ledger.silent_for(run, record) < ledger.STALE_SECONDS
        return process_lives(record.pid, record.began)

    def taken_away(self) -> str | None:
        return None

    def end_unbidden(self) -> tuple[Cause, str] | None:
        return None

    def cause_of_stop(self, reason: str, grace: float) -> tuple[Cause, str]:
        if reason == "deadline":
            return Cause.time_limit, f"job.time={self.config.job.time} is used up"
        return Cause.cancelled, f"{reason} to the supervisor"

    def clear(self) -> None:
        """Nothing: ranks here end with their supervisor."""

    def requeue(self, hold: int, exclude: Sequence[str]) -> str:
        self.ends = time.time() + self.request.time
        self.restart_count += 1
        return "here"


@dataclass
class LocalRanks:
    """The ranks as processes of this machine; when one fails the others are ended, which would wait for ever."""

    processes: list[subprocess.Popen[bytes]]
    failed: tuple[int, float] | None = None  # exit status of the first that failed, monotonic time
    first: frozenset[int] = frozenset()  # ranks that had failed when the first failure was seen

    def poll(self) -> int | None:
        codes = [process.poll() for process in self.processes]
        if any(codes) and self.failed is None:
            self.failed = (max(_status(code) for code in codes if code), time.monotonic())
            self.first = frozenset(rank for rank, code in enumerate(codes) if code)
        if any(code is None for code in codes):
            if self.failed is not None:
                self.end(now=time.monotonic() - self.failed[1] > 5)
            return None
        return 0 if self.failed is None else self.failed[0]

    def ask_to_stop(self) -> None:
        self._send(signal.SIGUSR2)

    def end(self, *, now: bool) -> None:
        self._send(signal.SIGKILL if now else signal.SIGTERM)

    def exits(self) -> list[Exit]:
        codes = [process.poll() for process in self.processes]
        return [Exit(rank, _status(code), "", rank in self.first) for rank, code in enumerate(codes) if code]

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _status(code: int) -> int:
    """A shell's exit status: 128 + n for signal n."""
    return 128 - code if code < 0 else code


def end_with_parent(number: signal.Signals) -> None:
    """For a child process: should its parent be killed, it is sent this signal (Linux)."""
    ctypes.CDLL(None).prctl(1, number)


def process_lives(pid: int, began: float) -> bool:
    """Whether a process that existed at unix time ``began`` still runs, and is not another one with its number."""
    import psutil

    try:
        process = psutil.Process(pid)
        # A child that ended and was not waited for still has its number.
        return process.create_time() <= began + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
