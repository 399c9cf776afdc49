"""For programs that hpc did not write: two lines in them record their training (``monitoring.record``).

A program knows its run by the environment. Outside of a run nothing happens, so the lines may stay. Of several
processes that of rank 0 records, and of several with that rank (a launcher's own, say) the first.

The job that started the program reads its output for metrics, and writes them into the same file, which never has two
writers: a program's first record says that from now on it writes itself (``own-records``), and waits until the reader
of its output has let go (``followed`` is gone).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from monitoring import layout
from monitoring.recorder import Recorder

RUN, ATTEMPT = "HPC_RUN", "HPC_ATTEMPT"
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "NODE_RANK", "SLURM_PROCID")  # the first that is set says the rank
PATIENCE = 10.0  # seconds for the reader of the output to let go


class _Program:
    """This process as a recorder; ``recorder`` is None where it is not the one that records."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.recorder: Recorder | None = None
        self.tokens = 0
        with contextlib.suppress(Exception):  # no thread to be had, say: train without records
            self.recorder = _made()


def _made() -> Recorder | None:
    run, number = os.environ.get(RUN), os.environ.get(ATTEMPT, "")
    if not run or not number.isdecimal() or rank() != 0:
        return None
    folder = layout.attempt_folder(Path(run), int(number))
    with contextlib.suppress(OSError):  # of a handle that is stale now: the recorder tries again
        if not folder.is_dir():
            return None
    if not _claim(folder):
        return None
    return Recorder(folder, 0, int(os.environ.get("WORLD_SIZE") or 1), Path(run).name, int(number))


_this: _Program | None = None


def rank() -> int:
    """This process's rank among all of the program's."""
    return int(next((value for name in _RANKS if (value := os.environ.get(name, "")).isdecimal()), "0"))


def _recorder() -> Recorder | None:
    global _this
    if _this is None or _this.pid != os.getpid():  # a forked process is not the one that records
        _this = _Program()
    return _this.recorder


def _claim(folder: Path) -> bool:
    """Become the only writer of the attempt's records; False if another process of the program is."""
    with contextlib.suppress(OSError):  # of a file system that has no locks, or no room: record all the same
        handle = os.open(folder / layout.OWN_RECORDS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends; no child inherits it
        except (BlockingIOError, PermissionError):
            os.close(handle)
            return False
    end = time.monotonic() + PATIENCE
    while _followed(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return True


def _followed(folder: Path) -> bool:
    try:
        return (folder / layout.FOLLOWED).exists()
    except OSError:  # nobody knows: ask again
        return True


def record(step: int, tokens: int | None, metrics: dict[str, Any]) -> None:
    """See ``monitoring.record``."""
    recorder = _recorder()
    if recorder is None or _this is None:
        return
    with contextlib.suppress(Exception):
        _this.tokens = _this.tokens if tokens is None else int(tokens)
    plain: dict[str, Any] = {"step": None}  # of which the recorder says that it could not be written
    for name, value in metrics.items():
        with contextlib.suppress(Exception):  # a tensor is read here, before it changes, and may refuse in any way
            plain[name] = float(value)
    with contextlib.suppress(Exception):
        plain["step"] = int(step)
    recorder.step(**{**plain, "tokens": _this.tokens})


def finish(summary: dict[str, Any]) -> None:
    """See ``monitoring.finish``."""
    run = os.environ.get(RUN)
    if not run or rank() != 0:
        return
    if (recorder := _recorder()) is not None:
        recorder.sync()
    marker = Path(run) / layout.FINISHED
    tmp = marker.with_name(f".{marker.name}.{os.getpid()}.tmp")
    try:
        with tmp.open("w", encoding="utf-8") as file:
            json.dump({**summary, "finished": time.time()}, file, default=str)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(marker)
    finally:
        tmp.unlink(missing_ok=True)


@atexit.register
def _leave() -> None:
    if _this is not None and _this.pid == os.getpid() and _this.recorder is not None:
        _this.recorder.close()
