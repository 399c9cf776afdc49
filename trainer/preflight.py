"""A look at every rank, its device and the network between them, before anything is trained on them.

What each rank says goes through the store by which ranks find each other, so that a node whose GPU or network is
broken can still be named. Only then all ranks reduce something together, within a bound; where that fails nobody can
say who is to blame, and pairs of ranks try it again (``pair``).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

EXIT = 76  # status of a rank that gave up on a reduction
TOKEN = "preflight.token"  # in the attempt's folder: what every rank must be able to read
REPORTS = 180.0  # seconds for all ranks to report in, after the first: importing torch from a cold disk takes minutes
LINGER = 10.0  # seconds for which rank 0 waits until the others know that a node is unfit
TOGETHER = 45.0  # seconds for one reduction, its network's start included
SETTLED = 5.0  # seconds for the second one: a network that needs longer for so little is as good as broken
FREE = 0.85  # share of a GPU's memory that must be free
SLOW = 3.0  # a device that takes so many times as long as the usual one is broken, or somebody else's too
SKEW = 5.0  # seconds by which clocks may differ
_SIZE = {"cuda": 8192, "cpu": 256}  # of the product


class PreflightError(Exception):
    """Nodes that are not fit, with what is wrong with each."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"node {node}: {words}" for node, words in faults))
        self.nodes = list(dict.fromkeys(node for node, _ in faults))


@dataclass(frozen=True)
class Report:
    """What a rank found on its own."""

    rank: int
    node: str
    free: float | None = None  # share of its GPU's memory
    matmul_s: float | None = None
    error: str = ""


def report(
    store: Store, *, rank: int, world_size: int, nodes: Sequence[str], device: torch.device, folder: Path
) -> None:
    """Report in, and learn whether all nodes are fit. Collective over the store alone.

    Args:
        nodes: of each rank.
        folder: of the attempt; must be the same on every node.

    Raises:
        PreflightError: on every rank that is still there, if they are not.
    """
    mine = _look(rank, nodes[rank], device)
    store.set(f"preflight/{rank}", json.dumps(asdict(mine)))
    if rank == 0:
        faults = _collect(store, nodes, folder)
        store.set("preflight/verdict", json.dumps(faults))
        if faults:
            store.set("preflight/go", "0")  # those who have not looked at the folder yet need not
    else:
        store.wait(["preflight/go"], timedelta(seconds=REPORTS + 60))
        if store.get("preflight/go") == b"1":
            store.set(f"preflight/{rank}/second", json.dumps([time.time(), _token(folder)]))
    store.wait(["preflight/verdict"], timedelta(seconds=REPORTS + 120))
    if faults := json.loads(store.get("preflight/verdict")):
        if rank == 0:
            _linger(store, world_size)
        else:
            store.set(f"preflight/{rank}/told", "1")
        raise PreflightError(faults)


def _linger(store: Store, world_size: int) -> None:
    """Rank 0, with which the store ends: until those who reported in know of the faults."""
    end = time.monotonic() + LINGER
    for rank in range(1, world_size):
        if _arrives(store, f"preflight/{rank}", 0.0):
            _arrives(store, f"preflight/{rank}/told", end)


def _look(rank: int, node: str, device: torch.device) -> Report:
    try:
        free = None
        if device.type == "cuda":
            available, total = torch.cuda.mem_get_info(device)
            free = available / total
        return Report(rank, node, free, _matmul(device))
    except Exception as error:
        return Report(rank, node, error=f"{type(error).__name__}: {error}".splitlines()[0])


def _matmul(device: torch.device) -> float:
    """Seconds of one product, the best of some."""
    size = _SIZE.get(device.type, 256)
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        product = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    if float(product[0, 0]) != size:
        raise ArithmeticError(f"a product of ones gave {float(product[0, 0])} instead of {size}")
    return best


def _collect(store: Store, nodes: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Rank 0: everybody's report, or who did not send any."""
    end = time.monotonic() + REPORTS
    missing = [rank for rank in range(len(nodes)) if not _arrives(store, f"preflight/{rank}", end)]
    if missing:
        return [(nodes[rank], f"rank {rank} did not report within {REPORTS:.0f} s") for rank in missing]
    reports = [Report(**json.loads(store.get(f"preflight/{rank}"))) for rank in range(len(nodes))]
    if faults := judge(reports):
        return faults
    token = os.urandom(8).hex()
    (folder / TOKEN).write_text(token)
    store.set("preflight/go", "1")
    began = time.time()
    second = {}
    for rank in range(1, len(nodes)):
        if not _arrives(store, f"preflight/{rank}/second", time.monotonic() + 30.0):
            return [(nodes[rank], f"rank {rank} fell silent")]
        second[rank] = json.loads(store.get(f"preflight/{rank}/second"))
    return judge_second(second, nodes, token, began, time.time())


def _arrives(store: Store, key: str, end: float) -> bool:
    with contextlib.suppress(RuntimeError):
        store.wait([key], timedelta(seconds=max(0.05, end - time.monotonic())))
        return True
    return False


def judge(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Nodes whose ranks are not fit, each with what is wrong. Pure."""
    faults = [(each.node, f"rank {each.rank}: {each.error}") for each in reports if each.error]
    for each in reports:
        if each.free is not None and each.free < FREE:
            faults.append((each.node, f"rank {each.rank}: only {each.free:.0%} of its GPU's memory is free"))
    times = [each.matmul_s for each in reports if each.matmul_s is not None and each.free is not None]
    usual = statistics.median(times) if times else 0.0
    for each in reports:
        # CPUs of a busy machine differ by more than that without being broken.
        if each.free is not None and each.matmul_s is not None and each.matmul_s > SLOW * usual:
            faults.append((each.node, f"rank {each.rank}: its GPU takes {each.matmul_s / usual:.1f} times as long"))
    return faults


def judge_second(
    answers: dict[int, tuple[float, str]], nodes: Sequence[str], token: str, asked: float, heard: float
) -> list[tuple[str, str]]:
    """Nodes that do not see the run's folder, or whose clock is another. Pure.

    Args:
        answers: of each rank, its clock and what it read.
        asked, heard: rank 0's clock before and after.
    """
    faults = []
    for rank, (clock, read) in answers.items():
        if read != token:
            faults.append((nodes[rank], f"rank {rank} does not see the run's folder as rank 0 does"))
        elif not asked - SKEW <= clock <= heard + SKEW:
            faults.append((nodes[rank], f"rank {rank}: its clock differs by {clock - asked:+.0f} s"))
    return list(dict.fromkeys(faults))


def _token(folder: Path) -> str:
    end = time.monotonic() + 20.0  # a network file system may remember for a while that there was nothing
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            list(folder.iterdir())
            if text := (folder / TOKEN).read_text():
                return text
        time.sleep(0.1)
    return ""


def reduce(device: torch.device, status: int = EXIT) -> None:
    """Sum something over all ranks, twice. Ends this process with ``status`` where that takes too long."""
    values = torch.ones(1 << (24 if device.type == "cuda" else 16), device=device)
    for bound in (TOGETHER, SETTLED):
        with bounded(bound, "a reduction over all ranks", status):
            dist.all_reduce(values)
            if device.type == "cuda":
                torch.cuda.synchronize(device)


@contextlib.contextmanager
def bounded(seconds: float, what: str, status: int) -> Iterator[None]:
    """Ends this process where its body takes longer: a call into a broken network does not come back."""

    def give_up() -> None:
        print(f"PreflightError: {what} did not end within {seconds:.0f} s", flush=True)
        os._exit(status)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
