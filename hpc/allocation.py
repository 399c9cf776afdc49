"""What a supervisor runs in, whatever it is: the edge between its decisions and the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hpc.exits import Exit
from hpc.ledger import Record
from hpc.requeue import Cause
from hpc.runs import Run

TERM_PATIENCE = 24.0  # seconds for ranks to save after SIGTERM, of the 30 that Slurm's KillWait gives


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

        Returns "ended" where this job ends and another goes on, "here" where this process does.

        Raises:
            Failed: if nothing will start this run again.
        """
        ...
