"""What Slurm says of a run's job."""

from __future__ import annotations

from dataclasses import dataclass

NO_JOB = "GONE"  # our word for a job that the queue does not have any more
# States from which a job does not come back. Slurm shows a job that has ended for some minutes more.
OVER = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
        "PREEMPTED",
    }
)


@dataclass(frozen=True)
class JobState:
    """What Slurm says of the run's job; times are unix seconds, None where Slurm does not say.

    A job is only described by an answer of Slurm about it. Where Slurm did not answer, the last description
    is handed in again with its old ``seen``, or None if there never was one: silence is no state.
    """

    job_id: str
    state: str  # as squeue spells it: PENDING, RUNNING ...; or NO_JOB
    reason: str = ""  # why it waits, as squeue spells it; how it ended, in words
    nodes: str = ""  # in Slurm's notation
    submitted: float | None = None
    started: float | None = None  # of a pending job: when Slurm expects to start it
    ends: float | None = None  # when its time limit is reached
    emulated: bool = False
    seen: float | None = None  # when Slurm said so; None: just now
    ended: float | None = None  # when it did, by the accounting

    @property
    def over(self) -> bool:
        """Nothing will bring the job back."""
        return self.state == NO_JOB or self.state in OVER
