"""The checkpoints of a run: saved while training goes on, loaded into any layout. All ranks together.

A save holds training only while the state is copied into host memory; a thread of each rank writes it from there,
and the threads agree among themselves that all is written before rank 0 marks the checkpoint complete. Tensors have
names that no layout changes. ``trainer.staging`` says what a rank writes, ``trainer.checkpoint_folder`` how it lies
on disk, ``trainer.writing`` and ``trainer.loading`` bring it there and back.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from trainer import checkpoint_folder as disk
from trainer import rng
from trainer.agreement import Agreement
from trainer.checkpoint_errors import CheckpointError, CheckpointMismatch
from trainer.interval import Cost
from trainer.loading import in_words, listed, load, load_weights
from trainer.record import Record
from trainer.staging import Staged, lay_out
from trainer.writing import RNG, Saving, Writer

__all__ = ["CheckpointError", "CheckpointMismatch", "Checkpoints", "Progress", "Resumable"]

PATIENCE = timedelta(hours=1)  # of the ranks with the slowest writer among them
LAST_WORDS = 60.0  # seconds that a process which must end gives a save in flight

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where training stands. What data it has seen is {next_sample, skipped}, whatever the layout."""

    step: int = 0
    tokens: int = 0  # consumed since the first attempt
    next_sample: int = 0  # index of the first sample that no step has seen
    loss_first: float | None = None  # of the run's first step
    loss_last: float | None = None
    skipped: list[list[int]] = field(default_factory=list)  # samples [first, last) left out on purpose
    watch: dict[str, Any] = field(default_factory=dict)  # what trainer.guard remembers; JSON values
    # On rank 0 as of the last save, for people: tokens and epochs of each source; follows from the two above.
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    counted: int = 0  # samples below this one are in ``sources``


