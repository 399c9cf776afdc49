"""Saving and loading on real ranks: death at any moment, damage, other layouts, disks that refuse."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from ranks import RankFailed, Ranks

from trainer import checkpoint_folder as disk
from trainer import parallel, rng
from trainer.checkpoint import CheckpointError, Checkpoints, Progress
from trainer.config import TrainerConfig
from trainer.train import identity


def checkpoints(folder: Path, memory: tiny.Memory, **fields: Any) -> Checkpoints:
    given = {"identity": {"model": {"layers": 2}, "seed": 5}, "keep_latest": 2, "keep_every": 0, "background": True}
    return Checkpoints(folder, **{**given, **fields}, device=tiny.CPU, record=memory)


class Values:
    """What is saved and loaded in place of an engine: a tensor, a number and a value, all the same number."""

    def __init__(self, value: float) -> None:
        self.tensors = {"weight": torch.full((300,), value), "step": torch.tensor(value)}
        self.value = value

    def state(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def load_values(self, values: Mapping[str, Any]) -> None:
        self.value = values["value"]

    def save(self, saved: Checkpoints, wait: bool = True) -> None:
        saved.save(self.tensors, {"value": self.value}, Progress(step=int(self.value)))
        if wait:
            saved.wait()

    def are(self, value: float) -> bool:
        return self.value == value and all(bool(tensor.eq(value).all()) for tensor in self.tensors.values())


class Death(BaseException):
    """The process is gone: nothing it would have done later happens."""


class Reaper:
    """Raises Death instead of the n-th operation on files under a folder, and of all that follow."""

    OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")

    def __init__(self) -> None:
        self.folder = ""
        self.left: int | None = None
        sys.addaudithook(self._see)  # cannot be taken off again, only be told to look away

    def arm(self, folder: Path, operations: int) -> None:
        self.folder, self.left = str(folder), operations

    def disarm(self) -> bool:
        """Whether it came to a death."""
        died, self.left = self.left is not None and self.left < 0, None
        return died

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None or event not in self.OPERATIONS or not str(arguments[0]).startswith(self.folder):
            return
        self.left -= 1
        if self.left < 0:
            raise Death


def die_between_any_two_operations(folder: Path, background: bool) -> list[tuple[int, list[str]]]:
    """On a rank: (step that a resume finds, folders left) for a save that dies at its 0th, 1st, 2nd ... operation."""
    reaper = Reaper()
    base = folder / "base"
    for value in (1.0, 2.0):
        Values(value).save(checkpoints(base, tiny.Memory()))
    found = []
    for operations in range(1000):
        here = folder / f"dead-{operations}"
        shutil.copytree(base, here)
        saved = checkpoints(here, tiny.Memory(), background=background)
        reaper.arm(here, operations)
        try:
            Values(3.0).save(saved)
        except BaseException as error:
            assert reaper.left is not None and reaper.left < 0, error
        died = reaper.disarm()
        loaded = Values(0.0)
        progress = checkpoints(here, tiny.Memory()).resume(loaded, seed=0)
        assert loaded.are(progress.step)
        found.append((progress.step, sorted(path.name for path in here.iterdir())))
        if not died:
            return found
    raise AssertionError("the save never came to its end")


@pytest.mark.parametrize("background", [True, False])
def test_a_writer_may_die_between_any_two_operations(ranks: Ranks, tmp_path: Path, background: bool) -> None:
    (found,) = ranks.run(die_between_any_two_operations, tmp_path, background, world_size=1)
    steps = [step for step, _ in found]
    assert len(steps) > 10
    # The new checkpoint exists from one operation on, and until then the one before is whole.
    assert steps == sorted(steps)
    assert set(steps) == {2, 3}
    assert all(
        names in (["step-1", "step-2"], ["step-1", "step-2", "step-3"], ["step-2", "step-3"]) for _, names in found
    )
    assert found[-1] == (3, ["step-2", "step-3"])


def test_a_rank_killed_in_a_save_leaves_the_checkpoint_before(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(checkpoint=tiny.checkpoints(every_steps=3))
    with pytest.raises(RankFailed):  # of either rank: the one that lives loses its connection
        ranks.run(killed_while_writing_step_6, config, tmp_path, world_size=2)
    assert list(tmp_path.glob(".step-6.tmp-*"))
    (outcome, memory), _ = ranks.run(tiny.run, config, tmp_path, world_size=2)
    assert memory.events[0]["step"] == 3
    assert (outcome.kind, outcome.step) == ("finished", 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-12", "step-9"]


def killed_while_writing_step_6(config: TrainerConfig, folder: Path) -> None:
    import os
    import signal

    import torch.distributed as dist

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and ".step-6.tmp" in str(arguments[0]) and "__1_0" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if dist.get_rank() == 1:
        sys.addaudithook(kill)
    tiny.run(config, folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


KEEPING = tiny.config(checkpoint=tiny.checkpoints(every_steps=4, keep_latest=3))


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """The checkpoints of a run of two ranks that ended, and its losses by step."""
    folder = tmp_path_factory.mktemp("trained")
    (_, memory), _ = ranks.run(tiny.run, KEEPING, folder, world_size=2)
    return folder, memory.losses()


@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        ("__1_0.distcp", flip, "__1_0.distcp does not have its checksum"),
        ("__0_0.distcp", truncate, "__0_0.distcp has"),
        (".metadata", Path.unlink, ".metadata: No such file"),
        ("rng.pt", flip, "rng.pt does not have its checksum"),
        ("COMPLETE", truncate, "COMPLETE cannot be read"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    ranks: Ranks,
    trained: tuple[Path, dict[int, float]],
    tmp_path: Path,
    name: str,
    harm: Callable[[Path], None],
    reason: str,
) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    harm(tmp_path / "step-12" / name)
    (outcome, memory), (_, other) = ranks.run(tiny.run, KEEPING, tmp_path, world_size=2)
    corrupt, resumed = memory.events[:2]
    assert (corrupt["kind"], corrupt["step"]) == ("corrupt_checkpoint", 12)
    assert reason in corrupt["reason"]
    assert (resumed["kind"], resumed["step"]) == ("resumed", 8)
    assert other.events == []
    assert memory.losses() == {step: loss for step, loss in trained[1].items() if step > 8}
    assert outcome.kind == "finished"
    assert disk.complete_steps(tmp_path) == [4, 8, 12]
    assert not (tmp_path / "step-12" / disk.CORRUPT).exists()


def resume_message(folder: Path, fields: dict[str, Any]) -> str:
    try:
        checkpoints(folder, tiny.Memory(), **fields).resume(Values(0.0), seed=0)
    except CheckpointError as error:
        return str(error)
    return ""


def save(folder: Path, *steps: int) -> list[str]:
    memory = tiny.Memory()
    for step in steps:
        Values(step).save(checkpoints(folder, memory))
    return memory.kinds()


def test_training_is_never_silently_started_over(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save, tmp_path, 1, 2, world_size=2)
    truncate(tmp_path / "step-1" / "rng.pt")
    truncate(tmp_path / "step-2" / "__0_0.distcp")
    for message in ranks.run(resume_message, tmp_path, {}, world_size=2):
        assert "none of the checkpoints" in message
        assert "step 2: __0_0.distcp has" in message
        assert "step 1: rng.pt has" in message
    assert disk.complete_steps(tmp_path) == [1, 2]  # nothing is passed over where there is nothing else


def test_a_checkpoint_of_another_model_is_refused_with_what_differs(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save, tmp_path, 1, world_size=1)
    other = {"identity": {"model": {"layers": 3}, "seed": 5, "data": "x"}}
    (message,) = ranks.run(resume_message, tmp_path, other, world_size=1)
    assert "belongs to another model or other data: data is x, was null; model.layers is 3, was 2. Try: " in message
    assert disk.complete_steps(tmp_path) == [1]


def test_what_may_change_during_a_run_is_not_part_of_its_identity() -> None:
    config = tiny.config()
    before = identity(config, tiny.Tokens())
    assert config.model.moe is not None
    config.model.moe.balance_loss, config.optim.lr, config.train.tokens = 0.5, 1.0, 10**9
    config.parallel.micro_batch = 1
    assert identity(config, tiny.Tokens()) == before
    assert identity(config, tiny.Tokens("other")) != before
    config.model.d_ff += 1
    assert identity(config, tiny.Tokens()) != before


def save_failing_on_rank_1(folder: Path) -> tuple[str, list[str]]:
    import errno
    import os

    import torch.distributed as dist

    memory = tiny.Memory()
    real = os.fsync
    if dist.get_rank() == 1:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full
    try:
        Values(2.0).save(checkpoints(folder, memory))
    except CheckpointError as error:
        return str(error), memory.kinds()
    finally:
        os.fsync = real
    return "", []


def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_leaves_the_one_before(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save, tmp_path, 1, world_size=2)
    (zero, kinds), (one, _) = ranks.run(save_failing_on_rank_1, tmp_path, world_size=2)
    assert zero == one
    assert "the checkpoint of step 2 could not be written" in zero
    assert "rank 1: No space left on device. The newest complete one is of step 1" in zero
    assert kinds == ["checkpoint_begin", "checkpoint_failed"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def save_failing_at_the_marker(folder: Path) -> str:
    class Full:
        """Raises at the marker's temporary file, as a disk that became full just then."""

        armed = True

        def see(self, event: str, arguments: tuple[Any, ...]) -> None:
            if self.armed and event == "open" and str(arguments[0]).endswith(".COMPLETE.tmp"):
                raise OSError(28, "No space left on device")

    full = Full()
    sys.addaudithook(full.see)
    try:
        Values(2.0).save(checkpoints(folder, tiny.Memory()))
    except CheckpointError as error:
        return str(error)
    finally:
        full.armed = False
    return ""


