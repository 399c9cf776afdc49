"""Which processes belong to an emulated cluster, and how exactly those are ended. Linux's /proc is all it needs.

A process belongs to the emulation in a directory if
- it is one that was noted when it was started: same pid, same start, same boot; or
- its environment says ``HPC_EMULATION=<directory>``, which only the daemons started here are given: so what was
  started by an ``up`` that died before it could note it is found all the same; or
- it is one of Slurm's daemons working inside the directory: a slurmstepd overwrites its environment with its title,
  but keeps the working directory of the slurmd that started it; or
- its environment says that Slurm started it as a task of one of these nodes; or
- it descends from one of these.
Nothing is ever ended because of its name alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpc.errors import Failed

MARK = "HPC_EMULATION"  # in the environment of the daemons: the directory of the emulation
PROC = Path("/proc")
_DAEMONS = {"slurmctld", "slurmscriptd", "slurmdbd", "mariadbd", "slurmd", "slurmstepd", "munged"}


class Process(NamedTuple):
    """One process of this boot, told from a later one with the same pid by when it was started."""

    pid: int
    started: int  # clock ticks since boot


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it."""

    process: Process
    parent: int
    name: str  # at most 15 characters
    zombie: bool


@dataclass(frozen=True)
class Member:
    """A process that belongs to an emulated cluster."""

    process: Process
    name: str
    node: str | None  # None: munged, slurmctld, accounting

    @property
    def daemon(self) -> bool:
        return self.name in _DAEMONS and self.name != "slurmstepd"


def boot_id() -> str:
    """This boot of this machine; another container on it shares it."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def see(pid: int) -> Seen | None:
    """The process with this pid, or None if there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")  # a name may hold spaces and brackets
    fields = rest.split()
    return Seen(Process(pid, int(fields[19])), int(fields[1]), name, fields[0] in "ZX")


def alive(process: Process) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    seen = see(process.pid)
    return seen is not None and not seen.zombie and seen.process == process


def environment(pid: int) -> set[bytes]:
    """The ``NAME=value`` entries of a process; empty if it is not ours to read, or gone."""
    try:
        return set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _directory(pid: int) -> Path | None:
    try:
        return (PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def marked(pid: int, directory: Path) -> bool:
    """Whether this is a daemon that was started for the emulation in ``directory``."""
    return f"{MARK}={directory}".encode() in environment(pid)


def members(directory: Path, noted: Iterable[tuple[Process, str | None]] = ()) -> list[Member]:
    """Every living process of the emulation in ``directory``; daemons first, then steps, then tasks.

    Args:
        directory: of the emulation, resolved.
        noted: what was started in this boot, with its node.
    """
    table = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (seen := see(int(entry.name))) is not None and not seen.zombie:
            table[seen.process.pid] = seen
    known = dict(noted)
    found: dict[int, Member] = {}
    for pid, seen in table.items():
        node = known.get(seen.process)
        if seen.process in known or (node := _node_of(seen, directory)) is not None:
            found[pid] = Member(seen.process, seen.name, node or None)
    children: dict[int, list[int]] = {}
    for pid, seen in table.items():
        children.setdefault(seen.parent, []).append(pid)
    todo = list(found)
    while todo:
        parent = todo.pop()
        for pid in children.get(parent, []):
            if pid not in found:
                found[pid] = Member(table[pid].process, table[pid].name, found[parent].node)
                todo.append(pid)
    return sorted(found.values(), key=lambda m: (not m.daemon, m.name != "slurmstepd", m.process))


def _node_of(seen: Seen, directory: Path) -> str | None:
    """The node a process belongs to, "" if to none of the nodes but to the emulation; None if it is foreign."""
    pid = seen.process.pid
    if seen.name in _DAEMONS and (cwd := _directory(pid)) is not None and cwd.is_relative_to(directory):
        parts = cwd.relative_to(directory).parts
        return parts[1] if len(parts) > 1 and parts[0] == "spool" else ""
    entries = environment(pid)
    if f"{MARK}={directory}".encode() in entries:
        return ""
    if f"SLURM_CONF={directory}/etc/slurm.conf".encode() in entries:
        for entry in entries:
            if entry.startswith(b"SLURMD_NODENAME="):
                return entry.partition(b"=")[2].decode(errors="replace")
    return None


def send(member: Member, number: int) -> None:
    """Signal exactly this process; silently nothing if it has ended."""
    if alive(member.process):
        with suppress(ProcessLookupError):
            os.kill(member.process.pid, number)


def end(find: Callable[[], list[Member]], grace: float, bound: float = 10.0) -> int:
    """End all that ``find`` finds, and wait until it finds nothing.

    The daemons are killed outright: their state goes away with them, and no job is requeued meanwhile. The jobs'
    processes get SIGTERM and ``grace`` seconds, their steps' daemons die last.

    Returns:
        how many processes were ended.

    Raises:
        Failed: if some still live ``bound`` seconds after SIGKILL.
    """
    start = time.monotonic()
    signalled: set[tuple[Process, int]] = set()
    while left := find():
        elapsed = time.monotonic() - start
        if elapsed > grace + bound:
            pids = ", ".join(f"{member.process.pid} ({member.name})" for member in left)
            raise Failed(f"these processes of the emulated cluster cannot be ended: {pids}")
        # A step whose controller is gone reports to it for ever; once its tasks have ended, there is nothing in it.
        last = elapsed >= grace or all(member.daemon or member.name == "slurmstepd" for member in left)
        for member in left:
            number = signal.SIGKILL if last or member.daemon else signal.SIGTERM
            spared = not last and member.name == "slurmstepd"
            if not spared and (member.process, number) not in signalled:
                send(member, number)
                signalled.add((member.process, number))
        time.sleep(0.02)
    return len({process for process, _ in signalled})
