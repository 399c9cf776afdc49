"""Joining the ranks: the process group, the device of a rank and its threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from trainer.config import Device

# For a collective: above what trainer.watchdog allows the slowest part, which knows better what takes long, and says
# where a rank hangs.
PATIENCE = timedelta(minutes=90)


def join(
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    publish: Callable[[int], None],
    lookup: Callable[[], tuple[str, int]],
    timeout: timedelta = timedelta(minutes=10),
    guard: Callable[[Store], AbstractContextManager[None]] = lambda store: contextlib.nullcontext(),
) -> None:
    """Form the process group of all ranks; returns when all of them have joined.

    Rank 0 listens on a port that the system chooses and tells it through ``publish(port)``; the others ask for
    (host, port) with ``lookup()``. Nobody guesses a port, so runs that share a node cannot collide.

    Args:
        timeout: after which a rank that waits for another to join gives up.
        guard: entered once ranks can exchange words, and around opening the network between them.
    """
    if rank == 0:
        # Bound on all interfaces; the name is only how this process reaches its own server.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        publish(store.port)
    else:
        host, port = lookup()
        store = TCPStore(host, port, is_master=False, timeout=timeout)
    cuda = device.type == "cuda"
    with guard(store):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=PATIENCE,
            device_id=device if cuda else None,
        )
        # Over gloo on ranks of every kind.
        dist.all_reduce(torch.zeros(1))


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


class NoGPU(Exception):
    """A GPU was granted or asked for, torch could use one, and there is none to be seen."""


def device_of(choice: Device, local_rank: int, *, granted: bool = False) -> torch.device:
    """The device that a rank computes on.

    Args:
        granted: GPUs were granted to this process: ``auto`` then means one of them. Otherwise one broken node, or
            a torch for CPUs, would let a job occupy GPUs for days and compute beside them.

    Raises:
        ValueError: if it is to be a GPU and this torch was built without them.
        NoGPU: if it is to be a GPU and this process sees none, as after a fault of the node's driver.
    """
    if choice is Device.cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if choice is Device.auto and not granted:
            return torch.device("cpu")
        said = f"train.device={choice.value}: this process sees no GPU"
        if not torch.backends.cuda.is_built():
            raise ValueError(f"{said}: torch {torch.__version__} was built without CUDA. Try: train.device=cpu")
        raise NoGPU(f"{said}. To leave this node out: job.exclude=NODE; to compute on CPUs: train.device=cpu")
    # A site may show a rank all GPUs of the node, or only its own.
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_threads(threads: int, ranks_per_node: int) -> int:
    """Limit this process's CPU threads; 0 leaves it to OMP_NUM_THREADS, or else takes the rank's share of the cores.

    Returns:
        The number set.
    """
    if threads == 0 and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    if threads == 0:
        cores = len(os.sched_getaffinity(0))
        bound = cores < (os.cpu_count() or cores)  # the launcher already gave each rank cores of its own
        threads = cores if bound else max(1, cores // ranks_per_node)
    torch.set_num_threads(threads)
    return threads


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for the next step to use.

    glibc gives large blocks back to the system as they are freed, which clears and maps them anew when the next pass
    asks for as much: 120,000 page faults a step where 4,000 would do, with 16 million active parameters on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def set_deterministic(enabled: bool) -> None:
    """Refuse kernels whose result depends on timing, or allow them again."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(enabled)
    # Filling every fresh tensor with NaN serves debugging only, and costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
