"""A program and all that it starts, as one thing to be signalled, waited for and ended (Linux).

Between a rank and its program stands a guard: a child of the rank that starts the program, adopts whatever outlives
its parent, and ends all of it once the program has ended, or once the rank is gone, however that was killed. Signals
that come to every process of a job do not end the guard.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

POLL = 0.1  # seconds
LINGER, TERM_PATIENCE = 2.0, 3.0  # seconds that what a program left running has to end by itself; and after SIGTERM
NOT_STARTED = 127  # exit status, as a shell has it

# What starts the processes that compute, and must not be told to stop: it would end them.
_LAUNCHERS = {"torchrun", "accelerate", "accelerate-launch", "deepspeed", "deepspeed.pt", "ds", "mpirun", "srun"}
_LAUNCHING = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
    "deepspeed.launcher.runner",
    "deepspeed.launcher.launch",
)
_SUBREAPER, _DEATH_SIGNAL = 36, 1  # of prctl


def find(name: str, folder: Path, path: str | None = None) -> str | None:
    """Where a program lies that is started in ``folder``; None if it is nowhere.

    Args:
        path: as $PATH has it; None: that of this process.
    """
    return shutil.which(str(folder / name) if "/" in name else name, path=path)


class Program:
    """A started program."""

    def __init__(self, guard: int, alive: int) -> None:
        self.guard = guard
        self._alive = alive
        self._status: int | None = None
        self._told: set[tuple[int, float]] = set()

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Program:
        """Start it in ``folder``. Must be called before this process has threads."""
        _prctl(_SUBREAPER, 1)  # should the guard itself be killed, what it guarded comes to this process
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        guard = os.fork()
        if guard == 0:
            os.close(write)
            _guard(command, environment, folder, read)
        os.close(read)
        return cls(guard, write)

    def poll(self) -> int | None:
        """None while it runs; then its exit status, 128 + n for signal n, and nothing that it started is left."""
        if self._status is None:
            pid, status = os.waitpid(self.guard, os.WNOHANG)
            if pid:
                self._status = _status(status)
                self.end()
        return self._status

    def hand_on(self, number: int) -> int:
        """Send a signal, once, to each of its processes that handles it and is no launcher of others.

        To be called again, for a process may handle it only later. Returns how many were sent it now.
        """
        new = 0
        for process in _descendants(self.guard):
            with contextlib.suppress(psutil.Error):
                known = (process.pid, process.create_time())
                if known in self._told or not handles(process.pid, number) or launches(process.cmdline()):
                    continue
                process.send_signal(number)
                self._told.add(known)
                new += 1
        return new

    def end(self) -> None:
        """End all of it at once."""
        with contextlib.suppress(OSError):
            os.close(self._alive)  # at which the guard ends it
        if self._status is None:
            with contextlib.suppress(ChildProcessError):
                self._status = _status(os.waitpid(self.guard, 0)[1])
        _kill_all()


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in text.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def launches(command: Sequence[str]) -> bool:
    """Whether a command line is that of a known launcher."""
    for place, word in enumerate(command[:8]):
        if word == "-m":
            return command[place + 1 : place + 2] != [] and command[place + 1] in _LAUNCHING
        if word.rpartition("/")[2] in _LAUNCHERS:
            return True
        if place and not word.startswith("-"):
            return False
    return False


# -- the guard ---------------------------------------------------------------------------------------------------


def _guard(command: Sequence[str], environment: Mapping[str, str], folder: Path, alive: int) -> NoReturn:
    """In a child of its own: start the program, end all of it with itself, leave with its status."""
    status = NOT_STARTED
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _prctl(_SUBREAPER, 1)
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, preexec_fn=_begin
        )
        found = _attend(process.pid, alive)
        if found is not None:
            status = found
            _wind_up(alive)
    except OSError as error:
        print(f"Error: cannot start {command[0]!r} in {folder}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        _kill_all()
        os._exit(status)


def _begin() -> None:
    """Between fork and exec: signals as a program expects them, but for the one that Slurm sends to all of a job."""
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    # By default it would end a launcher, and workers that have not come to install their handler yet.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _attend(program: int, alive: int) -> int | None:
    """Wait for the program; its exit status, or None if the rank went first."""
    while True:
        if _gone(alive, POLL):
            return None
        status = _reap().get(program)
        if status is not None:
            return status


def _wind_up(alive: int) -> None:
    """What a program left running may end by itself, then is asked to, while there is somebody to wait for it."""
    for patience, asked in ((LINGER, False), (TERM_PATIENCE, True)):
        for process in _descendants(os.getpid()) if asked else ():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        end = time.monotonic() + patience
        while _descendants(os.getpid()) and time.monotonic() < end and not _gone(alive, POLL):
            _reap()


def _gone(alive: int, patience: float) -> bool:
    """Whether the other end of the pipe is closed, which nobody ever writes into."""
    return bool(select.select([alive], [], [], patience)[0])


def _kill_all() -> None:
    """Kill whatever descends from this process, until nothing does."""
    while found := _descendants(os.getpid()):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _reap()
        time.sleep(0.01)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    living = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _reap() -> dict[int, int]:
    """The exit statuses of children that have ended, by pid."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            found[pid] = _status(status)
    return found


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)
