"""What an attempt left behind: markers, signs of life, its steps and where its time went."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc import ledger
from hpc.config import CommandJob
from hpc.diagnose import Diagnosis
from hpc.ledger import Record
from hpc.requeue import Cause
from hpc.runs import DIVERGED, READY, REFUSED, UNFIT, Run, read_json
from monitoring.spent import spent
from monitoring.tail import events, last_step, said_so_far


def marked(run: Run, record: Record) -> Diagnosis | None:
    """How an attempt ended, where somebody wrote that down."""
    if run.finished:
        return Diagnosis(Cause.finished, "FINISHED")
    for marker, cause in ((REFUSED, Cause.refused), (DIVERGED, Cause.diverged)):
        file = ledger.folder(run, record.number) / marker
        if file.exists():
            return Diagnosis(cause, file.read_text(encoding="utf-8").strip())
    if unfit := read_json(ledger.folder(run, record.number) / UNFIT):
        return Diagnosis(Cause.preflight, str(unfit["words"]), tuple(unfit["nodes"]))
    return Diagnosis(Cause.cancelled, "hpc cancel") if run.cancelled else None


def account(run: Run, record: Record, ended: float) -> dict[str, Any]:
    """The fields of an attempt's record that say what it did, once it ended: unix time ``ended``."""
    folder = ledger.folder(run, record.number)
    ready = folder / READY
    parts = spent(folder, record.began, ended, ready.stat().st_mtime if ready.exists() else None)
    saved = newest_saved(run)
    own = isinstance(run.config().job, CommandJob)  # whose checkpoints only the program itself can read
    known = [step for step in (last_step(folder), saved) if step is not None]
    reached = max(known) if known else None
    seconds = {name: getattr(parts, name) for name in ("starting", "training", "saving", "ending")}
    return {
        "ended": ended,
        "step": reached,
        "first_step": parts.first_step,
        "lost_steps": None if reached is None or own else reached - (saved or 0),
        "saved": own and changed_since(run.checkpoints, record.began),
        "seconds": {"queued": queued(run, record), **seconds},
    }


def asked_to_stop(run: Run, record: Record) -> str:
    """Why rank 0 says that ranks were asked to stop; "" if they were not."""
    return next((str(event.get("reason", "")) for event in events(ledger.folder(run, record.number), ("stop",))), "")


def newest_saved(run: Run) -> int | None:
    """The step of the newest complete checkpoint."""
    names = (path.parent.name.removeprefix("step-") for path in run.checkpoints.glob("step-*/COMPLETE"))
    return max((int(step) for step in names if step.isdecimal()), default=None)


def changed_since(folder: Path, moment: float) -> bool:
    """Whether anything in a folder, at any depth, was written after a moment in unix time."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if path.stat(follow_symlinks=False).st_mtime > moment:
                return True
    return False


def queued(run: Run, record: Record) -> float:
    """Seconds from the end of the attempt before, or from when a person asked, to an attempt's begin."""
    ends = [past.ended for past in ledger.history(run) if past.number < record.number]
    moments = [t for t in (*_asked(run), *ends) if t is not None and t <= record.began]
    return record.began - max(moments) if moments else 0.0


def since_asked(run: Run) -> list[Record]:
    """The attempts since a person last submitted or resumed the run."""
    since = max(_asked(run), default=0.0)
    return [record for record in ledger.history(run) if record.began >= since]


def _asked(run: Run) -> list[float]:
    """When a person asked for the run: submitted it, and resumed it."""
    manifest = read_json(run.manifest_file) or {}
    given = [manifest.get("submitted"), *(each.get("time") for each in manifest.get("resumed") or [])]
    return [float(t) for t in given if isinstance(t, int | float)]


def last_sign(run: Run, record: Record) -> float:
    """When an attempt whose end nobody saw was last heard of: unix time."""
    return max([record.began, *(path.stat().st_mtime for path in ledger.folder(run, record.number).iterdir())])


def named(said: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """The nodes that a sentence names, if they are not all."""
    found = [node for node in nodes if node in re.findall(r"[\w.-]+", said)]
    return tuple(found) if len(found) < len(nodes) else ()


class Silence:
    """Whether the ranks of an attempt have printed and recorded nothing for too long.

    What a rank's sampler records of its devices is no sign that training goes on. Neither clocks nor times of files
    are believed: only whether something came.
    """

    def __init__(self, folder: Path, limit: float | None) -> None:
        self.folder = folder
        self.limit = limit
        self.heard = time.monotonic()
        self.known: dict[str, int] = {}
        self.next_look = 0.0

    def broken(self) -> str | None:
        """What to say of it once it is so. Looks at the files now and then."""
        now = time.monotonic()
        if self.limit is None or now < self.next_look:
            return None
        self.next_look = now + min(30.0, self.limit / 5)
        found = {path.name: said_so_far(path) for path in self.folder.glob("rank-*")}
        if found != self.known:
            self.known, self.heard = found, now
        quiet = now - self.heard
        return f"no rank printed or recorded anything for {quiet:.0f} s" if quiet > self.limit else None


def oom_kills() -> int:
    """How many processes the kernel of this machine has ended for want of memory since it started."""
    try:
        found = re.search(r"(?m)^oom_kill (\d+)$", Path("/proc/vmstat").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def starved(before: int) -> str:
    """What to say of the processes that the kernel ended for want of memory since it had ended ``before``."""
    killed = oom_kills() - before
    return f"the kernel of {socket.gethostname()} ended {killed} for want of memory" if killed > 0 else ""
