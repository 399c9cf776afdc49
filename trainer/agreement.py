"""Work that ranks do together and whose outcome all of them must know: it succeeds for all, or fails for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Result = TypeVar("Result")
Joined = TypeVar("Joined")


class Agreement:
    """Exchanges between all ranks over one process group. Every method is collective.

    Args:
        group: of all ranks, over gloo. Nothing else may use it at the same time.
        error: what is raised, on all ranks alike, when work fails on any.
    """

    def __init__(self, group: Any, error: type[Exception]) -> None:
        self.group = group
        self.error = error
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def on_rank_0(self, work: Callable[[], Result]) -> Result:
        """The result of rank 0, on every rank."""
        results: list[Result] = []
        failure = failure_of(lambda: results.append(work())) if self.rank == 0 else None
        shared: list[Any] = [(failure, results)]
        dist.broadcast_object_list(shared, src=0, group=self.group)
        failure, results = shared[0]
        if failure:
            raise self.error(failure)
        return results[0]

    def on_each_rank(self, work: Callable[[], Result], then: Callable[[list[Result]], Joined]) -> Joined:
        """Every rank does ``work``; rank 0 makes ``then`` of the results by rank, and all ranks get what it gave."""
        results: list[Result] = []
        failure = failure_of(lambda: results.append(work()))
        gathered: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        # To rank 0 alone: with a thousand ranks it makes a difference who hears of each file.
        dist.gather_object((failure, results), gathered, dst=0, group=self.group)

        def join() -> Joined:
            assert gathered is not None
            if failures := [f"rank {rank}: {failure}" for rank, (failure, _) in enumerate(gathered) if failure]:
                raise self.error("; ".join(failures))
            return then([result for _, (result,) in gathered])

        return self.on_rank_0(join)

    def to_each_rank(self, values: list[Result] | None) -> Result:
        """The value that rank 0 has for this rank."""
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, values, src=0, group=self.group)
        return mine[0]


def failure_of(work: Callable[[], Any]) -> str | None:
    """Do it; what went wrong in one line, or None."""
    from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException

    try:
        work()
    except CheckpointException as error:
        return "; ".join(sorted({in_one_line(cause) for cause, _ in error.failures.values()}))
    except Exception as error:
        return in_one_line(error)
    return None


def in_one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]
