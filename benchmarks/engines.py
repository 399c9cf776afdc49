"""The same experiment under both engines, by `hpc submit`: how far apart are the validation losses they end with?

    python -m benchmarks.engines [--json] [--seeds 3] [--set KEY=VALUE ...]

A tiny LOLA (GPT-2 shape, capacity, fp16, experts shared by two ranks) and a tiny OLMoE (64 experts top-8, dropless,
bf16) on the multilingual guide, two ranks each, once with FSDP2 and once with DeepSpeed ZeRO-2 for every seed. Both
engines see the same samples in the same order and draw the same dropout, so only rounding tells them apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import monitoring
from benchmarks.report import Figure, progress, report

EXPERIMENTS = {"lola": "lola_v1_tiny", "olmoe": "olmoe_1b_7b_tiny"}
ENGINES = ("fsdp", "deepspeed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each experiment and engine (3)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override of every run")
    args = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory(prefix="engines", dir="/tmp") as folder:
        os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs")
        os.environ.setdefault("HPC_DATA", f"{folder}/data")
        for name, experiment in EXPERIMENTS.items():
            _submit("job=prepare", f"experiment={experiment}", "job.ranks_per_node=1")
            losses = {
                engine: [_loss(experiment, engine, seed, args.set) for seed in range(args.seeds)] for engine in ENGINES
            }
            figures.append(_figure(name, losses))
    report(figures, as_json=args.json)


def _loss(experiment: str, engine: str, seed: int, overrides: list[str]) -> float:
    """The validation loss that a run ends with."""
    run = _submit(f"experiment={experiment}", f"parallel={engine}", f"train.seed={seed}", *overrides)
    loss = float(monitoring.load(run).history["validation_loss"].dropna().iloc[-1])
    progress(f"{experiment} {engine} seed {seed}: validation loss {loss:.5f}")
    return loss


def _submit(*words: str) -> Path:
    command = [sys.executable, "-m", "hpc", "submit", "--wait", "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(done.stdout)["folder"])


def _figure(name: str, losses: dict[str, list[float]]) -> Figure:
    first, second = (statistics.mean(losses[engine]) for engine in ENGINES)
    told = (
        f"{ENGINES[0]} {first:.4f}, {ENGINES[1]} {second:.4f}; validation loss, mean of {len(losses[ENGINES[0]])} seeds"
    )
    worst = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    return Figure(f"{name}_engines_apart", 100 * worst, "%", "<= 1", told)


if __name__ == "__main__":
    main()
