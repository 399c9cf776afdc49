"""Saving while training goes on: what is saved, who waits for whom, and what happens when it fails."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from ranks import Ranks
from test_checkpoint import Values, checkpoints

from trainer import checkpoint_folder as disk
from trainer import parallel
from trainer.checkpoint import CheckpointError, Progress
from trainer.config import TrainerConfig
from trainer.interval import FIRST, Cost
from trainer.train import train


class Held(tiny.Memory):
    """A record whose ``sync``, with which a writer begins, returns when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def sync(self) -> None:
        assert self.free.wait(60)
        super().sync()


def changed_while_written(folder: Path) -> tuple[list[bool], list[str], Progress]:
    memory = Held()
    saved = checkpoints(folder, memory)
    training, progress = Values(1.0), Progress(step=1, skipped=[[3, 7]], watch={"losses": [1.0]})
    values: dict[str, Any] = {"value": 1.0, "nested": [1]}
    saved.save(training.state(), values, progress)
    # It returned although nothing can have been written yet: training goes on and changes everything.
    facts = [saved.poll() is None, disk.complete_steps(folder) == [], saved.cost is None]
    for tensor in training.state().values():
        tensor.fill_(2.0)
    values["value"] = values["nested"][0] = 2.0
    progress.skipped[0][0] = progress.step = 2
    torch.manual_seed(2)
    memory.free.set()
    saved.wait()
    loaded = Values(0.0)
    found = checkpoints(folder, memory).resume(loaded, seed=0)
    return [*facts, loaded.are(1.0)], memory.kinds(), found


def test_what_training_changes_while_it_is_written_is_saved_as_it_was(ranks: Ranks, tmp_path: Path) -> None:
    for facts, kinds, progress in ranks.run(changed_while_written, tmp_path, world_size=2):
        assert all(facts)
        assert progress == Progress(step=1, skipped=[[3, 7]], watch={"losses": [1.0]})
        assert kinds in (["checkpoint_begin", "checkpoint", "resumed"], [])


def saved_on_each_others_heels(folder: Path) -> tuple[list[int], tiny.Memory]:
    memory = tiny.Memory()
    saved = checkpoints(folder, memory)
    for step in range(1, 6):
        Values(step).save(saved, wait=False)
        assert disk.complete_steps(folder)[-1:] == [step - 1][: step - 1]  # the one before is complete
    saved.wait()
    saved.wait()  # nothing is left to wait for
    saved.close()
    return disk.complete_steps(folder), memory


def test_a_save_waits_for_the_one_in_flight(ranks: Ranks, tmp_path: Path) -> None:
    (steps, memory), (_, other) = ranks.run(saved_on_each_others_heels, tmp_path, world_size=2)
    assert steps == [4, 5]
    assert memory.kinds() == ["checkpoint_begin", "checkpoint"] * 5
    assert other.kinds() == []
    for event in memory.events[1::2]:
        assert 0 < event["blocked_s"] < event["seconds"]


def costs(folder: Path, background: bool) -> list[Cost | None]:
    saved = checkpoints(folder, tiny.Memory(), background=background)
    saved.resume(Values(0.0), seed=0)
    found = [saved.cost]
    for step in (10, 20, 30):
        threading.Event().wait(0.1)
        Values(step).save(saved, wait=False)
        found.append(saved.cost)
    saved.wait()
    return [*found, saved.cost]


def test_all_ranks_know_the_same_cost_at_the_same_step(ranks: Ranks, tmp_path: Path) -> None:
    zero, one = ranks.run(costs, tmp_path / "background", True, world_size=2)
    assert zero == one
    assert zero[:2] == [None, None] and None not in zero[2:]
    for cost in zero[2:]:
        assert 0 < cost.blocked_s < cost.complete_s and cost.cpu_s > 0
        assert 0.01 <= cost.step_s < 0.5  # 10 steps in 0.1 s and the time of a test
    (_, first, *_), _ = ranks.run(costs, tmp_path / "at_once", False, world_size=2)
    assert first is not None and first.blocked_s >= first.complete_s


class FullOnRank1:
    """fsync fails on rank 1, on each file that ends so."""

    def __init__(self) -> None:
        self.real = os.fsync

    def __enter__(self) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if dist.get_rank() == 1:
            os.fsync = full

    def __exit__(self, *_: object) -> None:
        os.fsync = self.real


