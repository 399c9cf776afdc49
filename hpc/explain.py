"""Why a run waits, goes on or died, in sentences, and what to type. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpc.ledger import Record
from hpc.requeue import Cause, fruitless
from monitoring.words import duration

if TYPE_CHECKING:
    from monitoring.job import JobState

# What squeue gives as the reason for a job that waits, in words; "never" for those that no waiting helps.
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("BeginTime", "it may not start before its start time", ""),
    ("Priority", "jobs of a higher priority come first", ""),
    ("Resources", "the nodes that it asks for are not free yet", ""),
    ("PartitionTimeLimit", "it asks for more time than the partition gives", "never"),
    ("PartitionNodeLimit", "it asks for more, or fewer, nodes than the partition gives", "never"),
    ("DependencyNeverSatisfied", "a job that it depends on ended otherwise than it needs", "never"),
    ("Dependency", "a job that it depends on has not ended", ""),
    ("BadConstraints", "no node has what job.constraint asks for", "never"),
    ("JobHeldUser", "somebody held it: scontrol release {job}", ""),
    ("JobHeldAdmin", "an administrator held it: ask them", ""),
    ("ReqNodeNotAvail", "a node that it needs is down, drained or reserved", ""),
    ("Reservation", "its reservation has not begun", ""),
    ("PartitionDown", "the partition is down", ""),
    ("PartitionInactive", "the partition is inactive", ""),
    ("NodeDown", "a node that it needs is down", ""),
    ("JobArrayTaskLimit", "job.throttle lets no more runs of its sweep run at once", ""),
    ("Licenses", "it waits for a licence", ""),
    ("QOSMaxWall", "it asks for more time than its QoS gives", "never"),
    ("AssocMaxWall", "it asks for more time than its account gives", "never"),
    ("QOS", "a limit of its QoS is reached", ""),
    ("Assoc", "a limit of its account is reached", ""),
    ("MaxJobsPerUser", "as many of your jobs run as may", ""),
    ("launch failed", "starting it failed and Slurm holds it: scontrol release {job}", ""),
)


@dataclass(frozen=True)
class Explanation:
    """What is to be said of a run."""

    sentences: list[str]
    attempts: list[str] = field(default_factory=list)  # a line for each
    commands: list[tuple[str, str]] = field(default_factory=list)  # what to type, and what it does


@dataclass(frozen=True)
class Subject:
    """The run as its own folder and Slurm show it."""

    id: str
    state: str  # as hpc status says it
    reason: str
    ended: bool
    cancelling: bool = False
    command: bool = False  # a program of one's own, which settings of the trainer do not reach


def explain(run: Subject, attempts: Sequence[Record], job: JobState | None, now: float | None = None) -> Explanation:
    """Sentences, a line for each attempt, and commands, for one run.

    Args:
        job: what Slurm says of its newest job; None where it has none or does not answer.
        now: unix time.
    """
    now = time.time() if now is None else now
    sentences = [*_state(run, attempts, job, now), *_progress(attempts)]
    return Explanation(sentences, [_line(record) for record in attempts], list(_commands(run, attempts, job)))


def _state(run: Subject, attempts: Sequence[Record], job: JobState | None, now: float) -> Iterator[str]:
    last = attempts[-1] if attempts else None
    if run.state == "finished":
        yield f"{run.id} is finished."
    elif run.ended:
        yield f"{run.id} is {run.state}{f': {run.reason}' if run.reason else ''}."
    elif job is not None and job.state == "PENDING":
        since = f" since {duration(now - job.submitted)}" if job.submitted else ""
        yield f"{run.id} waits{since}: {reason(job.reason, job.job_id)[0]}."
        if job.started and job.started > now:
            yield f"Slurm expects it to start in {duration(job.started - now)}."
        if last is not None and last.ended:
            yield f"It was queued again after attempt {last.number}: {last.reason or last.cause}."
    elif run.state == "gone":
        yield f"{run.id} is gone: {run.reason}."
    elif last is not None and last.ended is None:
        yield f"{run.id} runs: attempt {last.number}, for {duration(now - last.began)}, on {_nodes(last)}."
        if run.cancelling:
            yield "It was cancelled, and is saving."
    else:
        yield f"{run.id} is {run.state}{f': {run.reason}' if run.reason else ''}."
    if last is not None and last.ended is not None and run.state in ("failed", "gone"):
        yield f"Attempt {last.number} ended by {_cause(last)}: {last.evidence}."


def _progress(attempts: Sequence[Record]) -> Iterator[str]:
    ended = [record for record in attempts if record.ended is not None]
    if not ended:
        return
    spent: dict[str, float] = {}
    for record in ended:
        for name, value in record.seconds.items():
            spent[name] = spent.get(name, 0.0) + value
    lost = sum(record.lost_steps or 0 for record in ended)
    if whole := sum(spent.values()):
        shares = ", ".join(f"{name} {duration(value)}" for name, value in spent.items() if value >= 0.5)
        share = f" ({spent.get('training', 0.0) / whole:.0%} in steps)"
        yield f"Of {duration(whole)}: {shares}{share}." if shares else f"It took {duration(whole)}."
    if lost:
        yield f"{lost} steps had to be computed again."
    if (count := fruitless(attempts)) and ended[-1] is attempts[-1]:
        yield (
            f"The last {count} attempts brought no new step." if count > 1 else "The last attempt brought no new step."
        )


def _line(record: Record) -> str:
    steps = "" if record.step is None else f", step {record.step}"
    took = duration(record.ended - record.began) if record.ended else "runs"
    text = f"{record.number}: job {record.job_id}, {_nodes(record)}, {took}{steps}"
    if record.ended is None:
        return text
    text += f"; {_cause(record)}: {record.evidence}"
    if record.action:
        text += f"; then {record.action}"
    if record.exclude:
        text += f" without {', '.join(record.exclude)}"
    for path, (old, new) in record.changed.items():
        text += f", {path} {old} -> {new}"
    return text


def _commands(run: Subject, attempts: Sequence[Record], job: JobState | None) -> Iterator[tuple[str, str]]:
    resume = f"hpc resume {run.id}"
    if not run.ended and run.state != "gone":
        if job is not None and job.state == "PENDING" and reason(job.reason, job.job_id)[1]:
            yield f"hpc cancel {run.id}", "it will never start as it was asked for"
            yield f"{resume} job.time=... job.nodes=...", "ask for what the site gives; hpc doctor says what that is"
        else:
            yield f"hpc watch {run.id}", "see it live"
        return
    if run.state == "finished" and run.command:
        yield f"{resume} command=...", "go on in its folder, with another command"
        return
    if run.state in ("finished", "cancelled"):
        yield (resume + (" train.tokens=..." if run.state == "finished" else "")), "go on with it"
        return
    last = attempts[-1] if attempts else None
    yield from _after(run, Cause(last.cause) if last is not None and last.cause else None, last)


def _after(run: Subject, cause: Cause | None, last: Record | None) -> Iterator[tuple[str, str]]:
    """What helps after an end that stopped the run."""
    resume, rank = f"hpc resume {run.id}", _rank(last)
    if run.command and cause in (Cause.host_memory, Cause.gpu_memory, Cause.diverged):
        yield f"{resume} command=...", "with other settings of the program"
    elif cause in (Cause.host_memory, Cause.gpu_memory):
        yield f"{resume} parallel.micro_batch=...", "less at a time, and the same global batch"
        yield f"{resume} parallel.activation_checkpointing=full", "less memory for more arithmetic"
    elif (
        cause in (Cause.gpu_fault, Cause.hang, Cause.network, Cause.node_failure, Cause.preflight)
        and last
        and last.suspects
    ):
        yield f"{resume} job.exclude={','.join(last.suspects)}", "without the suspected node; tell the site about it"
    elif cause is Cause.storage:
        yield "hpc gc", "make room: old checkpoints"
    elif cause is Cause.diverged:
        yield f"{resume} optim.lr=...", "with a smaller learning rate"
    if cause in (Cause.error, Cause.crash, Cause.hang, Cause.network, Cause.host_memory, Cause.gpu_memory, None):
        yield f"hpc logs {run.id}{f' --rank {rank}' if rank is not None else ''}", "what was printed"
    yield resume, "go on from the newest checkpoint, with the code of now"


def _rank(last: Record | None) -> int | None:
    found = re.match(r"rank (\d+)", last.evidence) if last else None
    return int(found[1]) if found else None


def reason(given: str, job_id: str) -> tuple[str, bool]:
    """A reason of squeue's in words, and whether waiting is in vain."""
    plain = given.strip("()")
    for name, words, kind in _REASONS:
        if name.lower() in plain.lower():
            return f"{words.format(job=job_id)} ({plain})", kind == "never"
    return (f"Slurm says {plain}" if plain and plain != "None" else "Slurm has not looked at it yet"), False


def _cause(record: Record) -> str:
    return str(record.cause).replace("_", " ")


def _nodes(record: Record) -> str:
    count = len(record.nodes)
    return record.nodes[0] if count == 1 else f"{count} nodes" if count else "no node"
