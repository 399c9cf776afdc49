"""What follows the end of an attempt. Pure: from the causes of all attempts to one action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from hpc.ledger import Record


class Cause(Enum):
    """Why an attempt ended."""

    finished = "finished"  # the FINISHED marker is there
    cancelled = "cancelled"  # a person ended it
    refused = "refused"  # a rank found a mistake in the request
    diverged = "diverged"  # training found that it cannot go on: a loss that is not finite, or spikes again and again
    time_limit = "time_limit"
    preemption = "preemption"
    node_failure = "node_failure"
    crash = "crash"  # a rank ended with an error, or all ended without having finished


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
    action: Action
    reason: str


def fruitless(attempts: Sequence[Record]) -> int:
    """How many attempts, counted back from the last, brought no step that the run had not seen before.

    Preemptions and node failures are passed over: they neither count nor break the row.
    """
    best_before: list[int] = []
    best = -1
    for record in attempts:
        best_before.append(best)
        best = max(best, record.step if record.step is not None else -1)
    count = 0
    for record, before in zip(reversed(attempts), reversed(best_before), strict=True):
        if record.step is not None and record.step > before:
            return count
        if record.cause not in BLAMELESS:
            count += 1
    return count


def decide(attempts: Sequence[Record], *, max_fruitless: int, seconds_left: float, grace: float) -> Decision:
    """What follows after the last of ``attempts``, whose cause is known.

    Args:
        attempts: all attempts so far, oldest first.
        max_fruitless: stop after so many attempts in a row without a new step.
        seconds_left: of the allocation.
        grace: seconds before its end at which ranks are asked to stop.
    """
    last = attempts[-1]
    cause = Cause(last.cause)
    if cause is Cause.finished:
        return Decision(Action.end, "finished")
    if cause is Cause.cancelled:
        return Decision(Action.end, "cancelled")
    if cause in (Cause.refused, Cause.diverged):
        return Decision(Action.stop, last.evidence)
    count = fruitless(attempts)
    if count >= max_fruitless:
        what = f"{count} attempts in a row ended without a new step" if count > 1 else "it ended without a new step"
        return Decision(Action.stop, f"{what}; the last by {cause.value}: {last.evidence}")
    if cause is Cause.crash and seconds_left > 2 * grace:
        return Decision(Action.restart, f"a rank failed ({last.evidence}); trying again on the same nodes")
    return Decision(Action.requeue, cause.value.replace("_", " "))
