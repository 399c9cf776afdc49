"""What torch can still say of an attempt that hangs or ran out of memory, as files for its own viewers."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

import torch


def flight_recorder(folder: Path, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have torch keep its last collectives for ``Watchdog`` to write down; before the process group is made."""
    environment.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    # NCCL's own watchdog, should it be faster than ours, writes to the same folder.
    environment.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    environment.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "nccl-rank-"))


def write_flights(path: Path) -> bool:
    """Write what the flight recorder kept of the last collectives; False where it kept nothing."""
    from torch._C import _distributed_c10d

    names = ["_dump_nccl_trace"] if torch.cuda.is_available() else []
    for name in (*names, "_dump_fr_trace"):
        dump = getattr(_distributed_c10d, name, None)
        if dump is not None and (found := dump()):
            path.write_bytes(found)
            return True
    return False


def record_memory(device: torch.device) -> None:
    """Have torch note for what it allocates on a GPU, at some microseconds each."""
    if device.type == "cuda":
        torch.cuda.memory._record_memory_history("state", stacks="python", device=device)


def write_memory(folder: Path | None, rank: int) -> Path | None:
    """After an out of memory on a GPU: what it was full of, for https://docs.pytorch.org/memory_viz; the file."""
    if folder is None or not torch.cuda.is_available():
        return None
    path = folder / f"memory-rank-{rank}.pickle"
    with suppress(Exception):
        torch.cuda.memory._dump_snapshot(str(path))
        return path
    return None
