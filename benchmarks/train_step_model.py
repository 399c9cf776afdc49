"""The model and the step that the training benchmarks measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from trainer import parallel
from trainer.batch import Batch
from trainer.config import (
    DataConfig,
    Engine,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    ParallelConfig,
    Precision,
    TrainConfig,
    TrainerConfig,
)
from trainer.loss import loss_of
from trainer.samples import Samples
from trainer.size import flops_per_token

CPU = torch.device("cpu")
Step = Callable[[], float]  # one optimizer step; the loss


def olmoe_shaped(**fields: int) -> TrainerConfig:
    """OLMoE's parts in a size for two CPU cores: 8 sequences of 512 tokens, 16 of 38 million parameters active."""
    sizes = {"layers": 4, "experts": 16, "seq_len": 512, "micro_batch": 8} | fields
    moe = MoEConfig(experts=sizes["experts"], top_k=2, d_ff=256, normalize_weights=False)
    model = ModelConfig(
        vocab_size=8192,
        d_model=512,
        layers=sizes["layers"],
        heads=8,
        kv_heads=8,
        d_ff=256,
        max_seq_len=sizes["seq_len"],
        qk_norm=True,
        moe=moe,
    )
    return TrainerConfig(
        model=model,
        data=DataConfig(path="", seq_len=sizes["seq_len"]),
        optim=OptimConfig(lr=1e-4),
        parallel=ParallelConfig(engine=Engine.single, micro_batch=sizes["micro_batch"]),
        train=TrainConfig(tokens=10**9, batch_tokens=sizes["micro_batch"] * sizes["seq_len"]),
    )


def with_engine(config: TrainerConfig, engine: Engine, *, compile: bool = False, **fields: object) -> TrainerConfig:
    return replace(config, parallel=replace(config.parallel, engine=engine, compile=compile, **fields))


def with_precision(config: TrainerConfig, precision: Precision) -> TrainerConfig:
    return replace(config, train=replace(config.train, precision=precision))


def batch_of(config: TrainerConfig, device: torch.device = CPU, seed: int = 0) -> Batch:
    """One pass of random tokens."""
    shape = (config.parallel.micro_batch, config.data.seq_len + 1)
    rows = np.random.default_rng(seed).integers(config.model.vocab_size, size=shape)
    sources = np.zeros(len(rows), dtype=np.int64)
    return Batch.of(Samples(rows[:, :-1].copy(), rows[:, 1:].copy(), None, sources), device)


def stepper(config: TrainerConfig, device: torch.device = CPU, passes: int = 1) -> Step:
    """Our step, through the engine's interface as the training loop uses it, on one batch over and over."""
    engine = parallel.build(config, device)
    batch = batch_of(config, device, seed=engine.rank)
    valid = batch.targets_BS.numel() * passes * engine.world_size

    def step() -> float:
        total = torch.zeros((), device=device)
        for number in range(1, passes + 1):
            output = engine.forward(batch)
            loss, _ = loss_of(output, batch.targets_BS, config.model, valid)
            engine.backward(loss, last=number == passes)
            total += loss.detach()
        engine.update(config.optim.lr, norm=float(engine.norm()), max_norm=config.optim.clip)
        return float(total)

    return step


def step_flops(config: TrainerConfig, *, causal: bool = False) -> int:
    """FLOPs of a pass by the convention of ``trainer.size``: attention in full, or only what a causal mask leaves."""
    model, size = config.model, config.data.seq_len
    per_token = flops_per_token(model, size)
    if causal:
        per_token -= 12 * model.layers * model.d_model * size * (size - 1) // (2 * size)
    return per_token * config.parallel.micro_batch * size
