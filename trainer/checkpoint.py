"""Saving and loading the state of a run, all ranks together.

A checkpoint holds tensors by names that no layout changes, so one written by any number of ranks loads into any
other. ``trainer.checkpoint_folder`` says how it lies on disk. Saving is synchronous.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer import checkpoint_folder as disk
from trainer import rng
from trainer.record import Record

RNG = "rng.pt"

FULL = 2**23  # bytes free below which a failed save is put down to a full disk
log = logging.getLogger(__name__)
Result = TypeVar("Result")


class CheckpointError(Exception):
    """No checkpoint could be written or read; the message says why. Raised on all ranks alike."""


class CheckpointMismatch(CheckpointError):
    """The checkpoints belong to another model or other data than the configuration names."""


@dataclass
class Progress:
    """Where training stands."""

    step: int = 0
    tokens: int = 0  # consumed since the first attempt
    next_sample: int = 0  # index of the first sample that no step has seen
    loss_first: float | None = None  # of the run's first step
    loss_last: float | None = None


class Checkpoints:
    """The checkpoints of one run. ``save`` and ``resume`` are collective.

    Args:
        folder: where they lie; made if it is missing.
        identity: what must be the same for a checkpoint to be this run's: model, data, seed. JSON values.
        keep_latest: the newest checkpoints kept.
        keep_every: checkpoints whose step is a multiple of it are kept for good; 0: none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        keep_latest: int,
        keep_every: int,
        device: torch.device,
        record: Record,
    ) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.keep_latest = keep_latest
        self.keep_every = keep_every
        self.device = device
        self.record = record
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint of ``progress.step``; returns when it is complete.

        Raises:
            CheckpointError: if any rank could not write; the checkpoints before are untouched.
        """
        began = time.perf_counter()
        if self.rank == 0:
            self.record.event("checkpoint_begin", step=progress.step)
        # Records of steps that a checkpoint covers are never made again, so they must be as safe as it is.
        self.record.sync()
        try:
            self._save(state, progress)
        except CheckpointError as error:
            reason = str(error)
            raise CheckpointError(self._on_rank_0(lambda: self._give_up(progress.step, reason))) from error
        if self.rank == 0:
            seconds = time.perf_counter() - began
            self.record.event("checkpoint", step=progress.step, tokens=progress.tokens, seconds=seconds)
            log.info("checkpoint of step %d written in %.2f s", progress.step, seconds)

    def resume(self, state: Mapping[str, Tensor], *, seed: int) -> Progress:
        """Load the newest complete checkpoint into ``state``, in place; a fresh start where there is none.

        A checkpoint whose files are damaged, or that cannot be loaded, is passed over for the one before it.

        Args:
            seed: for the random state of ranks of which the checkpoint has none.

        Raises:
            CheckpointMismatch: if there are checkpoints, but of another model or other data.
            CheckpointError: if there are checkpoints, but none can be loaded. Training is never silently started
                over.
        """
        passed_over: list[tuple[int, str]] = []
        for step, marker in reversed(self._on_rank_0(self._tidy_and_list)):
            reason = self._load(step, marker, state) if marker else f"{disk.COMPLETE} cannot be read"
            if marker and reason is None:
                self._on_rank_0(lambda: [self._pass_over(*each) for each in passed_over])
                self._restore_rng(step, marker["world_size"], seed)
                return self._resumed(marker)
            passed_over.append((step, str(reason)))
        if passed_over:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be loaded: "
                + "; ".join(f"step {step}: {reason}" for step, reason in passed_over)
                + ". To start over, move that folder away"
            )
        rng.seed(seed, self.rank)
        return Progress()

    # -- writing ---------------------------------------------------------------------------------------------

    def _save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        temporary = self._on_rank_0(lambda: disk.make_temporary(self.folder, progress.step))
        states = self._gather(rng.get_state(self.device))
        parts = self._on_each_rank(lambda: self._write(temporary, state, states))
        marker = {
            "progress": asdict(progress),
            "world_size": self.world_size,
            "identity": self.identity,
            "files": {name: recorded for part in parts for name, recorded in part.items()},
        }
        self._on_rank_0(lambda: self._commit(temporary, progress.step, marker))

    def _write(self, temporary: Path, state: Mapping[str, Tensor], states: list[Any]) -> dict[str, list[int | str]]:
        """Write and sync this rank's files; their sizes and checksums by name."""
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True, thread_count=1)
        save(dict(state), storage_writer=writer)
        names = [path.name for path in temporary.glob(f"__{self.rank}_*.distcp")]
        if self.rank == 0:
            with (temporary / RNG).open("wb") as file:
                torch.save(states, file)
                file.flush()
                os.fsync(file.fileno())
            names += [".metadata", RNG]
        disk.sync_folder(temporary)
        return {name: disk.describe(temporary / name) for name in names}

    def _give_up(self, step: int, reason: str) -> str:
        """Clear away what was written of a checkpoint; what to tell a person."""
        free = shutil.disk_usage(self.folder).free
        if free < FULL:  # torch's writer only says that a position in its file is not the expected one
            reason = f"the disk is full ({free / 2**20:.0f} MiB free): {reason}"
        self.record.event("checkpoint_failed", step=step, reason=reason)
        with contextlib.suppress(OSError):
            disk.remove_leftovers(self.folder)  # a full disk needs the room
        standing = _standing(self.folder)
        return f"the checkpoint of step {step} could not be written to {self.folder}: {reason}. {standing}"

    def _commit(self, temporary: Path, step: int, marker: Mapping[str, Any]) -> None:
        disk.commit(self.folder, temporary, step, marker)
        try:
            disk.purge(self.folder, self.keep_latest, self.keep_every)
        except OSError as error:  # the checkpoint stands; what is too much is tried again after the next one
            log.warning("old checkpoints in %s could not be removed: %s", self.folder, error)

    # -- reading ---------------------------------------------------------------------------------------------

    def _tidy_and_list(self) -> list[tuple[int, dict[str, Any] | None]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.remove_leftovers(self.folder)
        return [(step, disk.read_marker(self.folder, step)) for step in disk.complete_steps(self.folder)]

    def _load(self, step: int, marker: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
        """Load one checkpoint; why that cannot be done, or None. The same on all ranks."""
        if differences := sorted(_differences(marker["identity"], self.identity)):
            raise CheckpointMismatch(
                f"the checkpoint of step {step} in {self.folder} belongs to another model or other data: "
                + "; ".join(differences)
            )
        path = disk.step_folder(self.folder, step)
        mine = sorted(marker["files"].items())[self.rank :: self.world_size]
        damages = [damage for name, recorded in mine if (damage := disk.damage(path / name, recorded))]
        found = self._gather("; ".join(damages))
        if any(found):
            return "; ".join(damage for damage in found if damage)
        return next(filter(None, self._gather(_failure(lambda: _load_tensors(path, state)))), None)

    def _pass_over(self, step: int, reason: str) -> None:
        disk.mark_corrupt(self.folder, step)
        self.record.event("corrupt_checkpoint", step=step, reason=reason)
        log.warning("checkpoint of step %d is passed over: %s", step, reason)

    def _restore_rng(self, step: int, saved_world_size: int, seed: int) -> None:
        if self.rank < saved_world_size:
            path = disk.step_folder(self.folder, step) / RNG
            rng.set_state(torch.load(path, weights_only=True)[self.rank], self.device)
            return
        # Keyed by the step too: a rank that joins again later must not draw the same numbers once more.
        rng.seed(seed, self.rank, step)
        self.record.event("rng_reseeded", step=step, rank=self.rank, saved_world_size=saved_world_size)

    def _resumed(self, marker: Mapping[str, Any]) -> Progress:
        progress = Progress(**marker["progress"])
        if self.rank == 0:
            self.record.event(
                "resumed",
                step=progress.step,
                tokens=progress.tokens,
                world_size=self.world_size,
                saved_world_size=marker["world_size"],
            )
            log.info("resumed from the checkpoint of step %d", progress.step)
        return progress

    # -- agreeing --------------------------------------------------------------------------------------------

    def _gather(self, value: Result) -> list[Result]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def _on_each_rank(self, work: Callable[[], Result]) -> list[Result]:
        """The results of all ranks, on each; if any rank fails, all raise."""
        results: list[Result] = []
        failure = _failure(lambda: results.append(work()))
        gathered = self._gather((failure, results))
        failures = [f"rank {rank}: {failure}" for rank, (failure, _) in enumerate(gathered) if failure]
        if failures:
            raise CheckpointError("; ".join(failures))
        return [result for _, (result,) in gathered]

    def _on_rank_0(self, work: Callable[[], Result]) -> Result:
        """The result of rank 0, on every rank; if it fails, all raise."""
        results: list[Result] = []
        failure = _failure(lambda: results.append(work())) if self.rank == 0 else None
        shared: list[Any] = [(failure, results)]
        dist.broadcast_object_list(shared)
        failure, results = shared[0]
        if failure:
            raise CheckpointError(failure)
        return results[0]


def _standing(folder: Path) -> str:
    try:
        complete = disk.complete_steps(folder)
    except OSError:
        complete = []
    return f"The newest complete one is of step {complete[-1]}" if complete else "There is no complete one"


def _failure(work: Callable[[], Any]) -> str | None:
    """Do it; what went wrong in one line, or None."""
    from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException

    try:
        work()
    except CheckpointException as error:
        return "; ".join(sorted({_line(cause) for cause, _ in error.failures.values()}))
    except Exception as error:
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _load_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(dict(state), storage_reader=FileSystemReader(path))


def _differences(saved: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key in {*saved, *mine}:
        before, now = saved.get(key), mine.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found |= _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.add(f"{prefix}{key} is {now}, was {before}")
    return found
