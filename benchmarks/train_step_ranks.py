"""What a second rank costs: FSDP2 over gloo, two ranks with half of the threads each against one with all of them.

Both take the same global batch in the same number of passes. The processes wait on pipes for their turn.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.group import joined
from benchmarks.report import Figure, progress
from benchmarks.train_step_model import CPU, batch_of, olmoe_shaped, with_engine
from trainer import parallel
from trainer.config import Engine, Sharding, TrainerConfig
from trainer.parallel import Engine as Built
from trainer.samples import Samples

PASSES = 8
Turn = Callable[..., float]  # seconds of what is named by its arguments


def figures(rounds: int, threads: int) -> list[Figure]:
    """Overhead at ``PASSES`` passes a step, and at one beside what computing and communicating cost apart."""
    config = olmoe_shaped()
    half = olmoe_shaped(micro_batch=config.parallel.micro_batch // 2)
    with ExitStack() as stack:
        one = stack.enter_context(ranks(with_engine(config, Engine.fsdp), 1, threads))
        full, kept = (
            stack.enter_context(ranks(with_engine(half, Engine.fsdp, sharding=sharding), 2, max(1, threads // 2)))
            for sharding in (Sharding.full, Sharding.grad_op)
        )
        overhead: dict[str, list[float]] = {"full": [], "grad_op": []}
        sums: list[float] = []
        rounds = min(rounds, 5)  # each of them takes a minute
        for number in range(1, rounds + 1):
            progress(f"one rank and two, round {number} of {rounds}")
            alone, single = one("step", PASSES), one("step", 1)
            for name, both in (("full", full), ("grad_op", kept)):
                overhead[name].append(both("step", PASSES) / alone - 1)
            sums.append(kept("step", 1) / (single + kept("collectives", 1)))
    return [
        Figure(
            "fsdp2_two_rank_overhead",
            100 * statistics.median(overhead["grad_op"]),
            "%",
            "<= 15",
            f"one rank, {PASSES} passes a step, parallel.sharding=grad_op",
        ),
        Figure(
            "fsdp2_two_rank_overhead_full", 100 * statistics.median(overhead["full"]), "%", "", "parallel.sharding=full"
        ),
        Figure(
            "fsdp2_one_pass_over_parts", statistics.median(sums), "x", "<= 1.1", "one rank's step plus the collectives"
        ),
    ]


def scaling(rounds: int) -> list[tuple[str, float, int]]:
    """(layout, seconds of a step, tokens of it) for one, two and four ranks with a thread each, and four sequences."""
    found = []
    for count in (1, 2, 4):
        config = with_engine(olmoe_shaped(micro_batch=4), Engine.fsdp)
        with ranks(config, count, 1) as turn:
            seconds = statistics.median(turn("step", 1) for _ in range(rounds))
        found.append((f"ranks={count}, 1 thread", seconds, count * config.train.batch_tokens))
    return found


@contextmanager
def ranks(config: TrainerConfig, count: int, threads: int) -> Iterator[Turn]:
    """Processes that have an engine together; each has taken a step when they are handed over."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, config, rank, count, threads, folder), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)

        def turn(*what: Any) -> float:
            began = time.perf_counter()
            for pipe in pipes:
                pipe.send(what)
            for pipe in pipes:
                pipe.recv()
            return time.perf_counter() - began

        try:
            turn("step", 2)
            yield turn
        finally:
            for pipe, process in zip(pipes, processes, strict=True):
                pipe.close()
                process.join(10.0)
                process.kill()
                process.join()


def _serve(pipe: Connection, config: TrainerConfig, rank: int, count: int, threads: int, folder: str) -> None:
    from trainer import distributed

    distributed.set_deterministic(True)
    distributed.keep_memory()
    with suppress(EOFError), joined(Path(folder), rank, count, threads):
        work = {"step": _stepper(config), "collectives": _collectives(config, count)}
        while True:
            name, number = pipe.recv()
            work[name](number)
            pipe.send(None)


def engine(config: TrainerConfig) -> Built:
    return parallel.build(config, CPU)


def _stepper(config: TrainerConfig) -> Callable[[int], None]:
    from trainer.loss import loss_of

    built = engine(config)
    batch = batch_of(config, seed=built.rank)

    def step(passes: int) -> None:
        valid = batch.targets_BS.numel() * passes * built.world_size
        for number in range(1, passes + 1):
            loss, _ = loss_of(built.forward(batch), batch.targets_BS, config.model, valid)
            built.backward(loss, last=number == passes)
        built.update(config.optim.lr, norm=float(built.norm()), max_norm=config.optim.clip)

    return step


def _collectives(config: TrainerConfig, count: int) -> Callable[[int], None]:
    """What a step at ``grad_op`` communicates: all parameters gathered once, their gradients summed once."""
    import torch
    import torch.distributed as dist

    from trainer.size import layer_parameters, parameter_count

    layer, _ = layer_parameters(config.model, moe=True)
    total, _ = parameter_count(config.model)
    sizes = [layer] * config.model.layers + [total - layer * config.model.layers]
    whole = [torch.zeros(-(-size // count) * count) for size in sizes]

    def communicate(times: int) -> None:
        for _ in range(times):
            for tensor in whole:
                part = tensor.chunk(count)[dist.get_rank()].clone()
                dist.all_gather_into_tensor(tensor, part)
                dist.reduce_scatter_tensor(part, tensor)

    return communicate


class Tokens:
    """A dataset of random tokens."""

    fingerprint = "random"
    every_token = True
    sources = ("random",)

    def __init__(self, config: TrainerConfig) -> None:
        self.vocabulary = config.model.vocab_size
        self.size = config.data.seq_len

    def tokens(self, first: int, last: int) -> np.ndarray:
        return np.array([(last - first) * self.size])

    def epochs(self, first: int, last: int) -> np.ndarray:
        return np.zeros(1)

    def batch(self, indices: Sequence[int]) -> Samples:
        rows = np.stack(
            [np.random.default_rng(index).integers(self.vocabulary, size=self.size + 1) for index in indices]
        )
        return Samples(rows[:, :-1].copy(), rows[:, 1:].copy(), None, np.zeros(len(rows), dtype=np.int64))
