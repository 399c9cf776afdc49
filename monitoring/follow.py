"""Reads what a program's ranks print and records the steps and metrics in it, for as long as the program does not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from monitoring import layout
from monitoring.patterns import Found, Reader, readers
from monitoring.recorder import Recorder
from monitoring.tail import LineTail

POLL = 0.5  # seconds between two looks at the logs


class Follower:
    """Follows the logs of all ranks of an attempt: of which of them a program prints its steps is the program's choice.

    A step that is smaller than one before it is passed over: several processes may print the same, not all at once.

    Args:
        attempt: the attempt's folder.
        ranks: how many logs there are.
        names: patterns, as ``monitoring.patterns.readers`` has them.
        recorder: makes the recorder, once there is something to record.
        tokens_per_step: of a program that does not print tokens.
    """

    def __init__(
        self,
        attempt: Path,
        ranks: int,
        names: Sequence[str],
        recorder: Callable[[], Recorder],
        tokens_per_step: int | None = None,
    ) -> None:
        self.attempt = attempt
        self.make = recorder
        self.tokens_per_step = tokens_per_step
        self.logs: list[tuple[LineTail, list[Reader]]] = [
            (LineTail(layout.rank_log(attempt, rank)), readers(names)) for rank in range(ranks)
        ]
        self.recorder: Recorder | None = None
        self.step: int | None = None
        self.steps: int | None = None
        self.tokens = 0
        self.said: dict[str, float] = {}  # of the newest step
        self.left = not names  # whether the program records by itself, or nothing is asked for
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="follow", daemon=True)

    def start(self) -> Follower:
        self._thread.start()
        return self

    def close(self) -> None:
        """Take what was printed to the end, and let go."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.look(rest=True)
        self._let_go()

    def look(self, *, rest: bool = False) -> None:
        """Record what was printed since the last look."""
        if not self.left and (self.attempt / layout.OWN_RECORDS).exists():
            self.left = True
            self._let_go()
        if self.left:
            return
        for tail, patterns in self.logs:
            for line in tail.read(rest=rest):
                for reader in patterns:
                    if (found := reader(line)) is not None:
                        self._take(found)

    def _take(self, found: Found) -> None:
        step = self.step if found.step is None else found.step
        if step is None or (self.step is not None and step < self.step):
            return
        if step != self.step:
            self.step, self.said = step, {}
        new = {name: value for name, value in found.metrics.items() if self.said.get(name) != value}
        if not new and found.metrics:
            return  # another process printed it too
        if (recorder := self._recorder()) is None:
            return
        if found.tokens is not None:
            self.tokens = found.tokens
        elif self.tokens_per_step is not None:
            self.tokens = step * self.tokens_per_step
        self.said |= new
        recorder.step(step=step, tokens=self.tokens, **new)
        if found.steps is not None and found.steps != self.steps:
            self.steps = found.steps
            recorder.event("target", step=step, steps=found.steps)

    def _recorder(self) -> Recorder | None:
        if self.recorder is None and not self.left:
            with contextlib.suppress(OSError):
                (self.attempt / layout.FOLLOWED).touch()
            if (self.attempt / layout.OWN_RECORDS).exists():  # it may have come between
                self.left = True
                self._let_go()
            else:
                self.recorder = self.make()
        return self.recorder

    def _let_go(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        with contextlib.suppress(OSError):
            (self.attempt / layout.FOLLOWED).unlink(missing_ok=True)

    def _work(self) -> None:
        while not self._stop.wait(POLL):
            self.look()
