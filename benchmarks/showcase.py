"""A real run with a history to look at: a time limit, a node that dies, a rank that is slow, on an emulated cluster.

    python -m benchmarks.showcase FOLDER [--pictures docs/images]

Leaves the run's folder in FOLDER/runs while its last attempt still trains on an emulated cluster, prints what was
found, and waits for Enter (or ``--seconds``) before it ends the cluster. ``--pictures`` takes those named showcase-*
of both screens meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import pictures
from benchmarks.fault_cases import Scene, hpc, places
from benchmarks.report import progress, unwind_when_terminated
from hpc import emulate, ledger, slurm
from hpc.compose import cluster
from hpc.runs import Run
from tests.slurm import faults
from tests.slurm.training import SHAPE

SLOW_RANK = 3
_SLOW = """
    def slow(step):
        read = step.Stepper._read
        def slower(self, *args):
            time.sleep(0.15)
            return read(self, *args)
        step.Stepper._read = slower
    after("trainer.step", slow)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="to keep it running; otherwise until Enter")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the screens")
    args = parser.parse_args()
    unwind_when_terminated()
    folder = args.folder.absolute()
    os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
    with emulate.emulated(
        cluster(["cluster=noctua2"]), emulate.Options(nodes=4, fast=True, node_timeout=10)
    ) as emulation:
        run = _train(folder, args.steps)
        scene = Scene(run, emulation)
        _time_limit(scene)
        _node_dies(scene)
        scene.until(lambda: len(ledger.history(run)) > 2 and _seen(run), 600)
        progress(hpc("findings", str(run.folder)))
        if args.pictures:
            pictures.terminal(run, args.pictures)
            pictures.page(run, args.pictures / "showcase-web.png")
        progress(f"HPC_HOME={folder}/h HPC_RUNS={folder}/runs HPC_DATA={folder}/data hpc watch {run.id}")
        time.sleep(args.seconds) if args.seconds else input("Enter ends it ")
        hpc("cancel", "--now", str(run.folder))


def _train(folder: Path, steps: int) -> Run:
    shape = [word for word in SHAPE if not word.startswith(("job.nodes", "train.batch", "train.checkpoint"))]
    held_out = "data.corpus.validation_share=0.2"
    data = [word for word in shape if word.startswith(("data", "cluster"))]
    hpc("submit", "job=prepare", *places(folder), *data, held_out, "--wait")
    words = [
        *places(folder),
        *shape,
        held_out,
        "name=showcase",
        "job.nodes=2",
        "job.time=30",
        "job.grace=60",
        "train.batch_tokens=4096",
        f"train.tokens={steps * 4096}",
        "train.checkpoint.every_steps=50",
        "train.evaluate.every_steps=100",
        "train.watch.spike_sigma=0",
    ]
    return faults.dispatch(words, lambda run: faults.in_ranks(run, {f"RANK == {SLOW_RANK} and ATTEMPT >= 2": _SLOW}))


def _time_limit(scene: Scene) -> None:
    scene.at_step(130)
    slurm.set_time_limit(scene.job_id, 1, scene.emulation.environment)
    scene.ended(0)
    slurm.set_time_limit(scene.job_id, 30, scene.emulation.environment)


def _node_dies(scene: Scene) -> None:
    scene.until(lambda: len(ledger.history(scene.run)) > 1)
    scene.at_step(ledger.history(scene.run)[0].step or 0, 1)
    scene.until(lambda: _reached(scene.run) % 50 > 20)
    node = ledger.history(scene.run)[1].nodes[1]
    scene.emulation.kill_node(node)
    scene.ended(1)
    scene.emulation.start_node(node)


def _reached(run: Run) -> int:
    from monitoring.tail import last_step

    return last_step(ledger.folder(run, 1)) or 0


def _seen(run: Run) -> bool:
    return '"straggler' in hpc("findings", "--json", str(run.folder))


if __name__ == "__main__":
    sys.exit(main())
