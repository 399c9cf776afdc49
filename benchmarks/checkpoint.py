"""Training time that an asynchronous checkpoint costs until it is complete, against a synchronous one.

    python -m benchmarks.checkpoint [--json] [--rounds N] [--ranks 1 2] [--folder PATH]

Real training steps of FSDP ranks on the CPU, with an OLMoE-shaped model whose state is some 350 MB. In each round, in
turn: steps alone, steps of which a save in the background takes the first moments and which go on beyond its end,
steps alone, a save that training waits for. Both saves are ours, with the same files, checksums and fsyncs. What a
save costs is how much longer its steps took than those alone before and after it: the copy into memory and every
slowed step are in that. Medians over rounds; the first saves, which lay out memory, are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.group import joined
from benchmarks.report import Figure, report
from trainer.config import DataConfig, ModelConfig, MoEConfig, OptimConfig, ParallelConfig, TrainConfig, TrainerConfig

GOAL = "<= 0.25"
PATIENCE = 1200.0  # seconds for all rounds
STEPS = 6  # alone, between saves


@dataclass(frozen=True)
class Measured:
    """Seconds, medians over rounds; of rank 0."""

    ranks: int
    state_mb: float  # of all ranks
    step_s: float
    async_lost_s: float
    sync_lost_s: float
    share: float  # async_lost_s / sync_lost_s
    blocked_s: float  # part of async_lost_s: the copy into memory
    complete_s: float  # from the beginning of a save in the background until it is complete
    writer_cpu_s: float  # computing time of its thread

    @property
    def bound(self) -> float:
        """The share if all of the writer's computing were taken from training: what an undisturbed machine shows at
        most. Far below ``share``, it tells of a machine that others use."""
        return (self.blocked_s + self.writer_cpu_s) / self.sync_lost_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; by default the temporary folder")
    args = parser.parse_args()
    found = [measure(ranks, args.rounds, args.folder) for ranks in args.ranks]
    for each in found:
        print(
            f"{each.ranks} ranks, {each.state_mb:.0f} MB: step {each.step_s:.3f} s; "
            f"async {each.async_lost_s * 1e3:.0f} ms lost ({each.blocked_s * 1e3:.0f} blocked, "
            f"{each.writer_cpu_s * 1e3:.0f} computing beside it), complete after {each.complete_s:.2f} s; "
            f"sync {each.sync_lost_s * 1e3:.0f} ms lost; by computing time a share of {each.bound:.2f}"
        )
    report([figure(each) for each in found], as_json=args.json)


def figure(measured: Measured) -> Figure:
    name = "async_checkpoint_share" + (f"_{measured.ranks}_ranks" if measured.ranks > 1 else "")
    return Figure(name, measured.share, "", GOAL, f"our synchronous save, {measured.sync_lost_s * 1e3:.0f} ms")


def measure(ranks: int, rounds: int = 25, folder: Path | None = None) -> Measured:
    """Start so many ranks, each a process with its share of the cores, and measure."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory(prefix="checkpoint", dir=folder) as here:
        processes = [context.Process(target=_rank, args=(Path(here), r, ranks, rounds, answers)) for r in range(ranks)]
        for process in processes:
            process.start()
        try:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    return answers.get(timeout=1.0)
                except queue.Empty:
                    if time.monotonic() > end or any(process.exitcode for process in processes):
                        raise RuntimeError("a rank ended without an answer, or gave none in time") from None
        finally:
            for process in processes:
                process.join(10.0)
                process.kill()


