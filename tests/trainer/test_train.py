"""The loop on real ranks: exact resume, elastic resume, stopping, what it records, what it refuses."""

from __future__ import annotations

import math
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

from trainer import checkpoint_folder as disk
from trainer import parallel
from trainer.config import EvalConfig, LossScaleConfig, Precision, TrainerConfig, WatchConfig
from trainer.guard import FailedTraining, NonFiniteError, SpikeError
from trainer.samples import IGNORED, Samples
from trainer.step import sample_ids
from trainer.train import train

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
            assert part.kinds()[-2:] == ["checkpoint", "stopped"] and "stop" in part.kinds()
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
        def batch(self, indices: Any) -> Samples:
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


@pytest.mark.parametrize(("allowed", "raised_at"), [(0, 4), (2, 6)])
def test_steps_that_are_not_finite_are_skipped_and_told_until_it_is_too_often(
    ranks: Ranks, tmp_path: Path, allowed: int, raised_at: int
) -> None:
    config = tiny.config(checkpoint=tiny.checkpoints(every_steps=2), watch=WatchConfig(skip_non_finite=allowed))
    results = ranks.run(poisoned, config, tmp_path, world_size=2)
    for message, _, unchanged in results:
        assert f"step {raised_at}: the loss is nan, the gradient norm nan" in message
        assert "the last checkpoint is of step 2" in message
        assert unchanged
    memory = results[0][1]
    bad = list(range(4, raised_at + 1))
    assert [step for step, loss in memory.losses().items() if loss != loss] == bad
    told = [e for e in memory.events if e["kind"] == "skipped_step"]
    assert [e["step"] for e in told] == bad
    assert told[-1]["samples"] == [(raised_at - 1) * 8, raised_at * 8]
    assert memory.syncs >= 2
    assert saved_steps(tmp_path) == [2]  # nothing is saved of which it is not known whether it is sound


def poisoned(config: TrainerConfig, folder: Path) -> tuple[str, tiny.Memory, bool]:
    """One value of rank 1's shard turns to NaN before the fourth step; whether the steps then left all others alone."""
    engine = parallel.build(config, tiny.CPU)
    memory = tiny.Memory()
    before: dict[str, torch.Tensor] = {}

    class Poisoning(tiny.Tokens):
        def batch(self, indices: Any) -> Samples:
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


