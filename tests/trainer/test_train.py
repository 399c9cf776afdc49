"""The loop on real ranks: exact resume, elastic resume, stopping, what it records, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks
from torch.distributed.tensor import DTensor

from trainer import parallel
from trainer.config import TrainerConfig
from trainer.train import NonFiniteError, sample_ids, train

ALWAYS = {"checkpoint": tiny.checkpoints(every_steps=5)}


def test_stopped_and_resumed_losses_are_bit_identical_to_the_uninterrupted_ones(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(**ALWAYS)
    (whole, memory), _ = ranks.run(tiny.run, config, tmp_path / "whole", world_size=2)
    assert (whole.kind, whole.step, whole.tokens) == ("finished", 12, 12 * 128)
    assert memory.losses()[12] < memory.losses()[1]

    folder = tmp_path / "parts"
    losses: dict[int, float] = {}
    for stop_at, kind in ((2, "stopped"), (7, "stopped"), (None, "finished")):
        (outcome, part), _ = ranks.run(tiny.run, config, folder, stop_at, world_size=2)
        assert outcome.kind == kind
        assert not losses.keys() & part.losses().keys()  # a stop repeats nothing
        if kind == "stopped":
            assert part.kinds()[-4:] == ["stop", "checkpoint_begin", "checkpoint", "stopped"]
        losses |= part.losses()
    assert losses == memory.losses()
    assert (outcome.loss_first, outcome.loss_last) == (whole.loss_first, whole.loss_last)
    assert outcome.reason == "train.tokens=1536"


def test_after_a_crash_the_steps_since_the_last_checkpoint_are_repeated_exactly(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(**ALWAYS)
    _, before = ranks.run(crash_in_step, config, tmp_path, 8, world_size=2)[0]
    (_, after), _ = ranks.run(tiny.run, config, tmp_path, world_size=2)
    assert list(after.losses()) == list(range(6, 13))
    assert after.events[0] | {} == {
        "kind": "resumed", "step": 5, "tokens": 640, "world_size": 2, "saved_world_size": 2
    }  # fmt: skip
    assert {step: before.losses()[step] for step in (6, 7)} == {step: after.losses()[step] for step in (6, 7)}


def crash_in_step(config: TrainerConfig, folder: Path, step: int) -> tuple[None, tiny.Memory]:
    class Crash(Exception):
        pass

    memory = tiny.Memory()

    class Failing(tiny.Tokens):
        def batch(self, indices: Any) -> np.ndarray:
            if indices[0] >= (step - 1) * 8:
                raise Crash
            return super().batch(indices)

    engine = parallel.build(config, tiny.CPU)
    with pytest.raises(Crash):
        train(config, engine, dataset=Failing(), checkpoints=folder, stop=lambda: None, record=memory)
    return None, memory


@pytest.mark.parametrize(("first", "then", "experts"), [(1, 2, 4), (2, 1, 3)])
def test_another_number_of_ranks_goes_on_with_the_same_losses(
    ranks: Ranks, tmp_path: Path, first: int, then: int, experts: int
) -> None:
    config = tiny.config()
    assert config.model.moe is not None
    config.model.moe.experts = experts  # 3 on 2 ranks: each has a part of every expert
    (_, whole), *_ = ranks.run(tiny.run, config, tmp_path / "whole", world_size=first)
    ranks.run(tiny.run, config, tmp_path / "parts", 4, world_size=first)
    results = ranks.run(tiny.run, config, tmp_path / "parts", world_size=then)
    memory = results[0][1]
    assert list(memory.losses()) == list(range(5, 13))
    for step, loss in memory.losses().items():
        assert loss == pytest.approx(whole.losses()[step], rel=1e-5)
    reseeded = [e for _, m in results for e in m.events if e["kind"] == "rng_reseeded"]
    assert [e["rank"] for e in reseeded] == list(range(first, then))


@pytest.mark.parametrize(
    ("step", "kind", "reason", "saved"),
    [
        (3, "stopped", "SIGTERM", [3]),
        (5, "stopped", "SIGTERM", [5]),  # a step that is saved anyway
        (12, "finished", "train.tokens=1536", [5, 10, 12]),  # the last
    ],
)
def test_all_ranks_stop_after_the_same_step_when_one_is_asked(
    ranks: Ranks, tmp_path: Path, step: int, kind: str, reason: str, saved: list[int]
) -> None:
    results = ranks.run(only_rank_1_is_asked, tiny.config(**ALWAYS), tmp_path, step, world_size=2)
    assert [(o.kind, o.reason, o.step) for o, _ in results] == [(kind, reason, step)] * 2
    assert [e["step"] for e in results[0][1].events if e["kind"] == "checkpoint"] == saved
    assert (tmp_path / f"step-{step}" / "COMPLETE").exists()


def only_rank_1_is_asked(config: TrainerConfig, folder: Path, step: int) -> Any:
    engine = parallel.build(config, tiny.CPU)
    memory = tiny.Memory()
    calls = 0

    def stop() -> str | None:
        nonlocal calls
        calls += 1
        return "SIGTERM" if engine.rank == 1 and calls == step else None

    return train(config, engine, dataset=tiny.Tokens(), checkpoints=folder, stop=stop, record=memory), memory


def test_a_run_that_reached_its_tokens_finishes_at_once(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(tokens=3 * 128)
    (first, _), *_ = ranks.run(tiny.run, config, tmp_path, world_size=1)
    (again, memory), *_ = ranks.run(tiny.run, config, tmp_path, world_size=1)
    assert memory.losses() == {}
    assert memory.kinds() == ["resumed", "finished"]
    assert (again.kind, again.step, again.loss_first, again.loss_last) == (
        "finished", 3, first.loss_first, first.loss_last,
    )  # fmt: skip


def test_tokens_are_rounded_up_to_whole_steps(ranks: Ranks, tmp_path: Path) -> None:
    (outcome, _), *_ = ranks.run(tiny.run, tiny.config(tokens=129), tmp_path, world_size=1)
    assert (outcome.step, outcome.tokens) == (2, 256)


def test_a_not_finite_loss_is_recorded_as_it_is_updates_nothing_and_ends_all_ranks(
    ranks: Ranks, tmp_path: Path
) -> None:
    results = ranks.run(poisoned, tiny.config(), tmp_path, world_size=2)
    for message, _, unchanged in results:
        assert "step 4: the loss is nan, the gradient norm nan" in message
        assert "the last checkpoint is of step 2" in message
        assert unchanged
    memory = results[0][1]
    assert [step for step, loss in memory.losses().items() if loss != loss] == [4]
    assert memory.kinds()[-1] == "non_finite"
    assert memory.syncs >= 2
    assert not (tmp_path / "step-3").exists()


def poisoned(config: TrainerConfig, folder: Path) -> tuple[str, tiny.Memory, bool]:
    """One value of rank 1's shard turns to NaN before the fourth step; whether that step left all others alone."""
    config.train.checkpoint = tiny.checkpoints(every_steps=2)
    engine = parallel.build(config, tiny.CPU)
    memory = tiny.Memory()
    before: dict[str, torch.Tensor] = {}

    class Poisoning(tiny.Tokens):
        def batch(self, indices: Any) -> np.ndarray:
            if not before and min(indices) >= 3 * 8:
                if engine.rank == 1:
                    shards(engine)["model.norm.weight"][0] = torch.nan
                before.update({name: shard.clone() for name, shard in shards(engine).items()})
            return super().batch(indices)

    with pytest.raises(NonFiniteError) as raised:
        train(config, engine, dataset=Poisoning(), checkpoints=folder, stop=lambda: None, record=memory)
    after = shards(engine)
    unchanged = [torch.equal(after[n].nan_to_num(7.0), before[n].nan_to_num(7.0)) for n in before]
    return str(raised.value), memory, bool(unchanged) and all(unchanged)


