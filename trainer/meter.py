"""Where the time of a step goes, how much memory it takes, and how much of the hardware's peak it reaches."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config import ModelConfig
from trainer.size import flops_per_token

Events = tuple[torch.cuda.Event, torch.cuda.Event]


class Meter:
    """Times the parts of a step.

    On CPUs by the clock. On GPUs, where the host runs ahead, by events on the stream, which ``read`` takes after
    the step's one wait for the device, of those that have passed by then: what is launched behind that wait, the
    optimizer, is told with the next step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = {}
        self._open: list[tuple[str, Events]] = []
        self._spare: list[Events] = []

    @contextmanager
    def part(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Count what happens inside as ``name``; parts do not nest.

        Args:
            host: by the clock on GPUs too, for what the host does alone.
        """
        if self.device.type != "cuda" or host:
            began = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began
        else:
            events = self._spare.pop() if self._spare else _events()
            events[0].record()
            yield
            events[1].record()
            self._open.append((name, events))

    def read(self) -> dict[str, float]:
        """Seconds of each part since it was read last, as ``<name>_s``; parts that did not occur are not there."""
        waiting: list[tuple[str, Events]] = []
        for name, (begin, end) in self._open:
            if end.query():
                self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1e3
                self._spare.append((begin, end))
            else:
                waiting.append((name, (begin, end)))
        self._open = waiting
        found = {f"{name}_s": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return found

    def peak_memory_gib(self) -> float:
        """The most this rank has held so far: of its GPU, what torch allocated there; on a CPU, resident memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB


def _events() -> Events:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


class Speed:
    """Tokens a second in terms of arithmetic.

    FLOPs of a token are ``trainer.size.flops_per_token``: of active parameters, attention counted in full, nothing
    for recomputation. MFU is their rate over ``peak_flops``.

    Args:
        peak_flops: of all devices together, FLOP/s; None where it is not known.
    """

    def __init__(self, model: ModelConfig, seq_len: int, peak_flops: float | None) -> None:
        self.flops_per_token = flops_per_token(model, seq_len)
        self.peak_flops = peak_flops

    def of(self, tokens_per_s: float) -> dict[str, float]:
        """``tokens_per_s``, ``flops_per_s`` and, where the peak is known, ``mfu`` (0 to 1)."""
        flops = tokens_per_s * self.flops_per_token
        found = {"tokens_per_s": tokens_per_s, "flops_per_s": flops}
        return found | {"mfu": flops / self.peak_flops} if self.peak_flops else found
