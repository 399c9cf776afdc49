"""Ranks of a process group on this machine, which meet through a file."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def joined(folder: Path, rank: int, world_size: int, threads: int) -> Iterator[None]:
    """Be this rank of a gloo group, with so many threads, until the block ends.

    Args:
        folder: of the group alone; its ranks meet there.
    """
    import torch

    from trainer import distributed

    port = folder / "port"

    def publish(number: int) -> None:
        port.with_suffix(".tmp").write_text(str(number))
        port.with_suffix(".tmp").rename(port)

    def lookup() -> tuple[str, int]:
        while not port.exists():
            time.sleep(0.01)
        return "127.0.0.1", int(port.read_text())

    # torch renames its collectives from release to release.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.pop("OMP_NUM_THREADS", None)
    distributed.set_threads(threads, 1)
    distributed.join(rank=rank, world_size=world_size, device=torch.device("cpu"), publish=publish, lookup=lookup)
    try:
        yield
    finally:
        distributed.leave()
