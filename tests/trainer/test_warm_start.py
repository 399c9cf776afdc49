"""Beginning with the weights of another run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import Ranks
from test_checkpoint import checkpoints, flip

from trainer import checkpoint_folder as disk
from trainer.checkpoint import CheckpointError, CheckpointMismatch, Progress


def state(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((64,), value) for name in ("model.weight", "model.buffer", "optimizer.weight.exp_avg")}


MODEL = {"identity": {"model": {"layers": 2, "moe": {"experts": 4}}, "data": "theirs", "seed": 1}}


def train_another(folder: Path) -> None:
    saved = checkpoints(folder, tiny.Memory(), **MODEL)
    for step in (5, 10):
        saved.save(state(float(step)), {}, Progress(step=step))
    saved.wait()


@pytest.fixture(scope="module")
def theirs(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoints of steps 5 and 10."""
    folder = tmp_path_factory.mktemp("theirs")
    ranks.run(train_another, folder / "checkpoints", world_size=2)
    return folder


def begin(folder: Path, path: Path, experts: int = 4) -> tuple[dict[str, float], list[dict[str, Any]], str, str]:
    """Values after a warm start by name, events, and what was raised, if anything."""
    memory = tiny.Memory()
    mine = {"identity": {"model": {"layers": 2, "moe": {"experts": experts}}, "data": "mine", "seed": 2}}
    saved = checkpoints(folder, memory, **mine)
    found = state(0.0)
    try:
        saved.warm_start(path, found)
    except CheckpointError as error:
        return {}, memory.events, type(error).__name__, str(error)
    assert all(tensor.eq(tensor[0]).all() for tensor in found.values())
    return {name: tensor[0].item() for name, tensor in found.items()}, memory.events, "", ""


@pytest.mark.parametrize(
    ("path", "step"), [("", 10), ("checkpoints", 10), ("checkpoints/step-10", 10), ("checkpoints/step-5", 5)]
)
def test_weights_alone_come_from_the_newest_checkpoint_of_a_run_or_the_one_named(
    ranks: Ranks, theirs: Path, tmp_path: Path, path: str, step: int
) -> None:
    (values, events, *_), (other, none, *_) = ranks.run(begin, tmp_path / "mine", theirs / path, world_size=2)
    assert values == other == {"model.weight": step, "model.buffer": step, "optimizer.weight.exp_avg": 0}
    assert [(event["kind"], event["of_step"]) for event in events] == [("warm_start", step)]
    assert none == []


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(ranks: Ranks, theirs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(theirs, copy)
    flip(copy / "checkpoints" / "step-10" / "__0_0.distcp")
    ((values, *_),) = ranks.run(begin, tmp_path / "mine", copy, world_size=1)
    assert values["model.weight"] == 5
    assert disk.complete_steps(copy / "checkpoints") == [5, 10]
    ((_, _, kind, message),) = ranks.run(begin, tmp_path / "mine", copy / "checkpoints" / "step-10", world_size=1)
    assert kind == CheckpointError.__name__
    assert "no checkpoint there can be loaded: step 10: __0_0.distcp does not have its checksum" in message


def test_another_model_is_refused_with_what_differs(ranks: Ranks, theirs: Path, tmp_path: Path) -> None:
    for _, events, kind, message in ranks.run(begin, tmp_path / "mine", theirs, 8, world_size=2):
        assert kind == CheckpointMismatch.__name__
        assert message.startswith(f"train.init_from={theirs}: ")
        assert "model.moe.experts is 8, was 4" in message and "data" not in message and "layers" not in message
        assert events == []


def test_a_path_that_leads_nowhere_is_refused_with_what_is_missing(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path, why in ((tmp_path / "run", "there is no complete checkpoint"), (tmp_path / "x", "no such folder")):
        for *_, kind, message in ranks.run(begin, tmp_path / "mine", path, world_size=2):
            assert kind == CheckpointMismatch.__name__
            assert message.startswith(f"train.init_from={path}: ") and why in message
