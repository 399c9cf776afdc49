"""Tokens/s and MFU on one GPU in bfloat16: LLaMmlein 1B, and an OLMoE-shaped model that fits into 80 GB."""

from __future__ import annotations

import gc
import statistics
import time

import torch

from benchmarks.report import Figure
from benchmarks.train_step_model import step_flops, stepper
from trainer import distributed
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

# Dense bfloat16 tensor peak in FLOP/s by what the device's name holds, from the vendor's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12}


def figures(rounds: int) -> list[Figure]:
    """MFU of both models; not measured where there is no GPU whose peak is known."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for name, flops in PEAKS.items() if name in device), None)
    distributed.set_deterministic(False)
    found = []
    for figure, goal, config in (("mfu_dense_1b", ">= 45", llammlein_1b()), ("mfu_moe", ">= 30", olmoe())):
        mfu = None
        if peak is not None:
            seconds = step_seconds(config, rounds)
            mfu = 100 * step_flops(config) / seconds / peak
            memory = torch.cuda.max_memory_allocated() / 2**30
            speed = config.train.batch_tokens / seconds
            print(f"{figure}: {seconds:.3f} s, {speed:.0f} tokens/s, {memory:.0f} GiB, {device}")
        found.append(Figure(figure, mfu, "%", goal, device or "no GPU"))
    return found


def step_seconds(config: TrainerConfig, rounds: int) -> float:
    """Median time of a step; reading its norm and its loss waits for the device."""
    device = torch.device("cuda", torch.cuda.current_device())
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = stepper(config, device)
    for _ in range(3):
        step()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def llammlein_1b() -> TrainerConfig:
    """As in conf/model/llammlein_1b.yaml."""
    model = ModelConfig(vocab_size=32064, d_model=2048, layers=22, heads=32, kv_heads=4, d_ff=5632, max_seq_len=2048)
    return _config(model, micro_batch=8)


def olmoe() -> TrainerConfig:
    """As in conf/model/olmoe_1b_7b.yaml, with 6 of 16 layers: 45 GB of parameters, gradients and optimizer state."""
    model = ModelConfig(
        vocab_size=50304,
        d_model=2048,
        layers=6,
        heads=16,
        kv_heads=16,
        d_ff=1024,
        max_seq_len=4096,
        qk_norm=True,
        moe=MoEConfig(experts=64, top_k=8, d_ff=1024, normalize_weights=False),
    )
    return _config(model, micro_batch=4)


def _config(model: ModelConfig, micro_batch: int) -> TrainerConfig:
    return TrainerConfig(
        model=model,
        data=DataConfig(path="", seq_len=model.max_seq_len),
        optim=OptimConfig(lr=1e-4),
        parallel=ParallelConfig(engine=Engine.single, micro_batch=micro_batch, compile=True),
        train=TrainConfig(
            tokens=10**12,
            batch_tokens=micro_batch * model.max_seq_len,
            precision=Precision.bf16,
            deterministic=False,
        ),
    )
