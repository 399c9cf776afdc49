"""Faults that a person brings into a run of their own, to see it survive before they count on it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hpc import emulate, ledger, slurm
from hpc.errors import Failed, Refused
from hpc.ledger import Record
from hpc.queue import controller
from hpc.request import resolve
from hpc.runs import Run
from hpc.waiting import outcome
from monitoring.layout import recorded_ranks
from monitoring.tail import first_step, header

HELP = {
    "timeout": "the job's time limit is lowered, so that it is reached within two minutes",
    "preempt": "Slurm puts the job back into the queue at once, as it does with one that is preempted",
    "node-failure": "a node loses power (emulated clusters only: nodes of a site are not yours)",
    "kill-rank": "a rank is killed by SIGKILL",
    "hang": "a rank is stopped by SIGSTOP and does not go on",
    "oom": "a rank may have no more memory than it has now",
}


Found = TypeVar("Found")


@dataclass(frozen=True)
class Target:
    """A run under way, and the rank that is meant."""

    run: Run
    attempt: Record
    rank: int
    pid: int  # of the rank; 0 where no rank is needed
    node: str


def target(run: Run, rank: int | None, fault: str) -> Target:
    """
    Args:
        rank: null: the last one, which is not that which writes most records.

    Raises:
        Refused: if the run has no attempt under way, or no such rank that can be found.
    """
    attempts = ledger.history(run)
    if outcome(run) is not None or not attempts or attempts[-1].ended is not None:
        raise Refused(f"{run.name}/{run.id} has no attempt under way. See: hpc explain {run.id}")
    attempt = attempts[-1]
    if fault in ("timeout", "preempt"):
        return Target(run, attempt, -1, 0, "")
    rank = attempt.world_size - 1 if rank is None else rank
    if not 0 <= rank < attempt.world_size:
        raise Refused(f"--rank {rank}: the run has ranks 0 to {attempt.world_size - 1}")
    node = attempt.nodes[min(rank // resolve(run.config()).ranks_per_node, len(attempt.nodes) - 1)]
    if fault == "node-failure":
        return Target(run, attempt, rank, 0, node)
    folder = ledger.folder(run, attempt.number)
    found = header(folder, rank) if rank in recorded_ranks(folder) else None
    if found is None:
        raise Refused(f"rank {rank} has recorded nothing yet, so its process is not known. Try again in a moment")
    return Target(run, attempt, rank, int(found["pid"]), node)


def inject(fault: str, where: Target) -> str:
    """Bring a fault into a run. Returns what was done.

    Raises:
        Refused: if it cannot be had where the run is.
        Failed: if Slurm or the system does not do it.
    """
    return _FAULTS[fault](where)


def _timeout(where: Target) -> str:
    environment = _slurm(where, "timeout")
    config = where.run.config()
    told = slurm.job(str(where.run.job_id), environment)
    began = slurm.unix(told.get("StartTime", "")) or time.time()
    # Slurm counts in minutes, and signals up to one of them early.
    minutes = int((time.time() - began + config.job.grace) // 60) + 2
    slurm.set_time_limit(str(where.run.job_id), minutes, environment)
    return f"its time limit is {minutes} minutes now, and {config.job.grace} s before that it is asked to stop"


def _preempt(where: Target) -> str:
    environment = _slurm(where, "preempt")
    slurm.call(["scontrol", "requeue", str(where.run.job_id)], environment=environment)
    return "Slurm puts it back into the queue"


def _node_failure(where: Target) -> str:
    found = emulate.find(where.run.cluster) if where.run.emulated else None
    if found is None:
        raise Refused(
            "node-failure: only on an emulated cluster may a node be killed. Try: hpc emulate up, or kill-rank"
        )
    found.kill_node(where.node, report=True)
    return f"node {where.node} is dead. To bring it back: hpc emulate up cluster={where.run.cluster}"


def _signal(number: signal.Signals) -> Callable[[Target], str]:
    def send(where: Target) -> str:
        _on_node(where, ["kill", f"-{number.name.removeprefix('SIG')}", str(where.pid)])
        return f"{number.name} to rank {where.rank}, process {where.pid} on {where.node}"

    return send


def _oom(where: Target) -> str:
    # Of its address space: what it has stays, and the next block that it asks for is refused.
    _on_node(where, ["prlimit", f"--pid={where.pid}", "--as=1048576"])
    return f"rank {where.rank}, process {where.pid} on {where.node}, gets no more memory"


def _on_node(where: Target, words: list[str]) -> None:
    if where.attempt.job_id.startswith("local-"):
        subprocess.run(words, check=True, timeout=30)
        return
    slurm.on_node(str(where.run.job_id), where.node, words, _slurm(where, "this"))


def _slurm(where: Target, fault: str) -> dict[str, str]:
    if where.attempt.job_id.startswith("local-"):
        raise Refused(f"{fault}: this run has no Slurm. On this machine there are: kill-rank, hang, oom")
    environment = controller(where.run)
    if environment is None:
        raise Failed(f"the Slurm of {where.run.cluster} does not answer here")
    return dict(environment)


_FAULTS: dict[str, Callable[[Target], str]] = {
    "timeout": _timeout,
    "preempt": _preempt,
    "node-failure": _node_failure,
    "kill-rank": _signal(signal.SIGKILL),
    "hang": _signal(signal.SIGSTOP),
    "oom": _oom,
}


@dataclass(frozen=True)
class Recovery:
    """How a run came through: seconds since the fault."""

    cause: str
    evidence: str
    ended_s: float
    began_s: float | None = None  # the next attempt
    step_s: float | None = None  # its first step
    lost_steps: int | None = None


def recovery(where: Target, since: float, patience: float, tell: Callable[[str], None]) -> Recovery:
    """Wait until the attempt has ended and the next one trains.

    Args:
        since: unix time of the fault.
        patience: seconds.

    Raises:
        Failed: if the run stops, or nothing follows in time.
    """
    end = time.monotonic() + patience
    first = _until(lambda: _ended(where.run, where.attempt.number), end, where.run, "the attempt does not end")
    cause = f"{first.cause}: {first.evidence}"
    tell(f"{_after(first, since):6.1f} s  attempt {first.number} ended by {cause}; next: {first.action}")
    second = _until(lambda: _next(where.run, first.number), end, where.run, "no attempt follows")
    tell(f"{second.began - since:6.1f} s  attempt {second.number} began on {', '.join(second.nodes)}")
    stepped = _until(lambda: _stepped(where.run, second.number), end, where.run, "the next attempt makes no step")
    tell(f"{stepped - since:6.1f} s  its first step is done; {first.lost_steps or 0} steps were computed again")
    return Recovery(
        cause=str(first.cause),
        evidence=first.evidence,
        ended_s=_after(first, since),
        began_s=second.began - since,
        step_s=stepped - since,
        lost_steps=first.lost_steps,
    )


def _after(record: Record, since: float) -> float:
    return (record.ended or since) - since


def _ended(run: Run, number: int) -> Record | None:
    record = Record.read(ledger.folder(run, number))
    return record if record is not None and record.ended is not None and record.action else None


def _next(run: Run, number: int) -> Record | None:
    return next((record for record in ledger.history(run) if record.number > number), None)


def _stepped(run: Run, number: int) -> float | None:
    """When an attempt or one after it had done its first step: unix time."""
    for record in ledger.history(run):
        if record.number >= number and (first := first_step(ledger.folder(run, record.number))):
            return float(first["t"])
    return None


def _until(look: Callable[[], Found | None], end: float, run: Run, what: str) -> Found:
    while (found := look()) is None:
        if outcome(run) is not None:
            raise Failed(f"the run is {run.state().get('state')}: {run.state().get('reason') or 'see hpc explain'}")
        if time.monotonic() > end:
            raise Failed(f"{what}. See: hpc explain {run.id}")
        time.sleep(0.1)
    return found
