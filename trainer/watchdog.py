"""A thread that ends a rank which no longer gets anywhere, and says where it hangs."""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from trainer.config import WatchConfig
from trainer.postmortem import write_flights
from trainer.record import Record

EXIT = 75  # status of a rank that was ended for hanging: sysexits.h's "temporary failure, try again"
# Seconds that is allowed for what takes its own time, however short the steps are.
FIRST_STEP = 1800.0  # the compiler, and the first use of every communicator
SLOW = 3600.0  # writing a checkpoint, a profile
LINGER = 5.0  # seconds for which a rank that found a hang stays, so that the others find and tell it too
TELL = 20.0  # seconds that telling may take: a hanging file system must not keep the process alive
_RECENT = 64  # steps whose times say what is usual


class Watchdog:
    """Ends this process with ``EXIT`` once nothing was heard for too long, stacks and all written to ``folder``.

    It hangs where no ``step``, ``part`` or ``slow`` comes within ``hang_factor`` times the median of recent steps,
    but at least ``hang_seconds``. Time in which the process was suspended does not count. A context manager; does
    nothing without a folder, or with a ``hang_factor`` of 0.

    Files: ``hang-rank-<r>.txt`` has the stacks of all threads, ``hang-rank-<r>.pickle`` what torch's flight
    recorder kept of the collectives, where it is on; ``torchfrtrace`` reads these.
    """

    def __init__(self, watch: WatchConfig, folder: Path | None, rank: int, record: Record) -> None:
        self.watch = watch
        self.folder = folder
        self.rank = rank
        self.record = record
        self._main = threading.get_ident()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._expected = ("the first step", 0, FIRST_STEP)  # what, since which call, seconds; replaced as a whole
        self._calls = 0
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self.folder is not None and self.watch.hang_factor > 0:
            self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread is not None:
            self._thread.join(TELL)

    def step(self) -> None:
        """A step begins."""
        self._expect("a step", self._patience() if self._recent else FIRST_STEP)

    def done(self, seconds: float) -> None:
        """A step took so long."""
        self._recent.append(seconds)

    def part(self, what: str) -> None:
        """Something begins that is no longer than a step."""
        self._expect(what, self._patience())

    def slow(self, what: str) -> None:
        """Something begins that may take its time."""
        self._expect(what, max(SLOW, self._patience()))

    def _patience(self) -> float:
        usual = statistics.median(self._recent) if self._recent else 0.0
        return max(self.watch.hang_seconds, self.watch.hang_factor * usual)

    def _expect(self, what: str, seconds: float) -> None:
        self._calls += 1
        self._expected = (what, self._calls, seconds)

    def _work(self) -> None:
        heard, waited, last = -1, 0.0, time.monotonic()
        while True:
            what, call, patience = self._expected
            pause = min(1.0, patience / 10)
            if self._left.wait(pause):
                return
            now = time.monotonic()
            # A process that was stopped and went on finds much time gone at once, of which it had none.
            waited = (waited if call == heard else 0.0) + min(now - last, 2 * pause)
            heard, last = call, now
            if waited > patience and self._expected[1] == call:
                self._end(what, waited)

    def _end(self, what: str, waited: float) -> None:
        where = _place(self._main)
        reason = f"HangError: {what} did not end within {waited:.0f} s; rank {self.rank} is in {where}"
        teller = threading.Thread(target=self._tell, args=(reason, what, waited, where), daemon=True)
        teller.start()
        teller.join(TELL)
        time.sleep(LINGER)
        os._exit(EXIT)  # the main thread will not come back, so nothing that waits for it is done

    def _tell(self, reason: str, what: str, waited: float, where: str) -> None:
        assert self.folder is not None
        with suppress(OSError):
            print(reason, file=sys.stderr, flush=True)
        with suppress(OSError):
            self._write_stacks(self.folder / f"hang-rank-{self.rank}.txt", reason)
        self.record.event("hang", rank=self.rank, waiting_for=what, seconds=waited, place=where)
        self.record.sync()
        with suppress(Exception):  # it may be built without, or itself wait for a lock that is never freed
            write_flights(self.folder / f"hang-rank-{self.rank}.pickle")

    def _write_stacks(self, path: Path, reason: str) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w") as file:
            file.write(f"{reason}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())
        temporary.replace(path)


def _place(thread: int) -> str:
    """Where a thread is: the file, line and function of its innermost frame outside of torch."""
    frame: Any = sys._current_frames().get(thread)
    innermost = frame
    library = str(Path(torch.__file__).parent)
    while frame is not None and frame.f_code.co_filename.startswith(library):
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return "no Python code"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
