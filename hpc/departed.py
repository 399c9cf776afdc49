"""How jobs ended that left the queue, by the accounting: each is asked about until that is known, ever more seldom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpc import accounting, slurm
from hpc.accounting import Allocation
from hpc.runs import Run
from monitoring.job import OVER

FIRST = 5.0  # seconds until a job is asked about again: the accounting may hear of its end later than the queue
LONGEST = 600.0


class End(NamedTuple):
    """How a job ended."""

    state: str  # as Slurm spells it
    at: float | None  # unix seconds


@dataclass
class _Asked:
    wait: float = FIRST
    due: float = 0.0  # seconds of the clock
    end: End | None = None


class Departed:
    """What is known of jobs that left the queue. One sacct for all of them that are due.

    Args:
        clock: seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[Path, str], _Asked] = {}

    def ends(
        self, members: Sequence[tuple[Run, str]], environment: Mapping[str, str] | None
    ) -> Mapping[tuple[Path, str], End]:
        """How those of the jobs ended of which that is known, by the run's folder and the job's id.

        Args:
            members: runs and their jobs, all of one cluster.
        """
        now = self._clock()
        asked = {
            (run.folder, job_id): self._known.setdefault((run.folder, job_id), _Asked()) for run, job_id in members
        }
        due = [(run, job_id) for run, job_id in members if _is_due(asked[run.folder, job_id], now)]
        found = _ask([job_id for _, job_id in due], environment) if due else {}
        for run, job_id in due:
            entry = asked[run.folder, job_id]
            entry.end = _end(accounting.of_run(found, run.id, [job_id]))
            entry.due, entry.wait = now + entry.wait, min(2 * entry.wait, LONGEST)
        return {key: entry.end for key, entry in asked.items() if entry.end is not None}


def _is_due(entry: _Asked, now: float) -> bool:
    return entry.end is None and now >= entry.due


def _ask(job_ids: Iterable[str], environment: Mapping[str, str] | None) -> dict[str, list[Allocation]]:
    """What the accounting has of jobs; nothing where there is none, or it does not answer."""
    try:
        lines = slurm.sacct(accounting.NAMES, dict.fromkeys(job_ids), environment)
    except slurm.SlurmError:
        return {}
    found: dict[str, list[Allocation]] = {}
    for each in accounting.allocations(accounting.parse(lines)):
        found.setdefault(each.job_id, []).append(each)
    return found


def _end(starts: Sequence[Allocation]) -> End | None:
    """The end of the last start of a job."""
    if not starts or starts[-1].state not in OVER:  # it has not heard of the end yet
        return None
    return End(starts[-1].state, starts[-1].ended)