def test_a_single_step_that_is_not_finite_leaves_no_trace_but_its_consumed_batch(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(tokens=7 * 128, checkpoint=tiny.checkpoints(every_steps=2))
    for _, unchanged, seen in ranks.run(nan_at_step_4, config, tmp_path, world_size=2):
        assert unchanged
        assert seen == 7 * 8 // 2
    memory = ranks.run(nan_at_step_4, config, tmp_path / "again", world_size=1)[0][0]
    assert [step for step, loss in memory.losses().items() if loss != loss] == [4]
    assert [line["tokens"] for line in memory.steps] == [128 * n for n in range(1, 8)]
    # The one that was due after the fourth step is made up for as soon as a step was good.
    assert [e["step"] for e in memory.events if e["kind"] == "checkpoint"] == [2, 5, 6, 7]


def nan_at_step_4(config: TrainerConfig, folder: Path) -> tuple[tiny.Memory, bool, int]:
    """The record; whether the fourth step left the parameters alone; samples that this rank read."""
    engine, memory = parallel.build(config, tiny.CPU), tiny.Memory()
    before: dict[str, torch.Tensor] = {}
    unchanged = False

    class Poisoning(tiny.Tokens):
        def batch(self, indices: Any) -> Samples:
            nonlocal unchanged
            weight = shards(engine)["model.norm.weight"]
            if min(indices) >= 3 * 8 and not before:
                before.update({name: shard.clone() for name, shard in shards(engine).items()})
                weight[0] = torch.nan
            elif min(indices) >= 4 * 8 and weight[0].isnan():
                weight[0] = before["model.norm.weight"][0]
                unchanged = all(torch.equal(shard, before[name]) for name, shard in shards(engine).items())
            return super().batch(indices)

    data = Poisoning()
    train(config, engine, dataset=data, checkpoints=folder, stop=lambda: None, record=memory)
    return memory, unchanged, len(data.seen)


def test_overflows_of_fp16_lower_the_loss_scale_and_are_told(ranks: Ranks, tmp_path: Path) -> None:
    scale = LossScaleConfig(initial=2.0**30, hysteresis=1)
    config = tiny.config(precision=Precision.fp16, loss_scale=scale, watch=WatchConfig(skip_non_finite=0))
    (outcome, memory), *_ = ranks.run(tiny.run, config, tmp_path, world_size=1)
    assert outcome.kind == "finished"
    overflows = [e for e in memory.events if e["kind"] == "overflow"]
    assert overflows and overflows[0]["loss_scale"] == 2.0**30
    scales = [line["loss_scale"] for line in memory.steps]
    assert scales == sorted(scales, reverse=True) and scales[-1] == 2.0 ** (30 - len(overflows))
    assert math.isfinite(memory.losses()[12])


class Altered(tiny.Tokens):
    """Samples of one token alone, over and over, but for those at the given indices, which are noise."""

    def __init__(self, noisy: range) -> None:
        super().__init__()
        self.noisy = noisy

    def _sample(self, index: int) -> np.ndarray:
        if index in self.noisy:
            return np.random.default_rng(index).integers(tiny.VOCABULARY, size=self.seq_len + 1)
        return np.full(self.seq_len + 1, 7)


def watched(steps: int = 24, **watch: Any) -> TrainerConfig:
    every = tiny.checkpoints(every_steps=4)
    found = WatchConfig(**{"spike_window": 5, "spike_sigma": 6.0, **watch})
    return tiny.config(tokens=steps * 128, checkpoint=every, watch=found)


def train_on(config: TrainerConfig, folder: Path, data: tiny.Tokens) -> tuple[Any, tiny.Memory, list[int], Any]:
    """The outcome or what was raised; the record; the samples this rank saw; what the last checkpoint says."""
    engine = parallel.build(config, tiny.CPU)
    memory = tiny.Memory()
    outcome: Any = None
    try:
        outcome = train(config, engine, dataset=data, checkpoints=folder, stop=lambda: None, record=memory)
    except FailedTraining as error:
        outcome = error
    marker = disk.read_marker(folder, saved_steps(folder)[-1]) if saved_steps(folder) else None
    return outcome, memory, data.seen, marker and marker["progress"]


def test_a_spike_leads_back_to_the_last_checkpoint_and_on_behind_its_samples(ranks: Ranks, tmp_path: Path) -> None:
    # Steps 18 and 19 are noise: the spike at 18 leads back to step 16, and on from sample 144, which is of step 19.
    results = ranks.run(train_on, watched(), tmp_path, Altered(range(17 * 8, 18 * 8)), world_size=2)
    for outcome, _, _, progress in results:
        assert (outcome.kind, outcome.step, outcome.tokens) == ("finished", 24, 24 * 128)
        assert progress["skipped"] == [[16 * 8, 18 * 8]]
        assert progress["next_sample"] == 26 * 8
    memory = results[0][1]
    (rewound,) = (e for e in memory.events if e["kind"] == "rewound")
    assert rewound == {
        "kind": "rewound", "step": 16, "from_step": 18, "to_step": 16, "skipped": [128, 144]
    }  # fmt: skip
    (spike,) = (e for e in memory.events if e["kind"] == "spike")
    assert (spike["step"], spike["samples"]) == (18, [136, 144]) and spike["sigma"] > 6
    assert [line["step"] for line in memory.steps] == [*range(1, 19), *range(17, 25)]
    assert memory.losses()[18] < spike["loss"] / 2
    seen = sorted(index for *_, ids, _ in results for index in ids)
    assert seen == list(range(26 * 8))  # each once: 128 to 143 before going back, and never again


def test_steps_after_a_rewind_are_those_of_a_run_that_never_saw_the_samples(ranks: Ranks, tmp_path: Path) -> None:
    (_, with_spike, _, _), *_ = ranks.run(
        train_on, watched(), tmp_path / "a", Altered(range(17 * 8, 18 * 8)), world_size=1
    )
    (_, without, _, _), *_ = ranks.run(train_on, watched(), tmp_path / "b", Altered(range(0)), world_size=1)
    assert with_spike.losses() == pytest.approx(without.losses(), rel=1e-6)


def test_after_as_many_rewinds_as_allowed_a_spike_ends_training_on_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    config = watched(spike_rewinds=2)
    results = ranks.run(train_on, config, tmp_path, Altered(range(17 * 8, 10**6)), world_size=2)
    for error, *_ in results:
        assert isinstance(error, SpikeError)
        assert "standard deviations above the 5 steps before, and training went back 2 times already" in str(error)
        assert "the last checkpoint is of step 12" in str(error)
    memory = results[0][1]
    # The second time to the checkpoint before: what is wrong may be in the newest already.
    assert [(e["from_step"], e["to_step"]) for e in memory.events if e["kind"] == "rewound"] == [(18, 16), (17, 12)]
    assert [e["step"] for e in memory.events if e["kind"] == "passed_over"] == [16]
    assert memory.kinds()[-1] == "spike"


class Ending(Altered):
    """Ends the process, as it were, when a step wants samples from an index on."""

    def __init__(self, noisy: range, end: int) -> None:
        super().__init__(noisy)
        self.end = end

    def batch(self, indices: Any) -> Samples:
        if indices[0] >= self.end:
            raise KeyboardInterrupt
        return super().batch(indices)


def crash_on(config: TrainerConfig, folder: Path, data: Ending) -> tiny.Memory:
    memory = tiny.Memory()
    with pytest.raises(KeyboardInterrupt):
        train(
            config,
            parallel.build(config, tiny.CPU),
            dataset=data,
            checkpoints=folder,
            stop=lambda: None,
            record=memory,
        )
    return memory


def test_going_back_is_not_forgotten_when_the_process_dies_before_the_next_checkpoint(
    ranks: Ranks, tmp_path: Path
) -> None:
    noise = range(17 * 8, 18 * 8)
    before, *_ = ranks.run(crash_on, watched(), tmp_path, Ending(noise, end=18 * 8), world_size=2)
    assert before.kinds()[-1] == "rewound"
    (outcome, memory, seen, progress), *_ = ranks.run(train_on, watched(), tmp_path, Altered(noise), world_size=2)
    assert outcome.kind == "finished" and "spike" not in memory.kinds()
    assert progress["skipped"] == [[16 * 8, 18 * 8]] and progress["watch"]["rewinds"] == 1
    assert min(seen) >= 18 * 8


def test_without_a_checkpoint_a_spike_is_told_and_taken(ranks: Ranks, tmp_path: Path) -> None:
    config = watched()
    config.train.checkpoint.every_steps = 0
    (outcome, memory, _, _), *_ = ranks.run(train_on, config, tmp_path, Altered(range(17 * 8, 18 * 8)), world_size=1)
    assert outcome.kind == "finished"
    assert "spike" in memory.kinds() and "rewound" not in memory.kinds()
    assert list(memory.losses()) == list(range(1, 25))


def test_what_was_usual_and_how_often_training_went_back_outlives_a_restart(ranks: Ranks, tmp_path: Path) -> None:
    config = watched(steps=17)
    ranks.run(train_on, config, tmp_path, Altered(range(0)), world_size=1)
    config.train.tokens = 24 * 128
    (_, memory, _, progress), *_ = ranks.run(train_on, config, tmp_path, Altered(range(17 * 8, 18 * 8)), world_size=1)
    # The first step after the restart is a spike: the window came along.
    assert [e["step"] for e in memory.events if e["kind"] == "spike"] == [18]
    assert progress["watch"]["rewinds"] == 1


def saved_steps(folder: Path) -> list[int]:
    return disk.complete_steps(folder)


def shards(engine: parallel.Engine) -> dict[str, torch.Tensor]:
    return {
        name: tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor
        for name, tensor in engine.state().items()
    }


PARTS = {"step_s", "peak_memory_gib"} | {
    f"{part}_s" for part in ("data", "forward", "backward", "communication", "norm", "optimizer")
}


def test_what_is_recorded(ranks: Ranks, tmp_path: Path) -> None:
    (_, zero), (_, one) = ranks.run(tiny.run, tiny.config(**ALWAYS), tmp_path, world_size=2)
    assert [line["step"] for line in zero.steps] == list(range(1, 13))
    assert [line["tokens"] for line in zero.steps] == [128 * n for n in range(1, 13)]
    routing = {"balance_loss", "z_loss", "router_entropy", "dropped_share"}
    fields = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "flops_per_s"} | routing | PARTS
    for line in zero.steps:
        after_a_checkpoint = {"checkpoint_s"} if line["step"] in (6, 11) else set()
        assert line.keys() == fields | after_a_checkpoint
        assert sum(line[part] for part in PARTS - {"step_s", "peak_memory_gib"}) < line["step_s"]
        assert 0 < line["router_entropy"] <= math.log(4) and line["dropped_share"] == 0
    assert [line["lr"] for line in zero.steps[:2]] == pytest.approx([0.005, 0.01])
    assert [line["step"] for line in zero.loads] == [4, 8, 12]
    assert all(sum(line["layers"][2]) == 128 * 2 for line in zero.loads)
    assert all(line["entropy"].keys() == {2} and line["dropped"] == {2: 0} for line in zero.loads)
    assert (one.steps, one.loads) == ([], [])
    for memory in (zero, one):
        assert [line["step"] for line in memory.ranks] == [2, 4, 6, 8, 10, 12]
        assert all(line.keys() >= PARTS for line in memory.ranks)
    assert [kind for kind in zero.kinds() if kind == "checkpoint_begin"] == ["checkpoint_begin"] * 3
    assert zero.kinds()[-2:] == ["checkpoint", "finished"]
    assert all(event["seconds"] > 0 for event in zero.events if event["kind"] == "checkpoint")