def shards(engine: parallel.Engine) -> dict[str, torch.Tensor]:
    return {
        name: tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor
        for name, tensor in engine.state().items()
    }


def test_what_is_recorded(ranks: Ranks, tmp_path: Path) -> None:
    (_, zero), (_, one) = ranks.run(tiny.run, tiny.config(**ALWAYS), tmp_path, world_size=2)
    assert [line["step"] for line in zero.steps] == list(range(1, 13))
    assert [line["tokens"] for line in zero.steps] == [128 * n for n in range(1, 13)]
    fields = {"loss", "lr", "grad_norm", "balance_loss", "z_loss", "tokens_per_s", "step_s", "step", "tokens"}
    assert all(line.keys() == fields for line in zero.steps)
    assert [line["lr"] for line in zero.steps[:2]] == pytest.approx([0.005, 0.01])
    assert [line["step"] for line in zero.loads] == [4, 8, 12]
    assert all(sum(line["layers"][2]) == 128 * 2 for line in zero.loads)
    assert (one.steps, one.loads) == ([], [])
    assert [line["step"] for line in one.ranks] == [2, 4, 6, 8, 10, 12]
    saves = ["checkpoint_begin", "checkpoint"]
    assert zero.kinds() == [*saves, *saves, *saves, "finished"]
    assert all(event["seconds"] > 0 for event in zero.events if event["kind"] == "checkpoint")


@given(
    first=st.integers(0, 10**9),
    world_size=st.integers(1, 12),
    passes=st.integers(1, 6),
    micro_batch=st.integers(1, 5),
)
def test_each_sample_of_a_step_is_seen_once_whatever_the_layout(
    first: int, world_size: int, passes: int, micro_batch: int
) -> None:
    by_rank = [list(sample_ids(first, r, world_size, passes, micro_batch)) for r in range(world_size)]
    seen = sorted(index for of_rank in by_rank for indices in of_rank for index in indices)
    assert seen == list(range(first, first + world_size * passes * micro_batch))
    assert all(len(indices) == micro_batch for of_rank in by_rank for indices in of_rank)
