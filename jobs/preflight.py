"""Before a training on several nodes: are they fit? Joins ``trainer.preflight`` to an attempt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from hpc.attempt import Attempt
from hpc.errors import Failed
from hpc.pairs import partner
from hpc.runs import UNFIT, pair_passed, write_json, write_text

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]


def look(attempt: Attempt, nodes: list[str], device: torch.device) -> Callable[[Store], AbstractContextManager[None]]:
    """What guards ``trainer.distributed.join``: every rank reports in, then they have to join within a bound.

    Raises (when entered):
        Failed: if a node is not fit; which, is written down for the supervisor.
    """
    from trainer import preflight

    @contextmanager
    def guard(store: Store) -> Iterator[None]:
        try:
            preflight.report(
                store,
                rank=attempt.rank,
                world_size=attempt.world_size,
                nodes=nodes,
                device=device,
                folder=attempt.folder,
            )
        except preflight.PreflightError as error:
            if attempt.rank == 0:
                write_json(attempt.folder / UNFIT, {"nodes": error.nodes, "words": str(error)})
            raise Failed(f"preflight: {error}") from error
        with preflight.bounded(preflight.TOGETHER, "joining all ranks", preflight.EXIT):
            yield

    return guard


def pairs(attempt: Attempt, turn: int, device: torch.device) -> None:
    """One rank of each node tries to reduce something with that of another node; a marker for each that could."""
    from trainer import distributed, preflight

    if attempt.local_rank:
        return
    node, nodes = attempt.rank // attempt.ranks_per_node, attempt.world_size // attempt.ranks_per_node
    other = partner(node, nodes, turn)
    if other is None:
        return
    first = min(node, other)
    address = f"pair-{turn}-{first}.json"
    try:
        with preflight.bounded(preflight.TOGETHER, f"joining node {other}", status=0):
            distributed.join(
                rank=int(node != first),
                world_size=2,
                device=device,
                publish=lambda port: attempt.publish(port, name=address),
                lookup=lambda: attempt.lookup(preflight.TOGETHER, name=address),
            )
        # A failure here must not end the other pairs, which Slurm would do for any other status.
        preflight.reduce(device, status=0)
    except Exception as error:
        print(f"no reduction between nodes {node} and {other}: {error}", file=sys.stderr)
        return
    write_text(attempt.folder / pair_passed(turn, node), "")
    distributed.leave()
