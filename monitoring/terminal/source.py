"""What the watch screen is given to show: runs in a list, and Slurm's word on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from monitoring.findings import Finding, Quiet
from monitoring.job import JobState


@dataclass(frozen=True)
class Entry:
    """A run as a row of a list. None stands for what is not known."""

    folder: Path
    name: str
    id: str
    state: str
    reason: str = ""
    cluster: str = ""
    attempt: int | None = None
    step: int | None = None
    share: float | None = None  # of the target, 0 to 1
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None  # seconds to the token target at the present speed
    goodput: float | None = None  # productive time over wall-clock time
    age: float | None = None  # seconds since the last step; of a run that has ended None
    changes: str = ""  # of a run of a sweep
    severity: str = ""  # of the worst finding that is not silenced
    finding: str = ""  # what that is
    begun: bool = True  # it has a folder

    @property
    def words(self) -> str:
        """What a filter looks in."""
        who = f"{self.name}/{self.id}"
        return " ".join((who, self.state, self.reason, self.cluster, self.changes, self.severity, self.finding))


class Source(Protocol):
    """Where runs come from. Called by the desk's thread; it may read files, and never waits for Slurm."""

    @property
    def title(self) -> str:
        """What the runs are."""
        ...

    @property
    def trouble(self) -> str:
        """Why what is told may be old; "" if it is not."""
        ...

    def entries(self) -> Sequence[Entry]:
        """All runs, the newest first."""
        ...

    def job(self, folder: Path) -> JobState | None:
        """The last that Slurm said of a run's job."""
        ...

    def quieten(self, folder: Path, finding: Finding, how: Quiet) -> None:
        """Say no more of a finding of a run, or say it again.

        Raises:
            OSError: if that cannot be written down.
        """
        ...
