"""Real ranks for tests: processes that join a gloo process group, run one function together, and leave it.

They are forked from a process that has imported torch, which takes seconds, and serve some tasks each: whatever a task
leaves behind, gloo leaves threads that wake a hundred times a second.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from pathlib import Path
from typing import Any

PATIENCE = 90.0  # seconds a task may take, start-up of the processes included
TASKS = 8  # of a process
PRELOADED = ["torch.distributed.fsdp", "torch.distributed.checkpoint", "trainer.parallel", "trainer.train"]


class RankFailed(AssertionError):
    """A rank raised or died; the message has its traceback."""


class Ranks:
    """Processes, as many as a task ever asked for; ``run`` gives each of the first n of them one rank."""

    def __init__(self) -> None:
        self.workers: list[tuple[Any, Connection]] = []
        self._tasks = 0

    def run(self, work: Callable[..., Any], *args: Any, world_size: int, patience: float = PATIENCE) -> list[Any]:
        """``work(*args)`` on each rank, inside a process group; the results by rank.

        Raises:
            RankFailed: if a rank raises, dies or does not answer; the processes are then started anew.
        """
        if self._tasks >= TASKS:
            self.close()
        self._tasks += 1
        self._start(world_size)
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(world_size):
                self.workers[rank][1].send((work, args, rank, world_size, folder))
            results: dict[int, Any] = {}
            end = time.monotonic() + patience
            while len(results) < world_size:
                waiting = {self.workers[rank][1]: rank for rank in range(world_size) if rank not in results}
                ready = wait_any(list(waiting), max(0.0, end - time.monotonic()))
                if not ready:
                    self._fail(f"rank {min(waiting.values())} did not answer within {patience:.0f} s")
                for connection in ready:
                    rank = waiting[connection]  # type: ignore[index]
                    try:
                        problem, results[rank] = connection.recv()  # type: ignore[union-attr]
                    except EOFError:
                        problem = "died"
                    if problem:
                        self._fail(f"rank {rank}: {problem}")
            return [results[rank] for rank in range(world_size)]

    def close(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.kill()
            process.join()
        self.workers, self._tasks = [], 0

    def _start(self, world_size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        while len(self.workers) < world_size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def _fail(self, problem: str) -> None:
        self.close()
        raise RankFailed(problem)


def _serve(connection: Connection) -> None:
    while True:
        try:
            work, args, rank, world_size, folder = connection.recv()
        except EOFError:
            return
        try:
            connection.send((None, _together(work, args, rank, world_size, Path(folder))))
        except BaseException:
            connection.send((traceback.format_exc(), None))


def _together(work: Callable[..., Any], args: tuple[Any, ...], rank: int, world_size: int, folder: Path) -> Any:
    import torch

    from trainer import distributed

    def publish(port: int) -> None:
        (folder / "port.tmp").write_text(str(port))
        (folder / "port.tmp").rename(folder / "port")

    def lookup() -> tuple[str, int]:
        end = time.monotonic() + PATIENCE
        while not (folder / "port").exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        return "127.0.0.1", int((folder / "port").read_text())

    distributed.set_threads(1, 1)
    distributed.set_deterministic(True)
    distributed.join(rank=rank, world_size=world_size, device=torch.device("cpu"), publish=publish, lookup=lookup)
    try:
        return work(*args)
    finally:
        distributed.leave()
