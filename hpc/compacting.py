"""While a run trains: what its attempts that have ended recorded is compacted, so that whoever looks need not wait.

A process of its own does it, beside the ranks with the lowest priority, and nothing waits for it or depends on it: it
may be killed at any moment, and the next attempt, or a person, begins it again (``python -m monitoring.compact``).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable

from hpc import ledger
from hpc.runs import Run
from monitoring import layout

AFTER = 60.0  # seconds between two looks, and before the first: an attempt's start is not to be slowed
WORTH = 1 << 20  # bytes of rank 0's records; fewer are read in no time
PATIENCE = 600.0  # seconds for the process
LAST = 30.0  # seconds that it is given when the run has finished


class Compacting:
    """Has attempts of one run compacted. ``look`` takes no time; call it often.

    Args:
        say: writes a line into the run's log.
    """

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.run = run
        self.say = say
        self._next = time.monotonic() + AFTER
        self._tried: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._until = 0.0

    def look(self) -> None:
        """Start what is due, and end what takes too long."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + AFTER
        if self._busy(now):
            return
        if due := self._due():
            self._start(due, now + PATIENCE)

    def finish(self, asked: Callable[[], object]) -> None:
        """The run has finished: also its last attempt. Waits a little.

        Args:
            asked: whether this process has to leave.
        """
        end = time.monotonic() + LAST
        while not asked():
            now = time.monotonic()
            if not self._busy(min(now, self._until)):
                if not (due := self._due()):
                    return
                self._start(due, end)
            if now > end and self._process is not None:
                self._process.kill()
                return
            time.sleep(0.1)

    def _busy(self, now: float) -> bool:
        if self._process is None:
            return False
        if self._process.poll() is None and now > self._until:
            self._process.kill()
        if self._process.poll() is None:
            return True
        self._process = None
        return False

    def _due(self) -> list[int]:
        """The attempts that have ended, were not compacted to the last of their files, and are worth it."""
        found = []
        for record in ledger.history(self.run):
            folder = ledger.folder(self.run, record.number)
            if record.action is None or record.number in self._tried or (folder / layout.STEPS_COMPACTED).exists():
                continue
            with contextlib.suppress(OSError):  # nothing was recorded, or the file system stumbles
                if layout.rank_records(folder, 0).stat().st_size >= WORTH:
                    found.append(record.number)
        return found

    def _start(self, numbers: list[int], until: float) -> None:
        self._tried.update(numbers)
        words = ["monitoring.compact", str(self.run.folder), *map(str, numbers), "--seconds", str(PATIENCE)]
        try:  # what it says goes where this process's output goes: the run's log
            self._process = subprocess.Popen(
                ["nice", "-n", "19", sys.executable, "-P", "-m", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
            )
            self._until = until
        except OSError as error:
            self.say(f"records were not compacted: {error}")