def test_validation_is_recorded_by_source_every_n_steps_and_at_the_end_and_changes_nothing(
    ranks: Ranks, tmp_path: Path
) -> None:
    config = tiny.config(tokens=7 * 128, evaluate=EvalConfig(every_steps=3, samples=5))
    by_layout = {
        world_size: ranks.run(validated, config, tmp_path / str(world_size), world_size=world_size)[0]
        for world_size in (1, 2)
    }
    (_, plain), *_ = ranks.run(tiny.run, tiny.config(tokens=7 * 128), tmp_path / "plain", world_size=1)
    assert by_layout[1].losses() == plain.losses()
    for memory in by_layout.values():
        lines = [line for line in memory.steps if "validation_loss" in line]
        assert [(line["step"], line["tokens"]) for line in lines] == [(3, 384), (6, 768), (7, 896)]
        names = {"step", "tokens", "validation_loss", "validation_loss/en", "validation_loss/de"}
        assert all(line.keys() == names for line in lines)
        assert [e["tokens"] for e in memory.events if e["kind"] == "validation"] == [5 * 16] * 3
        # Of 5 samples 3 are the first source's and 2 the second's.
        for line in lines:
            mean = (3 * line["validation_loss/en"] + 2 * line["validation_loss/de"]) / 5
            assert line["validation_loss"] == pytest.approx(mean)
        assert [line["step"] for line in memory.steps if "evaluation_s" in line] == [4, 7]
    one, two = (
        [line["validation_loss/de"] for line in by_layout[n].steps if "validation_loss" in line] for n in (1, 2)
    )
    assert one == pytest.approx(two, rel=1e-5)


