"""Profiles of a running training, taken when somebody asks for one (``trainer.profile_request``)."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.profile_request import Request, answer, take
from trainer.record import Record

LOOK = 0.5  # seconds between two looks at the folder, which may lie on a slow file system
_TOP = 15  # operators in the table

log = logging.getLogger(__name__)


class Profiles:
    """Takes requests on rank 0 and profiles steps on the rank that is meant.

    All ranks learn of a request by the reduction that ends a step, and so agree on which steps are profiled.

    Args:
        folder: where requests come in and profiles go; None: there are none.
    """

    def __init__(self, folder: Path | None, *, rank: int, world_size: int, device: torch.device, record: Record):
        self.folder = folder
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.record = record
        self._request: Request | None = None
        self._last = 0  # step that a profile ends with
        self._settling = False  # it ended with the step before, and other ranks may have had to wait for it
        self._profile: profile | None = None
        self._next_look = 0.0

    def poll(self) -> Request | None:
        """What was asked for; on rank 0 alone, and none while a profile is being taken."""
        if self.folder is None or self.rank != 0 or self.busy:
            return None
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK
        return take(self.folder)

    def after(self, step: int, request: Request | None) -> None:
        """End what ends with ``step``, begin what was asked for in it. Never raises."""
        self._settling = False
        if self._request is not None and step >= self._last:
            self._finish(self._request)
            self._request, self._settling = None, True
        if request is not None:
            self._request, self._last = request, step + request.steps
            self._begin(request)

    @property
    def busy(self) -> bool:
        """A profile is being taken, on this rank or another, or was up to the step before."""
        return self._request is not None or self._settling

    def _begin(self, request: Request) -> None:
        if request.rank >= self.world_size and self.rank == 0:
            self._answer(request, {"error": f"there is no rank {request.rank}, only 0 to {self.world_size - 1}"})
        if request.rank != self.rank:
            return
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._profile.start()

    def _finish(self, request: Request) -> None:
        if self._profile is None:
            return
        taken, self._profile = self._profile, None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        first = self._last - request.steps + 1
        try:
            taken.stop()
            trace = self._write(taken, f"step-{first}-rank-{self.rank}.json.gz")
        except (OSError, RuntimeError) as error:
            log.warning("the profile could not be written: %s", error)
            self._answer(request, {"error": f"the profile could not be written: {error}"})
            return
        self._answer(request, self._summary(taken, request, first, trace))
        self.record.event("profile", step=self._last, steps=request.steps, rank=self.rank, file=trace.name)

    def _write(self, taken: profile, name: str) -> Path:
        assert self.folder is not None
        temporary = self.folder / f".tmp-{name}"  # torch compresses what ends in .gz
        taken.export_chrome_trace(str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        return temporary.replace(self.folder / name)

    def _summary(self, taken: profile, request: Request, first: int, trace: Path) -> dict[str, Any]:
        device = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        rows = sorted(taken.key_averages(), key=lambda row: getattr(row, device), reverse=True)
        total = sum(getattr(row, device) for row in rows) or 1.0
        top = [
            {
                "name": row.key,
                "calls": row.count,
                "ms_per_step": getattr(row, device) / 1e3 / request.steps,
                "share": getattr(row, device) / total,
            }
            for row in rows[:_TOP]
        ]
        where = {"first_step": first, "last_step": self._last, "rank": self.rank, "device": self.device.type}
        return {**where, "trace": trace.name, "top": top}

    def _answer(self, request: Request, result: dict[str, Any]) -> None:
        assert self.folder is not None
        with suppress(OSError):
            answer(self.folder, request, result)
