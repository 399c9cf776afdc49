"""This machine, as what a supervisor runs in."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc import attempt, ledger
from hpc.allocation import Ranks
from hpc.config import Config
from hpc.exits import Exit, shell_status
from hpc.ledger import Record
from hpc.processes import end_with_parent, process_lives
from hpc.request import Request
from hpc.requeue import Cause
from hpc.runs import Run
from hpc.script import rank_command
from monitoring.layout import rank_log


@dataclass
class LocalAllocation:
    config: Config
    request: Request
    folder: Path
    job_id: str = field(default_factory=lambda: f"local-{os.environ.get(attempt.KEEPER, os.getpid())}")
    restart_count: int = 0
    nodes: list[str] = field(default_factory=lambda: [socket.gethostname()])
    ends: float = math.inf

    def __post_init__(self) -> None:
        self.ends = time.time() + self.request.time

    def start(self, folder: Path, environment: Mapping[str, str]) -> Ranks:
        size = self.request.world_size
        command = rank_command(self.config, self.folder)
        processes = []
        for rank in range(size):
            identity = {
                attempt.RANK: str(rank),
                attempt.WORLD_SIZE: str(size),
                attempt.LOCAL_RANK: str(rank),
                attempt.NODE: self.nodes[0],
            }
            with rank_log(folder, rank).open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **environment, **identity},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
                    )
                )
        return LocalRanks(processes)

    def owner_lives(self, run: Run, record: Record) -> bool:
        if record.ended is not None and record.action in ("end", "stop"):
            return False
        if record.host != socket.gethostname():
            return ledger.silent_for(run, record) < ledger.STALE_SECONDS
        return process_lives(record.pid, record.began)

    def taken_away(self) -> str | None:
        return None

    def end_unbidden(self) -> tuple[Cause, str] | None:
        return None

    def cause_of_stop(self, reason: str, grace: float) -> tuple[Cause, str]:
        if reason == "deadline":
            return Cause.time_limit, f"job.time={self.config.job.time} is used up"
        return Cause.cancelled, f"{reason} to the supervisor"

    def clear(self) -> None:
        """Nothing: ranks here end with their supervisor."""

    def requeue(self, hold: int, exclude: Sequence[str]) -> str:
        self.ends = time.time() + self.request.time
        self.restart_count += 1
        return "here"


@dataclass
class LocalRanks:
    """The ranks as processes of this machine; when one fails the others are ended, which would wait for ever."""

    processes: list[subprocess.Popen[bytes]]
    failed: tuple[int, float] | None = None  # exit status of the first that failed, monotonic time
    first: frozenset[int] = frozenset()  # ranks that had failed when the first failure was seen

    def poll(self) -> int | None:
        codes = [process.poll() for process in self.processes]
        if any(codes) and self.failed is None:
            self.failed = (max(shell_status(code) for code in codes if code), time.monotonic())
            self.first = frozenset(rank for rank, code in enumerate(codes) if code)
        if any(code is None for code in codes):
            if self.failed is not None:
                self.end(now=time.monotonic() - self.failed[1] > 5)
            return None
        return 0 if self.failed is None else self.failed[0]

    def ask_to_stop(self) -> None:
        self._send(signal.SIGUSR2)

    def end(self, *, now: bool) -> None:
        self._send(signal.SIGKILL if now else signal.SIGTERM)

    def exits(self) -> list[Exit]:
        codes = [process.poll() for process in self.processes]
        return [Exit(rank, shell_status(code), "", rank in self.first) for rank, code in enumerate(codes) if code]

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)
