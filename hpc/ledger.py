"""The attempts of a run: who may start the next one, and how each ended.

An attempt's folder is taken by one rename of a folder that already holds its attempt.json, so that of two
contenders exactly one gets the number and a crash leaves either nothing or an attempt that names its owner. The
owner of the newest attempt is the lease of the run: while its job is still known to Slurm (running, or held
for a requeue) no other job may start an attempt. A crash needs no cleaning up: the owner's job leaves the
queue, and with it the lease.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hpc.runs import Run, read_json, sync_folder, write_json
from monitoring.layout import attempt_info

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 180.0  # without a heartbeat for so long, and without Slurm to ask, an owner counts as gone
HELD_SECONDS = 600.0  # a requeued job that Slurm cannot be asked about keeps its run for so long


@dataclass(frozen=True)
class Record:
    """One attempt, as its attempt.json says."""

    number: int
    job_id: str
    restart_count: int = 0
    cluster: str = ""
    emulated: bool = False
    host: str = ""  # of the supervisor
    pid: int = 0
    nodes: list[str] = field(default_factory=list)
    world_size: int = 0
    began: float = 0.0  # unix time
    ended: float | None = None
    cause: str | None = None
    evidence: str = ""
    exit_code: int | None = None
    exits: dict[str, int] = field(default_factory=dict)  # of ranks that did not end well: 128 + n for signal n
    suspects: list[str] = field(default_factory=list)  # nodes that are to be blamed
    action: str | None = None  # what the supervisor did next: requeue, restart, stop
    reason: str = ""  # why that
    exclude: list[str] = field(default_factory=list)  # nodes that the next attempt was asked to be without
    changed: dict[str, list[Any]] = field(default_factory=dict)  # in the configuration, for the next: path, old, new
    first_step: int | None = None
    step: int | None = None  # newest step that the attempt is known to have finished
    lost_steps: int | None = None  # computed and not saved: the next attempt computes them again
    saved: bool = False  # of a program whose checkpoints only it can read: that it wrote some
    # queued: since the attempt before, or since the run was submitted; starting, training, saving, ending.
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in an attempt's folder; keys of other versions are ignored."""
        value = read_json(attempt_info(folder))
        if value is None:
            return None
        names = {f.name for f in fields(cls)}
        known = {k: v for k, v in value.items() if k in names}
        if not isinstance(known.get("number"), int) or not isinstance(known.get("job_id"), str):
            return None
        return cls(**known)


class Held(Exception):
    """Another job owns the run."""


def history(run: Run) -> list[Record]:
    """All attempts of a run whose record can be read, oldest first."""
    found = (Record.read(folder(run, n)) for n in numbers(run))
    return [record for record in found if record is not None]


def numbers(run: Run) -> list[int]:
    """The numbers taken so far, in order."""
    return sorted(int(p.name) for p in run.attempts.glob("*") if p.name.isdecimal())


def folder(run: Run, number: int) -> Path:
    return run.attempts / str(number)


def take(run: Run, wanted: Callable[[int], Record], owner_lives: Callable[[Record], bool]) -> Record:
    """Take the next attempt's number.

    Args:
        wanted: makes the record to be written for a number.
        owner_lives: whether the job that owns an attempt may still run or run again.

    Raises:
        Held: if the newest attempt belongs to another job that is still alive.
    """
    run.attempts.mkdir(exist_ok=True)
    while True:
        past = history(run)
        number = max(numbers(run), default=-1) + 1  # also past a record that a disk lost
        mine = wanted(number)
        if past and past[-1].job_id != mine.job_id and owner_lives(past[-1]):
            raise Held(f"attempt {past[-1].number} belongs to job {past[-1].job_id}, which is still in the queue")
        if _claim(run.attempts, mine):
            return mine


def _claim(attempts: Path, record: Record) -> bool:
    tmp = attempts / f".{record.number}.{secrets.token_hex(4)}.tmp"
    tmp.mkdir()
    try:
        write_json(attempt_info(tmp), asdict(record))
        # Fails if the target exists: it is never empty, as each is born with its attempt.json.
        tmp.rename(attempts / str(record.number))
    except OSError:
        shutil.rmtree(tmp, ignore_errors=True)
        if not (attempts / str(record.number)).exists():
            raise
        return False
    sync_folder(attempts)
    return True


def update(run: Run, number: int, **changes: Any) -> Record:
    """Write changed fields of an attempt's record."""
    path = folder(run, number)
    record = Record.read(path)
    if record is None:
        raise FileNotFoundError(errno.ENOENT, "the attempt's record cannot be read", str(attempt_info(path)))
    new = {**asdict(record), **changes}
    write_json(attempt_info(path), new)
    return Record(**new)


def beat(run: Run, number: int) -> None:
    """Show that the supervisor of an attempt lives."""
    os.utime(attempt_info(folder(run, number)))


def silent_for(run: Run, record: Record) -> float:
    """Seconds since an attempt's record was last written or touched."""
    return time.time() - attempt_info(folder(run, record.number)).stat().st_mtime
