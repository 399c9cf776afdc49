"""Parts of a kernel side by side, each on a core of its own.

Where a part is many small products, all cores at each of them wait for one another, and for the interpreter in
between, longer than they compute. Here one thread computes a part from its beginning to its end.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def each(compute: Callable[[int], None], parts: int) -> None:
    """Call ``compute`` with 0 to parts - 1, in no order; what a part gives does not depend on who takes it.

    Records no gradients.
    """
    threads = torch.get_num_threads()
    left = iter(range(parts))  # each thread takes the next
    if threads == 1 or parts < threads:
        _work(compute, left)
        return
    pool = _pool(threads)
    for done in [pool.submit(_work, compute, left) for _ in range(threads)]:
        done.result()


def _work(compute: Callable[[int], None], left: Iterator[int]) -> None:
    with torch.no_grad():
        for part in left:
            compute(part)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """As many threads, each of which torch gives one core."""
    ready = threading.Barrier(threads + 1)

    def narrow() -> None:
        torch.get_num_threads()  # a thread's first question gives it everybody's number, later it keeps its own
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "kernel", initializer=narrow)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # everybody's number, which the last thread has changed
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of these threads