def _rank(folder: Path, rank: int, world_size: int, rounds: int, answers: Any) -> None:
    import torch

    from trainer import parallel

    with joined(folder, rank, world_size, max(1, len(os.sched_getaffinity(0)) // world_size)):
        found = _measure(parallel.build(_config(), torch.device("cpu")), folder, rounds)
        if rank == 0:
            answers.put(found)


def _config() -> TrainerConfig:
    return TrainerConfig(
        model=ModelConfig(
            vocab_size=8192,
            d_model=384,
            layers=2,
            heads=6,
            kv_heads=6,
            d_ff=384,
            max_seq_len=256,
            qk_norm=True,
            moe=MoEConfig(experts=24, top_k=2, d_ff=384),
        ),
        data=DataConfig(path="", seq_len=256),
        optim=OptimConfig(lr=1e-4),
        parallel=ParallelConfig(micro_batch=4),
        train=TrainConfig(tokens=10**9, batch_tokens=1024, deterministic=False),
    )


def _measure(engine: Any, folder: Path, rounds: int) -> Measured | None:
    from trainer.checkpoint import Checkpoints, Progress

    step = _stepper(engine)
    for _ in range(3):
        step()
    record = _Events()
    modes = {
        background: Checkpoints(
            folder / ("async" if background else "sync"),
            identity={},
            keep_latest=1,
            keep_every=0,
            background=background,
            device=engine.device,
            record=record,
        )
        for background in (True, False)
    }
    number = 0

    def save(background: bool) -> None:
        nonlocal number
        number += 1
        modes[background].save(engine.state(), engine.values(), Progress(step=number))

    def steps_until_complete(background: bool) -> int:
        """Save, and take steps until the checkpoint is complete and one more."""
        save(background)
        taken = 0
        while True:
            step()
            taken += 1
            if _agreed(float(record.last == "checkpoint_begin")) == 0:
                return taken
            modes[background].poll()

    def alone(count: int) -> float:
        """Seconds of a step."""
        return _seconds(lambda: [step() for _ in range(count)]) / count

    for background in (True, True, False, False):  # the first save of each lays out memory
        steps_until_complete(background)
    lost: dict[bool, list[float]] = {True: [], False: []}
    alone_s, costs = [alone(STEPS)], []
    for _ in range(rounds):
        for background in (True, False):
            began = time.perf_counter()
            taken = steps_until_complete(background)
            took = time.perf_counter() - began
            alone_s.append(alone(STEPS))
            lost[background].append(took - taken * (alone_s[-2] + alone_s[-1]) / 2)
            if background and (cost := modes[True].cost):
                costs.append(cost)
    for saved in modes.values():
        saved.close()
    if engine.rank > 0:
        return None
    median = statistics.median
    return Measured(
        ranks=engine.world_size,
        state_mb=sum(value.numel() * value.element_size() for value in engine.state().values()) / 1e6,
        step_s=median(alone_s),
        async_lost_s=median(lost[True]),
        sync_lost_s=median(lost[False]),
        share=median(lost[True]) / median(lost[False]),
        blocked_s=median(cost.blocked_s for cost in costs),
        complete_s=median(cost.complete_s for cost in costs),
        writer_cpu_s=median(cost.cpu_s for cost in costs),
    )


def _stepper(engine: Any) -> Callable[[], None]:
    """An optimizer step on one batch, over and over: its time varies less than that of many batches."""
    import numpy as np
    import torch

    from trainer.batch import Batch
    from trainer.loss import loss_of
    from trainer.samples import Samples

    config = _config()
    rows = np.random.default_rng(0).integers(config.model.vocab_size, size=(4, config.data.seq_len + 1))
    samples = Samples(rows[:, :-1], rows[:, 1:], None, np.zeros(len(rows), dtype=np.int64))
    batch = Batch.of(samples, torch.device("cpu"))
    valid = batch.targets_BS.numel() * engine.world_size

    def step() -> None:
        output = engine.forward(batch)
        loss, _ = loss_of(output, batch.targets_BS, config.model, valid)
        engine.backward(loss, last=True)
        engine.update(1e-4, norm=float(engine.norm()), max_norm=1.0)

    return step


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _agreed(value: float) -> float:
    """The largest of all ranks, so that all take as many steps."""
    import torch
    import torch.distributed as dist

    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


class _Events:
    """A record that remembers the kind of the last event."""

    last = ""

    def step(self, **_: object) -> None: ...

    def rank(self, **_: object) -> None: ...

    def experts(self, **_: object) -> None: ...

    def event(self, kind: str, **_: object) -> None:
        self.last = kind

    def sync(self) -> None: ...


if __name__ == "__main__":
    main()
