"""A model and data small enough for a test, and a record that remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import parallel
from trainer.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
    TrainerConfig,
)
from trainer.samples import IGNORED, Samples
from trainer.train import Outcome, train

VOCABULARY = 61
CPU = torch.device("cpu")


def config(**train_fields: Any) -> TrainerConfig:
    """8 sequences of 16 tokens a step, 12 steps; a dense layer, then an MoE layer."""
    fields = {"tokens": 12 * 128, "batch_tokens": 128, "seed": 5, "experts_every": 4, "ranks_every": 2}
    return TrainerConfig(
        model=ModelConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            layers=2,
            heads=4,
            kv_heads=2,
            d_ff=24,
            max_seq_len=32,
            init_std=0.1,
            moe=MoEConfig(experts=4, top_k=2, d_ff=8, every=2),
        ),
        data=DataConfig(path="", seq_len=16),
        optim=OptimConfig(lr=1e-2, min_lr=1e-3, warmup_tokens=256),
        parallel=ParallelConfig(micro_batch=2),
        train=TrainConfig(**{**fields, **train_fields}),
    )


def checkpoints(**fields: Any) -> CheckpointConfig:
    return CheckpointConfig(**{"every_steps": 0, "keep_latest": 2, **fields})


class Tokens:
    """A dataset of arithmetic progressions with noise: there is something to learn, and no two samples agree."""

    def __init__(
        self,
        fingerprint: str = "progressions",
        seq_len: int = 16,
        *,
        every_token: bool = True,
        documents: bool = False,
    ) -> None:
        self.fingerprint = fingerprint
        self.every_token = every_token
        self.documents = documents
        self.seq_len = seq_len
        self.seen: list[int] = []

    sources = ("progressions",)

    def tokens(self, first: int, last: int) -> np.ndarray:
        return np.array([(last - first) * self.seq_len])

    def epochs(self, first: int, last: int) -> np.ndarray:
        return np.array([(last - first) / 1000])

    def batch(self, indices: Sequence[int]) -> Samples:
        self.seen.extend(indices)
        rows = np.stack([self._sample(index) for index in indices])
        targets = rows[:, 1:].copy()
        if not self.every_token:  # the first `index % 5` positions of a sample are not trained on
            for target, index in zip(targets, indices, strict=True):
                target[: index % 5] = IGNORED
        documents = None
        if self.documents:
            starts = np.arange(self.seq_len) % 7 == np.asarray(indices).reshape(-1, 1) % 7
            documents = starts.cumsum(1).astype(np.int32)
        return Samples(rows[:, :-1], targets, documents, np.zeros(len(rows), dtype=np.int64))

    def _sample(self, index: int) -> np.ndarray:
        random = np.random.default_rng(index)
        line = random.integers(VOCABULARY) + np.arange(self.seq_len + 1) * random.integers(1, 4)
        noise = random.integers(VOCABULARY, size=self.seq_len + 1)
        return np.where(random.random(self.seq_len + 1) < 0.1, noise, line % VOCABULARY).astype(np.int64)


class Memory:
    """A record that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.ranks: list[dict[str, float]] = []
        self.loads: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.syncs = 0

    def step(self, *, step: int, tokens: int, **metrics: float) -> None:
        self.steps.append({"step": step, "tokens": tokens, **metrics})

    def rank(self, *, step: int, step_s: float, **metrics: float) -> None:
        self.ranks.append({"step": step, "step_s": step_s, **metrics})

    def experts(
        self,
        *,
        step: int,
        layers: Mapping[int, Sequence[int]],
        entropy: Mapping[int, float],
        dropped: Mapping[int, int],
    ) -> None:
        self.loads.append({"step": step, "layers": dict(layers), "entropy": dict(entropy), "dropped": dict(dropped)})

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def sync(self) -> None:
        self.syncs += 1

    def losses(self) -> dict[int, float]:
        """The last one of each step."""
        return {int(line["step"]): line["loss"] for line in self.steps if "loss" in line}

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def run(given: TrainerConfig, folder: Path, stop_at: int | None = None) -> tuple[Outcome, Memory]:
    """Train on this rank; it asks for a stop in the step ``stop_at``, as a signal would."""
    memory = Memory()
    engine = parallel.build(given, CPU)
    data = Tokens()

    def stop() -> str | None:
        step = memory.steps[-1]["step"] + 1 if memory.steps else 1
        return "SIGUSR2" if stop_at is not None and step >= stop_at else None

    return train(given, engine, dataset=data, checkpoints=folder, stop=stop, record=memory), memory
