"""One run that is being looked at: its files read on for all views, and what became of a run that cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from monitoring import layout
from monitoring.curves import Curves
from monitoring.device_history import DeviceHistory
from monitoring.experts import Experts
from monitoring.findings import Finding, Quiet
from monitoring.history import History
from monitoring.job import JobState
from monitoring.ranks import Ranks, parts_told
from monitoring.reader import Reader
from monitoring.snapshot import Snapshot
from monitoring.text import clean

FRESH = 0.3  # seconds for which nothing is read again, however many views ask


class Watched:
    """A run and the last that could be read of it. For one thread.

    Args:
        job: what Slurm says of the run's job; it must not wait for an answer.
        quieten: says no more of a finding, or says it again.
        now: unix seconds; None: the clock.
    """

    def __init__(
        self,
        folder: Path,
        job: Callable[[], JobState | None],
        quieten: Callable[[Finding, Quiet], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.snapshot: Snapshot | None = None
        self.trouble = ""  # why the snapshot is old, or there is none
        self.quieten = quieten
        self._job = job
        self._now = now
        self._reader: Reader | None = None
        self._read = -FRESH  # monotonic seconds
        self._ranks: dict[str, Ranks] = {}  # by part of a step

    def refresh(self, *, again: bool = False) -> None:
        """Read what is new. A run that cannot be read keeps its last snapshot, and says so.

        Args:
            again: also if that was done just now.
        """
        if time.monotonic() - self._read < FRESH and not again:
            return
        try:
            # Asked of the folder and not of the reader, to which a deleted run looks like one without attempts.
            (self.folder / layout.CONFIG).stat()
            self._reader = self._reader or Reader(self.folder)
            self.snapshot = self._reader.read(self._job(), self._now())
            self.trouble = ""
        except FileNotFoundError:
            gone = "the run's folder is gone" if self.snapshot else "there is no such run (any more)"
            self.trouble = f"{gone}: {clean(str(self.folder))}"
        except OSError as error:
            self.trouble = f"{error.strerror or error}: {clean(str(error.filename or self.folder))}"
        self._read = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the snapshot."""
        return 0.0 if self.snapshot is None else self._now() - self.snapshot.now

    @property
    def name(self) -> str:
        return clean(f"{self.folder.parent.name}/{self.folder.name}")

    @property
    def config(self) -> dict[str, Any]:
        return {} if self._reader is None else self._reader.config

    @property
    def _history(self) -> History:
        assert self._reader is not None, "there is no snapshot yet"
        return self._reader.history

    @cached_property
    def curves(self) -> Curves:
        """Once there is a snapshot, as all below."""
        return Curves(self._history)

    def ranks(self, part: str) -> Ranks:
        if part not in self._ranks:
            self._ranks[part] = Ranks(self.folder, self._history, part)
        return self._ranks[part]

    @property
    def parts(self) -> list[str]:
        return parts_told(self._history)

    @cached_property
    def devices(self) -> DeviceHistory:
        return DeviceHistory(self.folder, self._history)

    @cached_property
    def experts(self) -> Experts:
        return Experts(self.folder, self._history)
