"""How fast a training step is: against transformers, and against what the machine can multiply.

    python -m benchmarks.train_step [--json] [--rounds N] [--scaling]

On the CPU all steps take place in one process on the same batch, in turn, round by round; figures are medians over the
rounds of the quotient within each. Around every step the machine multiplies matrices of 2048 by 2048 in float32, once
as torch does by itself and once by oneDNN, and the faster of the two is the peak of that moment: on processors not
made by Intel torch's own choice reaches half of it.

FLOPs are counted as trainer.size.flops_per_token says: 6 for each active parameter that is multiplied, and attention
in full, 12 * layers * d_model * seq_len, although half of it is masked; the share with causal attention counted only
stands beside it. On a GPU the same file measures tokens/s and MFU of two models in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import train_step_gpu, train_step_peers, train_step_ranks
from benchmarks.report import Figure, progress, report
from benchmarks.train_step_model import Step, olmoe_shaped, step_flops, stepper, with_engine, with_precision
from trainer import distributed
from trainer.config import Engine, Precision, TrainerConfig
from trainer.model import products

PEAK = 2048  # rows and columns of the matrices that tell the peak


@dataclass
class Taken:
    """The steps of one contender, round by round."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)  # FLOP/s, the mean of before and after the step
    plain_peaks: list[float] = field(default_factory=list)  # the same by torch's own choice of a library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scaling", action="store_true", help="a table of step times over sizes instead")
    args = parser.parse_args()
    threads = distributed.set_threads(0, 1)
    distributed.set_deterministic(True)
    distributed.keep_memory()
    distributed.join(rank=0, world_size=1, device=torch.device("cpu"), publish=lambda _: None, lookup=lambda: ("", 0))
    try:
        if args.scaling:
            scaling(args.rounds)
            return
        figures = on_cpu(args.rounds) + train_step_ranks.figures(args.rounds, threads)
        figures += [*_checkpoint(), *_logging(), *train_step_gpu.figures(args.rounds)]
    finally:
        distributed.leave()
    report(figures, as_json=args.json)


def on_cpu(rounds: int) -> list[Figure]:
    """Our step against others and against the peak."""
    config = olmoe_shaped()
    taken = rotate(contenders(config), rounds)
    print(f"{'step':36}{'s':>8}{'tokens/s':>12}{'of peak':>10}{'of torch.mm':>14}")
    flops = step_flops(config)
    for name, each in taken.items():
        seconds = statistics.median(each.seconds)
        shares = _share(each, each.peaks, flops), _share(each, each.plain_peaks, flops)
        print(f"{name:36}{seconds:8.3f}{config.train.batch_tokens / seconds:12.0f}{shares[0]:10.2f}{shares[1]:14.2f}")
    ours = _fastest({name: each for name, each in taken.items() if name.startswith("ours fp32")})
    theirs = _fastest({name: each for name, each in taken.items() if name.startswith("transformers")})
    figures = []
    if ours is not None:
        mine = taken[ours]
        versus = None if theirs is None else _ratio(taken[theirs].seconds, mine.seconds)
        causal = _share(mine, mine.peaks, step_flops(config, causal=True))
        plain = _share(mine, mine.plain_peaks, flops)
        figures += [
            Figure(
                "tokens_vs_transformers", versus, "x", ">= 1.25", f"{ours} against {theirs or 'nothing: pip install'}"
            ),
            Figure("share_of_matmul_peak", _share(mine, mine.peaks, flops), "", ">= 0.65", "fastest float32 product"),
            Figure("share_of_matmul_peak_causal", causal, "", "", "attention counted by half"),
            Figure("share_of_torch_matmul", plain, "", "", "torch's own a @ b"),
        ]
        eager = taken.get("ours fp32 single")
        if theirs is not None and eager is not None:
            ratio = _ratio(taken[theirs].seconds, eager.seconds)
            figures.append(Figure("tokens_vs_transformers_eager", ratio, "x", "", "parallel.compile=false"))
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    low = taken.get("ours bf16 single compiled")
    bf16 = None if low is None else _ratio(taken["ours fp32 single compiled"].seconds, low.seconds)
    goal = ">= 2" if amx else ""
    figures.append(Figure("bf16_vs_fp32", bf16, "x", goal, "our own fp32" + ("" if amx else ", no AMX here")))
    return figures + _experts(config, rounds)


