"""From the signal to the first optimizer step of the next attempt, four torch ranks on two nodes of a real Slurm.

    python -m benchmarks.restart [--json] [--rounds N]

On emulated clusters of the same shape: ours with the emulator's quick scheduler (``--fast``) and with Slurm's default
one, each without and with accounting (slurmdbd), and submitit's own checkpointing (default scheduler; its 121 s of hold
do not depend on it). Nothing runs on the login node in between: it only looks at files.

On an idle cluster the default scheduler looks at a requeued job every 30 s (bf_interval). Signals are therefore sent at
random moments of that cycle, as time limits come; sent at a fixed moment after a start they would measure one phase.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure, report, unwind_when_terminated
from hpc import emulate, ledger, slurm
from hpc.compose import cluster
from hpc.runs import Run
from monitoring.layout import rank_records

SHAPE = ["cluster=noctua2", "job.nodes=2", "job.ranks_per_node=2"]
TEXT = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7, help="restarts measured per scheduler (7); submitit: one")
    args = parser.parse_args()
    unwind_when_terminated()
    with tempfile.TemporaryDirectory(prefix="restart", dir="/tmp") as folder:
        os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
        _prepare()
        figures = [
            _median("restart_fast_s", _ours(args.rounds, fast=True), "<= 12", "scheduler of hpc emulate --fast"),
            _median(
                "restart_fast_accounting_s",
                _ours(args.rounds, fast=True, accounting=True),
                "<= 12",
                "the same, with accounting",
            ),
            _median("restart_default_s", _ours(args.rounds, fast=False), "<= 25", "Slurm's default scheduler"),
            _median(
                "restart_default_accounting_s",
                _ours(args.rounds, fast=False, accounting=True),
                "<= 25",
                "the same, with accounting",
            ),
            _median(
                "restart_submitit_s",
                on_cluster(emulate.Options(nodes=2), lambda found: [submitit_restart(found, Path(folder))]),
                "",
                "submitit's own requeue, same cluster",
            ),
        ]
    report(figures, as_json=args.json)


def _median(name: str, values: list[float], goal: str, compared_with: str) -> Figure:
    print(f"{name}: {', '.join(f'{value:.1f}' for value in values)}", file=sys.stderr)
    return Figure(name, statistics.median(values), "s", goal, compared_with)


def _ours(rounds: int, *, fast: bool, accounting: bool = False) -> list[float]:
    options = emulate.Options(nodes=2, fast=fast, accounting=accounting)
    return on_cluster(options, lambda found: ours(found, rounds, spread=2 if fast else 30))


def on_cluster(options: emulate.Options, measure: Callable[[emulate.Emulation], list[float]]) -> list[float]:
    """Measure on an emulated cluster of two nodes that is ended whatever happens."""
    with emulate.emulated(cluster(["cluster=noctua2"]), options) as found:
        return measure(found)


def _prepare() -> None:
    _hpc("submit", "job=prepare", *_data(), "--wait")


def _data() -> list[str]:
    return ["data=files", f"data.corpus.files=[{TEXT}/*.md]", "data.corpus.vocab_size=1024", "data.seq_len=64"]


def _hpc(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", "hpc", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


# -- ours --------------------------------------------------------------------------------------------------------


def ours(found: emulate.Emulation, rounds: int, spread: float) -> list[float]:
    """Seconds from USR2 to the supervisor until rank 0 recorded a step of the next attempt, for each round.

    Args:
        spread: the signal is sent up to so many seconds after an attempt is under way.
    """
    moments = random.Random(0)
    words = [*SHAPE, *_data(), "model.vocab_size=1024", "train.batch_tokens=2048", "parallel.micro_batch=8"]
    words += ["train.tokens=1_000_000_000", "train.checkpoint.every_steps=0", "job.time=60"]
    run = Run(Path(json.loads(_hpc("submit", *words, "--json"))["folder"]))
    measured = []
    try:
        for k in range(rounds):
            first_step(run, k)
            time.sleep(1 + moments.uniform(0, spread))
            sent = time.time()
            slurm.signal_batch(str(run.job_id), "USR2", found.environment)
            measured.append(first_step(run, k + 1) - sent)
    finally:
        _hpc("cancel", str(run.folder), "--now")
    return measured


def first_step(run: Run, attempt: int, patience: float = 300.0) -> float:
    """Unix time of the first step that an attempt recorded; waits for it."""
    path = rank_records(ledger.folder(run, attempt), 0)
    for line in lines(path, patience, lambda: f"{run.log.read_text()[-2000:]}"):
        record = json.loads(line)
        if "step" in record and "loss" in record:
            return float(record["t"])
    raise AssertionError


def lines(path: Path, patience: float, why: Callable[[], str]):
    """Whole lines of a file as they appear."""
    end = time.monotonic() + patience
    seen = 0
    while time.monotonic() < end:
        whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        yield from whole[seen:]
        seen = len(whole)
        time.sleep(0.1)
    raise TimeoutError(f"{path}: nothing within {patience:.0f} s\n{why()}")


# -- submitit ----------------------------------------------------------------------------------------------------


class Trainee:
    """A checkpointable submitit job: four ranks, gloo, FSDP2, rank 0 notes when each step ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.fsdp import fully_shard

        rank, restart = int(os.environ["SLURM_PROCID"]), os.environ.get("SLURM_RESTART_COUNT", "0")
        torch.set_num_threads(1)
        store = f"file://{self.folder}/store-{restart}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=4)
        model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        while True:
            model(torch.randn(64, 256)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if rank == 0:
                with (self.folder / f"steps-{restart}").open("a") as file:
                    file.write(f"{time.time()}\n")
            time.sleep(0.1)


def submitit_restart(found: emulate.Emulation, folder: Path) -> float:
    """Seconds from USR2 to the first step after submitit's checkpoint and requeue."""
    import submitit

    os.environ.update(found.environment)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    from benchmarks.restart import Trainee as Importable  # pickled by name, so that ranks import this file

    executor = submitit.SlurmExecutor(folder / "submitit")
    executor.update_parameters(
        nodes=2, ntasks_per_node=2, time=60, signal_delay_s=60, mem="0", additional_parameters={"requeue": True}
    )
    job = executor.submit(Importable(folder))
    try:
        next(lines(folder / "steps-0", 120, lambda: str(job.paths.folder)))
        time.sleep(2)
        sent = time.time()
        job._interrupt(timeout=True)  # pyright: ignore[reportAttributeAccessIssue] (what submitit itself tests with)
        return float(next(lines(folder / "steps-1", 300, lambda: str(job.paths.folder)))) - sent
    finally:
        job.cancel()
        for name in found.environment:
            os.environ.pop(name, None)


if __name__ == "__main__":
    main()
