"""Writing a checkpoint that lies in host memory, all ranks together, beside training or while it waits."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint_folder as disk
from trainer.agreement import Agreement, in_one_line
from trainer.checkpoint_errors import CheckpointError
from trainer.disk import sync_folder
from trainer.record import Record
from trainer.staging import Staged, file_of

METADATA = ".metadata"
RNG = "rng.pt"

log = logging.getLogger(__name__)


@dataclass
class Saving:
    """One save, from its beginning until its outcome was agreed on. Of one thread at a time: of the writer while it
    writes."""

    step: int
    content: dict[str, Any]  # of the marker, but for the files
    rng: dict[str, Any]
    staged: Staged
    began: float  # time.perf_counter()
    step_s: float  # as Cost has it, like the seconds below
    unstaged: Exception | None = None  # why this rank's state is not in its memory
    thread: threading.Thread | None = None  # that writes it; None: whoever saves does
    blocked_s: float = 0.0
    complete_s: float = 0.0
    cpu_s: float = 0.0
    failure: str | None = None
    told: bool = False


@dataclass(frozen=True)
class Writer:
    """How the checkpoints of a run are written; the fields are those of ``Checkpoints``."""

    folder: Path
    keep_latest: int
    keep_every: int
    agree: Agreement
    record: Record

    def write(self, saving: Saving) -> None:
        """Write what is staged; never raises."""
        if saving.thread is not None:
            _give_way()
        cpu = time.thread_time()
        try:
            self._complete(saving)
        except CheckpointError as error:
            reason = str(error)
            with contextlib.suppress(Exception):
                saving.failure = reason
                saving.failure = self.agree.on_rank_0(lambda: self.give_up(saving.step, reason))
        except BaseException as error:  # the other ranks are gone, or this one is about to be
            saving.failure = in_one_line(error)
        saving.cpu_s = time.thread_time() - cpu
        saving.complete_s = time.perf_counter() - saving.began

    def _complete(self, saving: Saving) -> None:
        image, metadata = saving.staged
        # Records of steps that a checkpoint covers are never made again, so they must be as safe as it is.
        self.record.sync()
        temporary = self.agree.on_rank_0(lambda: disk.make_temporary(self.folder, saving.step))

        def part() -> tuple[list[int | str], dict[str, Any]]:
            if saving.unstaged is not None:
                raise saving.unstaged
            recorded = disk.write(temporary / file_of(self.agree.rank), memoryview(image.memory))
            sync_folder(temporary)
            return recorded, saving.rng

        def commit(parts: list[tuple[list[int | str], dict[str, Any]]]) -> None:
            files = {file_of(rank): recorded for rank, (recorded, _) in enumerate(parts)}
            files[METADATA] = disk.write_small(temporary / METADATA, metadata)
            files[RNG] = disk.write_small(temporary / RNG, _bytes_of([state for _, state in parts]))
            sync_folder(temporary)
            disk.commit(self.folder, temporary, saving.step, saving.content | {"files": files})
            self._purge()

        self.agree.on_each_rank(part, commit)

    def _purge(self) -> None:
        try:
            disk.purge(self.folder, self.keep_latest, self.keep_every)
        except OSError as error:  # the checkpoint stands; what is too much is tried again after the next one
            log.warning("old checkpoints in %s could not be removed: %s", self.folder, error)

    def give_up(self, step: int, reason: str) -> str:
        """Clear away what was written of a checkpoint; what to tell a person."""
        with contextlib.suppress(OSError):
            disk.remove_leftovers(self.folder)  # a full disk needs the room
        standing = _standing(self.folder)
        return f"the checkpoint of step {step} could not be written to {self.folder}: {reason}. {standing}"


def _give_way() -> None:
    """Let this thread compute only where training leaves a core idle. What the kernel does for it is not slowed."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _bytes_of(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _standing(folder: Path) -> str:
    try:
        complete = disk.complete_steps(folder)
    except OSError:
        complete = []
    return f"The newest complete one is of step {complete[-1]}" if complete else "There is no complete one"
