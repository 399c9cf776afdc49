"""The records of a rank of a job."""

from __future__ import annotations

from hpc.attempt import Attempt
from hpc.runs import Run
from monitoring.recorder import Recorder


def recorder(run: Run, attempt: Attempt, rank: int | None = None) -> Recorder:
    """What this rank records of its attempt goes into the attempt's folder.

    Args:
        rank: in whose name, if not in this rank's own.
    """
    rank = attempt.rank if rank is None else rank
    return Recorder(attempt.folder, rank, attempt.world_size, run.id, attempt.number)