class Resumable(Protocol):
    """What a checkpoint is loaded into: an engine."""

    def state(self) -> Mapping[str, Any]: ...

    def load_values(self, values: Mapping[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of one run. All methods but ``poll`` and ``close`` are collective; all are for one thread.

    Args:
        folder: where they lie; made if it is missing.
        identity: what must be the same for a checkpoint to be this run's: model, data, seed. JSON values.
        keep_latest: the newest checkpoints kept.
        keep_every: checkpoints whose step is a multiple of it are kept for good; 0: none.
        background: write while training goes on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        keep_latest: int,
        keep_every: int,
        background: bool,
        device: torch.device,
        record: Record,
    ) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self.background = background
        self.device = device
        self.record = record
        # A group of its own: training's collectives come in between at any moment.
        self._agree = Agreement(dist.new_group(backend="gloo", timeout=PATIENCE), CheckpointError)
        self._writer = Writer(folder, keep_latest, keep_every, self._agree, record)
        self.rank = self._agree.rank
        self.world_size = self._agree.world_size
        self._staged: Staged | None = None
        self._saving: Saving | None = None
        self._cost: Cost | None = None
        self._since: tuple[int, float] | None = None  # step and moment from which steps are timed

    @property
    def cost(self) -> Cost | None:
        """What the newest save cost that ``save`` or ``wait`` found complete; the same on all ranks."""
        return self._cost

    # -- saving ----------------------------------------------------------------------------------------------

    def save(self, state: Mapping[str, Any], values: Mapping[str, Any], progress: Progress) -> None:
        """Save a checkpoint of ``progress.step``; waits for the one in flight first.

        In the background this returns when everything is in host memory: training may change all that was handed
        over. Otherwise when the checkpoint is complete.

        Args:
            state: tensors, and what stands for them; the same names and layout at every save.
            values: state that is no tensor, as JSON values, the same on every rank.

        Raises:
            CheckpointError: if this one, or the one in flight, could not be written on any rank; those before are
                untouched.
        """
        self.wait()
        if self.rank == 0:
            self.record.event("checkpoint_begin", step=progress.step)
        step_s = self._step_s(progress.step)
        if self._staged is None:  # happens once, and says nothing of what the next save costs
            self._staged = self._lay_out(state, progress.step)
        saving = Saving(
            step=progress.step,
            content={
                "progress": asdict(progress),
                "values": copy.deepcopy(dict(values)),
                "world_size": self.world_size,
                "identity": self.identity,
            },
            rng=rng.get_state(self.device),
            staged=self._staged,
            began=time.perf_counter(),
            step_s=step_s,
        )
        try:
            saving.staged.image.stage(state)
        except Exception as error:  # the writers agree on it
            saving.unstaged = error
        if self.background:
            saving.thread = threading.Thread(target=self._writer.write, args=(saving,), name="checkpoint", daemon=True)
            saving.thread.start()
        else:
            self._writer.write(saving)
        saving.blocked_s = time.perf_counter() - saving.began
        self._saving = saving
        self._since = (progress.step, time.perf_counter())
        if not self.background:
            self.wait()

    def poll(self) -> str | None:
        """Why the save in flight failed on this rank, or None. Takes no time; ``wait`` raises it on all ranks."""
        saving = self._saving
        if saving is None or (saving.thread is not None and saving.thread.is_alive()):
            return None
        self._tell(saving)
        return saving.failure

    def wait(self) -> None:
        """Until the save in flight, if there is one, is complete.

        Raises:
            CheckpointError: if it failed on any rank.
        """
        saving = self._saving
        if saving is None:
            return
        if saving.thread is not None:
            saving.thread.join()
        self._tell(saving)
        self._saving = None
        cost = Cost(saving.blocked_s, saving.complete_s, saving.cpu_s, saving.step_s)
        failure, cost = self._agree.on_each_rank(
            lambda: (saving.failure, cost), lambda each: (next(filter(None, (f for f, _ in each)), None), each[0][1])
        )
        if failure:
            raise CheckpointError(failure)
        self._cost = cost

    def close(self) -> None:
        """Give host memory back. A save in flight gets a minute to end: whoever wants it complete calls ``wait``."""
        saving = self._saving
        if saving is not None and saving.thread is not None:
            saving.thread.join(LAST_WORDS)
            if saving.thread.is_alive():
                return
            self._tell(saving)
        if self._staged is not None:
            self._staged.image.close()
            self._staged = None

    def _step_s(self, step: int) -> float:
        """Seconds of a step since the save before, or since the start; 0 where none was made."""
        if self._since is None or step <= self._since[0]:
            return 0.0
        return (time.perf_counter() - self._since[1]) / (step - self._since[0])

    def _lay_out(self, state: Mapping[str, Any], step: int) -> Staged:
        try:
            return lay_out(state, self.device, self._agree)
        except CheckpointError as error:
            reason = str(error)
            failure = self._agree.on_rank_0(lambda: self._writer.give_up(step, reason))
            if self.rank == 0:
                self.record.event("checkpoint_failed", step=step, reason=failure)
            raise CheckpointError(failure) from error

    def _tell(self, saving: Saving) -> None:
        """Record how a save ended, once."""
        if self.rank > 0 or saving.told:
            return
        saving.told = True
        step = saving.step
        if saving.failure is not None:
            self.record.event("checkpoint_failed", step=step, reason=saving.failure)
            return
        seconds, blocked = saving.complete_s, saving.blocked_s
        tokens = saving.content["progress"]["tokens"]
        self.record.event("checkpoint", step=step, tokens=tokens, seconds=seconds, blocked_s=blocked)
        log.info("checkpoint of step %d: complete after %.2f s, training waited %.2f s", step, seconds, blocked)

    # -- loading ---------------------------------------------------------------------------------------------

    def resume(self, engine: Resumable, *, seed: int) -> Progress:
        """Load the newest complete checkpoint into ``engine``, in place; a fresh start where there is none.

        A checkpoint whose files are damaged, or that cannot be loaded, is passed over for the one before it.

        Args:
            seed: for the random state of ranks of which the checkpoint has none.

        Raises:
            CheckpointMismatch: if there are checkpoints, but of another model or other data.
            CheckpointError: if there are checkpoints, but none can be loaded. Training is never silently started
                over. Also if a save in flight failed.
        """
        self.wait()
        progress = self._resume(engine, seed)
        self._since = (progress.step, time.perf_counter())
        return progress

    def rewind(self, engine: Resumable, *, seed: int, behind: int, rewinds: int) -> Progress:
        """Load the newest complete checkpoint, and go on from the samples behind those that training went wrong on.

        Where training went back to that one before and has saved nothing since, what is wrong may be in it already:
        then the one before, if there is one. That it went back is on disk when this returns.

        Args:
            behind: the first sample that is to be seen again.
            rewinds: how often training has gone back, this time included.

        Raises:
            CheckpointError: as ``resume``.
        """
        self.wait()
        self._agree.on_rank_0(self._drop_tried)
        progress = self.resume(engine, seed=seed)
        progress.skipped = [*progress.skipped, [progress.next_sample, behind]]
        progress.next_sample = behind
        progress.watch = {**progress.watch, "rewinds": rewinds}
        changes = {key: getattr(progress, key) for key in ("next_sample", "skipped", "watch")}
        self._agree.on_rank_0(lambda: disk.amend(self.folder, progress.step, changes))
        return progress

    def _drop_tried(self) -> None:
        steps = disk.complete_steps(self.folder)
        if len(steps) > 1 and disk.amended(self.folder, steps[-1]):
            self._pass_over(steps[-1], "training went wrong after it once more", kind="passed_over")

    def _resume(self, engine: Resumable, seed: int) -> Progress:
        passed_over: list[tuple[int, str]] = []
        for step, marker in reversed(self._agree.on_rank_0(self._tidy_and_list)):
            reason = self._load(step, marker, engine.state()) if marker else disk.UNREADABLE
            if marker and reason is None:
                engine.load_values(marker["values"])
                self._agree.on_rank_0(lambda: [self._pass_over(*each) for each in passed_over])
                self._restore_rng(step, marker["world_size"], seed)
                return self._resumed(marker)
            passed_over.append((step, str(reason)))
        if passed_over:
            reasons = listed(passed_over)
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be loaded: {reasons}. "
                "To start over, move that folder away"
            )
        rng.seed(seed, self.rank)
        return Progress()

    def warm_start(self, path: str | Path, state: Mapping[str, Any]) -> None:
        """Load only the model's parameters and buffers, from the newest checkpoint of another run that is whole.

        Args:
            path: that run's folder, its folder of checkpoints, or one checkpoint.

        Raises:
            CheckpointMismatch: if there is none, or the model is another.
            CheckpointError: if none can be loaded.
        """
        folder, step = load_weights(Path(path), state, self.identity.get("model", {}), self._agree)
        if self.rank == 0:
            self.record.event("warm_start", step=0, folder=str(folder), of_step=step)
            log.info("weights of step %d in %s", step, folder)

    def _tidy_and_list(self) -> list[tuple[int, dict[str, Any] | None]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.remove_leftovers(self.folder)
        return [(step, disk.read_marker(self.folder, step)) for step in disk.complete_steps(self.folder)]

    def _load(self, step: int, marker: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
        """Load one checkpoint; why that cannot be done, or None. The same on all ranks."""
        if different := in_words(marker["identity"], self.identity):
            raise CheckpointMismatch(
                f"the checkpoint of step {step} in {self.folder} belongs to another model or other data: {different}"
            )
        return load(disk.step_folder(self.folder, step), marker["files"], state, self._agree)

    def _pass_over(self, step: int, reason: str, kind: str = "corrupt_checkpoint") -> None:
        disk.mark_corrupt(self.folder, step)
        self.record.event(kind, step=step, reason=reason)
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