def validated(config: TrainerConfig, folder: Path) -> tiny.Memory:
    class Kept(tiny.Tokens):
        sources = ("en", "de", "empty")

        def __len__(self) -> int:
            return 5

        def batch(self, indices: Any) -> Samples:
            found = super().batch([10**6 + index % 5 for index in indices])
            beyond = np.array([index >= 5 for index in indices])
            targets = np.where(beyond[:, None], IGNORED, found.targets)
            return found._replace(targets=targets, sources=np.array([index % 5 % 2 for index in indices]))

    engine, memory = parallel.build(config, tiny.CPU), tiny.Memory()
    train(
        config, engine, dataset=tiny.Tokens(), validation=Kept(), checkpoints=folder, stop=lambda: None, record=memory
    )
    return memory


def test_padded_targets_give_the_same_losses_on_any_number_of_ranks(ranks: Ranks, tmp_path: Path) -> None:
    one, two = (
        ranks.run(train_on, tiny.config(), tmp_path / str(n), tiny.Tokens(every_token=False), world_size=n)[0][1]
        for n in (1, 2)
    )
    assert one.losses() == pytest.approx(two.losses(), rel=1e-5)


def test_a_run_begins_with_the_weights_of_another_and_only_once(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(tiny.run, tiny.config(tokens=6 * 128), tmp_path / "first", world_size=1)
    config = tiny.config(init_from=str(tmp_path / "first"), **ALWAYS)
    (_, before), *_ = ranks.run(tiny.run, config, tmp_path / "second", 7, world_size=1)
    (_, fresh), *_ = ranks.run(tiny.run, tiny.config(), tmp_path / "fresh", 1, world_size=1)
    assert before.losses()[1] < fresh.losses()[1]
    (_, after), *_ = ranks.run(tiny.run, config, tmp_path / "second", world_size=1)
    assert "warm_start" in before.kinds() and "warm_start" not in after.kinds()
    assert list(after.losses()) == list(range(8, 13))


def test_the_interval_between_checkpoints_may_be_found_by_itself(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny.config(checkpoint=tiny.checkpoints(every_steps="auto"))
    (_, memory), _ = ranks.run(tiny.run, config, tmp_path, world_size=2)
    assert [e["step"] for e in memory.events if e["kind"] == "checkpoint"] == [10, 12]


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