def _experts(config: TrainerConfig, rounds: int) -> list[Figure]:
    """Our layer of experts against torchtitan's; bfloat16, since its can do no other."""
    ours, theirs = (lambda: train_step_peers.our_experts(config)), (lambda: train_step_peers.torchtitan_experts(config))
    taken = rotate({"ours": ours, "torchtitan": theirs}, rounds)
    both = len(taken) == 2
    ratio = _ratio(taken["torchtitan"].seconds, taken["ours"].seconds) if both else None
    told = "forward and backward of a layer, bf16" + ("" if both else ": not installed")
    return [Figure("experts_vs_torchtitan", ratio, "x", "", told)]


def contenders(config: TrainerConfig) -> dict[str, Callable[[], Step]]:
    """What makes each step, by name."""
    found: dict[str, Callable[[], Step]] = {}
    for experts in train_step_peers.EXPERTS:
        found[f"transformers {experts}"] = lambda e=experts: train_step_peers.transformers(config, e)
    for engine in (Engine.single, Engine.fsdp):
        for compiled in (False, True):
            name = f"ours fp32 {engine.value}" + (" compiled" if compiled else "")
            found[name] = lambda e=engine, c=compiled: stepper(with_engine(config, e, compile=c))
    low = with_precision(config, Precision.bf16)
    found["ours bf16 single compiled"] = lambda: stepper(with_engine(low, Engine.single, compile=True))
    return found


def rotate(makers: Mapping[str, Callable[[], Step]], rounds: int, warmup: int = 2) -> dict[str, Taken]:
    """Steps of all contenders in turn; one that cannot be made here is left out, and that is said."""
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        try:
            progress(f"{name}: first steps")
            step = make()
            for _ in range(warmup):
                step()
        except ImportError as problem:
            progress(f"{name}: not measured, {problem}")
        else:
            steps[name] = step
    taken = {name: Taken() for name in steps}
    peak = Peak()
    for number in range(1, rounds + 1):
        progress(f"round {number} of {rounds}")
        for name, step in steps.items():
            before = peak.measure()
            began = time.perf_counter()
            step()
            taken[name].seconds.append(time.perf_counter() - began)
            after = peak.measure()
            taken[name].plain_peaks.append((before[0] + after[0]) / 2)
            taken[name].peaks.append((max(before) + max(after)) / 2)
    return taken


class Peak:
    """What the machine multiplies at the moment."""

    def __init__(self) -> None:
        self.matrix = torch.randn(PEAK, PEAK)
        self.measure()

    def measure(self) -> tuple[float, float]:
        """FLOP/s of one product by torch's choice of a library, and by ours."""
        return self._rate(torch.mm), self._rate(products.multiply)

    def _rate(self, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        began = time.perf_counter()
        multiply(self.matrix, self.matrix)
        return 2 * PEAK**3 / (time.perf_counter() - began)


def scaling(rounds: int) -> None:
    """Print the time of a step over layers, experts, sequence length and ranks, all else as in the benchmark."""
    sizes = [("layers", (2, 4, 8)), ("experts", (8, 16, 32, 64)), ("seq_len", (256, 512, 1024, 2048))]
    print(f"{'size':24}{'s/step':>10}{'tokens/s':>12}{'of peak':>10}")
    for name, values in sizes:
        configs = {}
        for value in values:
            fields = {name: value}
            if name == "seq_len":
                fields["micro_batch"] = 4096 // value  # as many tokens
            configs[f"{name}={value}"] = olmoe_shaped(**fields)
        taken = rotate({label: lambda c=config: stepper(c) for label, config in configs.items()}, rounds)
        for label, each in taken.items():
            config, seconds = configs[label], statistics.median(each.seconds)
            share = _share(each, each.peaks, step_flops(config))
            print(f"{label:24}{seconds:10.3f}{config.train.batch_tokens / seconds:12.0f}{share:10.2f}")
    for label, seconds, tokens in train_step_ranks.scaling(rounds):
        print(f"{label:24}{seconds:10.3f}{tokens / seconds:12.0f}")


def _share(taken: Taken, peaks: list[float], flops: int) -> float:
    return statistics.median(flops / s / peak for s, peak in zip(taken.seconds, peaks, strict=True))


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _fastest(taken: Mapping[str, Taken]) -> str | None:
    return min(taken, key=lambda name: statistics.median(taken[name].seconds), default=None)


def _checkpoint() -> list[Figure]:
    from benchmarks import checkpoint

    return [checkpoint.figure(checkpoint.measure(1))]


def _logging() -> list[Figure]:
    from benchmarks.logging_share import logging_share

    config = olmoe_shaped()
    config.train.tokens = 12 * config.train.batch_tokens
    with tempfile.TemporaryDirectory() as folder:
        share = logging_share(config, train_step_ranks.engine(config), train_step_ranks.Tokens(config), Path(folder))
    return [Figure("logging_share", share, "", "<= 0.01", "a whole step")]


if __name__ == "__main__":
    main()
