"""What follows the end of an attempt. Pure: from the causes of all attempts to one action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from hpc.config import After, Policy, RequeueConfig
from hpc.ledger import Record


class Cause(Enum):
    """Why an attempt ended. Those that ``RequeueConfig`` has a field for are followed as it says."""

    finished = "finished"  # the FINISHED marker is there
    cancelled = "cancelled"  # a person ended it
    refused = "refused"  # a rank found a mistake in the request
    diverged = "diverged"  # training found that it cannot go on: a loss that is not finite, or spikes again and again
    time_limit = "time_limit"
    preemption = "preemption"
    node_failure = "node_failure"
    host_memory = "host_memory"  # a process had no more memory, or the kernel ended it for that
    gpu_memory = "gpu_memory"
    gpu_fault = "gpu_fault"
    network = "network"  # a connection between ranks broke, and no rank says why
    hang = "hang"  # ranks waited for something that did not come
    preflight = "preflight"  # a node was found to be unfit before training began
    storage = "storage"  # the disk is full, read-only or away
    error = "error"  # a rank ended with an exception, or said that it failed, for another reason than those above
    crash = "crash"  # a rank was ended by a signal, or ended without a word


class Action(Enum):
    """What the supervisor does next."""

    end = "end"  # the run is over, as it should be
    requeue = "requeue"  # give the nodes back and queue again
    restart = "restart"  # start the ranks again inside this allocation
    stop = "stop"  # the run is over, and a person must look


# Nobody's fault: they do not count as attempts without progress.
BLAMELESS = {Cause.preemption.value, Cause.node_failure.value}


@dataclass(frozen=True)
class Decision:
    """What to do next, and why."""

    action: Action
    reason: str
    exclude: tuple[str, ...] = ()  # nodes that the job is to be queued again without
    wait: float = 0.0  # seconds before a restart
    shrink: bool = False  # with a smaller micro-batch


def progressed(attempts: Sequence[Record]) -> list[bool]:
    """Of each attempt, whether it brought a step that the run had not seen before; or, of a program whose steps
    nobody sees, whether it saved something."""
    best, found = -1, []
    for record in attempts:
        step = -1 if record.step is None else record.step
        found.append(step > best or (record.saved and best < 0))
        best = max(best, step)
    return found


def fruitless(attempts: Sequence[Record]) -> int:
    """How many attempts, counted back from the last, brought no step that the run had not seen before.

    Preemptions and node failures are passed over: they neither count nor break the row.
    """
    count = 0
    for record, new in zip(reversed(attempts), reversed(progressed(attempts)), strict=True):
        if new:
            break
        count += record.cause not in BLAMELESS
    return count


def decide(
    attempts: Sequence[Record],
    policies: RequeueConfig,
    *,
    max_fruitless: int,
    seconds_left: float,
    grace: float,
    spare_nodes: int = 0,
    can_shrink: bool = False,
) -> Decision:
    """What follows after the last of ``attempts``, whose cause is known.

    Args:
        attempts: all attempts since a person last submitted or resumed the run, oldest first.
        max_fruitless: stop after so many attempts in a row without a new step.
        seconds_left: of the allocation.
        grace: seconds before its end at which ranks are asked to stop.
        spare_nodes: how many nodes the run can do without.
        can_shrink: whether a smaller micro-batch gives the same global batch.
    """
    last = attempts[-1]
    cause = Cause(last.cause)
    if cause in (Cause.finished, Cause.cancelled):
        return Decision(Action.end, cause.value)
    if cause in (Cause.refused, Cause.diverged):
        return Decision(Action.stop, last.evidence)
    policy: Policy = getattr(policies, cause.value)
    if refusal := _spent(attempts, policy, cause, max_fruitless):
        return Decision(Action.stop, f"{refusal}: {last.evidence}")
    shrink = policy.shrink and can_shrink
    exclude = suspects(attempts, policies, spare_nodes)
    said = f"{_words(cause)} ({last.evidence})"
    if policy.action is After.restart and seconds_left > 2 * grace + policy.wait:
        if not _again(attempts):
            return Decision(Action.restart, said, wait=policy.wait, shrink=shrink)
        said += ", again on these nodes"
    return Decision(Action.requeue, said, exclude=exclude, shrink=shrink)


def _spent(attempts: Sequence[Record], policy: Policy, cause: Cause, max_fruitless: int) -> str | None:
    """Why the run is not tried again, if it is not."""
    if policy.action is After.stop:
        return f"requeue.{cause.value}.action=stop"
    ends = sum(record.cause == cause.value for record in attempts)
    if policy.budget is not None and ends > policy.budget:
        return f"{ends} attempts ended by {_words(cause)}, and requeue.{cause.value}.budget={policy.budget}"
    count = fruitless(attempts)
    allowed = min(max_fruitless, policy.fruitless or max_fruitless)
    if count < allowed:
        return None
    what = f"{count} attempts in a row ended without a new step" if count > 1 else "it ended without a new step"
    return f"{what}; the last by {_words(cause)}"


def _again(attempts: Sequence[Record]) -> bool:
    """Whether the attempt before ended in the same way in the same allocation, and nothing was gained since."""
    if len(attempts) < 2 or progressed(attempts)[-1]:
        return False
    before, last = attempts[-2:]
    same = (before.job_id, before.restart_count, before.cause) == (last.job_id, last.restart_count, last.cause)
    return same and before.action == Action.restart.value


def suspects(attempts: Sequence[Record], policies: RequeueConfig, spare_nodes: int) -> tuple[str, ...]:
    """Nodes to be queued again without: the newest suspects, as many as can be spared."""
    found = []
    for record in reversed(attempts):
        policy = getattr(policies, str(record.cause), None)
        if policy is not None and policy.exclude:
            found += record.suspects
    return tuple(dict.fromkeys(found))[: max(0, spare_nodes)]


def _words(cause: Cause) -> str:
    return cause.value.replace("_", " ")