def failing_in_the_background(folder: Path) -> tuple[list[str], str | None, int]:
    memory = tiny.Memory()
    saved = checkpoints(folder, memory)
    Values(1.0).save(saved)
    messages = []
    with FullOnRank1():
        Values(2.0).save(saved, wait=False)
        while (said := saved.poll()) is None:
            threading.Event().wait(0.01)
        messages.append(said)
        try:
            saved.wait()
        except CheckpointError as error:
            messages.append(str(error))
    assert saved.poll() is None  # it was said
    Values(3.0).save(saved)  # and the disk is well again
    loaded = Values(0.0)
    step = checkpoints(folder, memory).resume(loaded, seed=0).step
    return messages, ", ".join(memory.kinds()), step


def test_a_failure_shows_while_training_goes_on_and_is_raised_on_all_ranks_alike(ranks: Ranks, tmp_path: Path) -> None:
    (zero, kinds, step), (one, other, _) = ranks.run(failing_in_the_background, tmp_path, world_size=2)
    assert zero == one and len(zero) == 2 and zero[0] == zero[1]
    assert "step 2 could not be written" in zero[0]
    assert "rank 1: No space left on device. The newest complete one is of step 1" in zero[0]
    assert kinds == (
        "checkpoint_begin, checkpoint, checkpoint_begin, checkpoint_failed, checkpoint_begin, checkpoint, resumed"
    )
    assert (other, step) == ("", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]


def unstaged_on_rank_1(folder: Path) -> str:
    saved = checkpoints(folder, tiny.Memory())
    Values(1.0).save(saved)
    changed = Values(2.0)
    if dist.get_rank() == 1:  # whichever of the two it writes
        changed.tensors = {name: torch.zeros(301) for name in changed.tensors}
    try:
        changed.save(saved)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_rank_that_cannot_stage_its_state_fails_the_save_on_all(ranks: Ranks, tmp_path: Path) -> None:
    zero, one = ranks.run(unstaged_on_rank_1, tmp_path, world_size=2)
    assert zero == one
    assert "rank 1: ValueError" in zero and "(301,) here, was torch.float32" in zero
    assert disk.complete_steps(tmp_path) == [1]


def left_in_flight(folder: Path) -> list[int]:
    saved = checkpoints(folder, tiny.Memory())
    Values(1.0).save(saved, wait=False)
    saved.close()  # as a process does that must end for another reason
    return disk.complete_steps(folder)


def test_a_process_that_must_end_lets_a_save_in_flight_be_completed(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(left_in_flight, tmp_path, world_size=2) == [[1], [1]]


def trained_on_a_disk_that_fills_up(config: TrainerConfig, folder: Path) -> tuple[str, int]:
    """What training raised, and how far it came."""
    memory = tiny.Memory()
    engine = parallel.build(config, tiny.CPU)
    try:
        with FullOnRank1():
            train(config, engine, dataset=tiny.Tokens(), checkpoints=folder, stop=lambda: None, record=memory)
    except CheckpointError as error:
        return str(error), max(memory.losses(), default=0)
    return "", 0


def test_training_ends_on_all_ranks_when_one_cannot_write(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(tokens=1000 * 128, checkpoint=tiny.checkpoints(every_steps=2))
    (zero, steps), (one, _) = ranks.run(trained_on_a_disk_that_fills_up, config, tmp_path, world_size=2)
    assert zero == one and "step 2 could not be written" in zero
    assert 2 <= steps <= 4  # the save of step 4 would have waited for it
    assert disk.complete_steps(tmp_path) == []


def test_an_interval_of_its_own_choice_begins_early_and_is_the_same_on_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(checkpoint=tiny.checkpoints(every_steps="auto", keep_latest=9))
    ranks.run(tiny.run, config, tmp_path, world_size=2)
    assert disk.complete_steps(tmp_path) == [FIRST, 12]


def test_progress_of_an_older_checkpoint_lacks_only_what_it_did_not_know() -> None:
    known = {"step": 3, "tokens": 9, "next_sample": 4, "loss_first": 2.0, "loss_last": 1.0}
    assert asdict(Progress(**known)) == {**known, "skipped": [], "watch": {}, "sources": {}, "counted": 0}  # type: ignore[arg-type]