def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing_of_the_new_one(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save, tmp_path, 1, world_size=2)
    for message in ranks.run(save_failing_at_the_marker, tmp_path, world_size=2):
        assert "No space left on device. The newest complete one is of step 1" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_folder_that_cannot_be_made_is_one_clear_message(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for message in ranks.run(resume_message, tmp_path / "file" / "checkpoints", {}, world_size=2):
        assert "Not a directory" in message


def draws(folder: Path, resume: bool) -> list[float]:
    import random

    saved = checkpoints(folder, tiny.Memory())
    if resume:
        saved.resume(Values(0.0), seed=9)
    else:
        rng.seed(9, saved.rank)
        _ = (torch.rand(3), np.random.rand(), random.random())
        Values(1.0).save(saved, wait=False)
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        saved.wait()
        return drawn
    return [torch.rand(()).item(), np.random.rand(), random.random()]


def test_random_numbers_go_on_where_they_were_and_new_ranks_get_streams_of_their_own(
    ranks: Ranks, tmp_path: Path
) -> None:
    before = ranks.run(draws, tmp_path, False, world_size=1)
    after = ranks.run(draws, tmp_path, True, world_size=2)
    assert after[0] == before[0]
    assert not set(after[1]) & set(after[0])


def test_engines_state_survives_a_save_bit_for_bit(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run(saved_and_loaded_differ, tiny.config(), tmp_path, world_size=2) == [[], []]


def saved_and_loaded_differ(config: TrainerConfig, folder: Path) -> list[str]:
    def local(engine: parallel.Engine) -> dict[str, torch.Tensor]:
        return {
            name: getattr(value, "to_local", lambda v=value: v)().detach().clone()
            for name, value in engine.state().items()
        }

    engine = parallel.build(config, tiny.CPU)
    with torch.no_grad():
        for name, value in engine.state().items():
            if name.endswith(".step"):
                value.fill_(7)  # not sharded: the same on every rank
            else:
                value.to_local().normal_()  # type: ignore[attr-defined]
    before = local(engine)
    saved = checkpoints(folder, tiny.Memory())
    saved.save(engine.state(), engine.values(), Progress(step=1))
    saved.wait()
    config.train.seed += 1
    fresh = parallel.build(config, tiny.CPU)
    checkpoints(folder, tiny.Memory()).resume(fresh, seed=0)
    after = local(fresh)
    return [name for name in before if not before[name].equal(after[name])]
