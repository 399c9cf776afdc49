"""A pipeline on a real Slurm: its checkpoints are measured while training goes on, and nothing begins too early."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import monitoring
from hpc import evaluations, ledger, slurm
from hpc.emulate import Emulation
from hpc.runs import Run
from hpc.waiting import outcome
from tests.slurm.training import BATCH, SHAPE, at_step, ended, hpc, told

STEPS = 150


@pytest.mark.timeout(900)
def test_from_text_to_perplexity_with_a_training_that_changes_its_job(
    emulation: Emulation, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    places = [f"cluster.runs={tmp_path}/runs", f"cluster.data={tmp_path}/data"]
    typed = [
        *("train.checkpoint.keep_every=50", "train.evaluate.every_steps=25", "job.evaluate_checkpoints=true"),
        *(f"train.tokens={STEPS * BATCH}", f"optim.decay_tokens={STEPS * BATCH}", "data.corpus.validation_share=0.2"),
    ]
    stages = json.loads(hpc("submit", "--json", "job=pipeline", *places, *SHAPE, *typed))
    prepared, trained, evaluated = runs = [Run(Path(stage["folder"])) for stage in stages]
    try:
        waiting = slurm.queue([str(evaluated.job_id)], emulation.environment)[str(evaluated.job_id)]
        assert (waiting.state, waiting.reason) == ("PENDING", "Dependency")
        ended(prepared, 120)
        first = trained.job_id
        _leave_for_a_successor(trained, emulation)
        wait_for(lambda: evaluations.submitted(trained, 50) is not None, 120)
        wait_for(lambda: trained.job_id != first or outcome(trained) is not None, 120)
        assert str(trained.job_id) != first, told(trained)
        assert evaluated.state()["state"] == "queued"
        ended(trained, 300)
        ended(evaluated, 120)
        assert [record.cause for record in ledger.history(evaluated)] == ["finished"]
        finished = json.loads(trained.finished_file.read_text())["finished"]
        assert ledger.history(evaluated)[0].began > finished
        assert ledger.history(evaluated)[0].job_id == stages[2]["job_id"], "it waited for the successor"
        early = evaluations.submitted(trained, 50)
        assert early is not None and ledger.history(early[0])[0].began < finished
        wait_for(lambda: [each.step for each in evaluations.every(trained)] == [50, 100, 150], 120)
        _equal_what_training_saw(trained)
    finally:
        for run in [*runs, *(Run(path.parent) for path in tmp_path.glob("runs/*-evaluate/*/config.yaml"))]:
            if outcome(run) is None:
                subprocess.run(
                    [sys.executable, "-m", "hpc", "cancel", "--now", str(run.folder)], timeout=60, check=False
                )


def _leave_for_a_successor(run: Run, emulation: Emulation) -> None:
    """As on a site without requeue: asked to stop, the run goes on in another job."""
    at_step(run, 0, 60)
    slurm.call(["scontrol", "update", f"JobId={run.job_id}", "Requeue=0"], environment=emulation.environment)
    slurm.signal_batch(str(run.job_id), "USR2", emulation.environment)


def _equal_what_training_saw(run: Run) -> None:
    history = monitoring.load(run.folder).history.dropna(subset=["validation_loss"])
    seen = {int(step): float(loss) for step, loss in zip(history["step"], history["validation_loss"], strict=True)}
    for each in evaluations.every(run):
        # Measured by two ranks instead of four: the same sums in another order.
        assert each.loss == pytest.approx(seen[each.step], rel=1e-6)
