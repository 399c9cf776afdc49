"""Evaluations of a run's checkpoints, submitted with the run's own configuration: one as a run, several as a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import evaluations, resume, submit
from hpc.config import Config, EvaluateJob, TrainJob
from hpc.errors import Failed, Refused
from hpc.runs import Run
from hpc.waiting import outcome
from trainer import checkpoint_folder as checkpoints
from trainer.config import Engine

if TYPE_CHECKING:
    from hpc.sweep import Sweep

# What a job of the trained run's cluster is asked for as the training was; time and nodes are an evaluation's own.
_ALIKE = (
    *("ranks_per_node", "partition", "account", "qos", "reservation", "constraint", "exclude", "memory_gb"),
    *("rank_memory_gb", "preflight"),
)


def complete(run: Run) -> list[int]:
    """Steps of the run's complete checkpoints.

    Raises:
        Refused: if there is none.
    """
    try:
        steps = checkpoints.complete_steps(run.checkpoints)
    except OSError:
        steps = []
    if not steps:
        raise Refused(f"{run.name}/{run.id} has no complete checkpoint yet. Where it stands: hpc status {run.id}")
    return steps


def chosen(run: Run, step: int | None) -> int:
    """The step that a person means: the one given, or the newest.

    Raises:
        Refused: if there is no complete checkpoint of it.
    """
    steps = complete(run)
    if step is None:
        return steps[-1]
    if step not in steps:
        nearest = min(steps, key=lambda each: abs(each - step))
        there = ", ".join(map(str, steps[-8:]))
        raise Refused(f"--step {step}: there is no complete checkpoint of it, only of {there}. Try: --step {nearest}")
    return step


def missing(run: Run) -> list[int]:
    """Steps of complete checkpoints that were not measured and that no run is about to measure."""
    return [step for step in complete(run) if evaluations.read(run, step) is None and under_way(run, step) is None]


def under_way(run: Run, step: int) -> Run | None:
    """The run that measures a step now or will; None where there is none, or it has ended."""
    found = evaluations.submitted(run, step)
    if found is None:
        return None
    by, of_sweep = found
    if by.config_file.exists():
        return by if outcome(by) is None and resume.lives(by) else None
    return by if of_sweep is not None and _will_begin(of_sweep, by) else None


def _will_begin(folder: Path, run: Run) -> bool:
    from hpc.standing import ENDED, standings
    from hpc.sweep import Sweep

    try:
        return any(row.run == run.id and row.state not in ENDED for row in standings(Sweep(folder)))
    except Refused:  # the sweep was removed
        return False


def request(run: Run, step: int, words: Sequence[str] = ()) -> Config:
    """The configuration of a run that measures a checkpoint: the trained run's own, with another job.

    Args:
        words: values by path, such as job.time=1:00:00.

    Raises:
        Refused: for a run that trained nothing, and for mistakes in ``words``.
    """
    config = run.config()
    job = config.job
    if not isinstance(job, TrainJob):
        raise Refused(f"{run.name}/{run.id} is no training. Runs are listed by: hpc status")
    config.name = f"{run.name[:55]}-evaluate"
    config.cluster.runs = str(run.folder.parent.parent)
    alike = {name: getattr(job, name) for name in _ALIKE}
    config.job = EvaluateJob(nodes=1, run=str(run.folder), step=step, **alike)
    if config.parallel.engine is Engine.single:
        config.job.ranks_per_node = 1
    return _changed(config, words) if words else config


def _changed(config: Config, words: Sequence[str]) -> Config:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from hpc.compose import CONF, refused, typed

    tree = OmegaConf.structured(config)
    try:
        for override in OverridesParser.create().parse_overrides(list(words)):
            key = override.key_or_group
            if (CONF / key).is_dir() or override.is_add() or override.is_delete() or override.is_sweep_override():
                raise Refused(
                    f"{override.input_line}: an evaluation takes the run's own configuration, in which values can be "
                    "changed. Try: job.ranks_per_node=2 or parallel.micro_batch=4"
                )
            OmegaConf.update(tree, key, override.value(), merge=True)
        return typed(tree)
    except Refused:
        raise
    except Exception as error:
        raise refused(error) from error


def plan(run: Run, steps: Sequence[int], words: Sequence[str]) -> list[submit.Plan]:
    """One checked request for each step.

    Raises:
        Refused: if one of them cannot be met.
    """
    typed = ["job=evaluate", f"job.run={run.folder}", *words]
    first = request(run, steps[0], words)
    assert isinstance(first.job, EvaluateJob)
    # What is alike is one object: comparing and checking hundreds of them then takes no time.
    configs = [dataclasses.replace(first, job=dataclasses.replace(first.job, step=step)) for step in steps]
    return [submit.plan(config, [*typed, f"job.step={step}"]) for step, config in zip(steps, configs, strict=True)]


def dispatch(run: Run, plans: Sequence[submit.Plan]) -> Run | Sweep:
    """Hand evaluations over: one as a run, several as a sweep; the trained run's folder notes who measures what.

    Raises:
        Failed: if that cannot be done; nothing is left then.
    """
    from hpc import arrays
    from hpc.runs import disk_failure

    steps = [plan.config.job.step for plan in plans if isinstance(plan.config.job, EvaluateJob)]
    if len(plans) == 1:
        found = submit.dispatch(plans[0])
        measured_by = [(found, None)]
    else:
        found = arrays.dispatch(list(plans), ["job=evaluate", f"job.run={run.folder}"])
        measured_by = [(found.run(number), found.folder) for number in range(len(plans))]
    try:
        for step, (by, sweep) in zip(steps, measured_by, strict=True):
            assert step is not None
            evaluations.note_submitted(run, step, by, sweep)
    except OSError as error:
        failure: Failed = disk_failure(error, f"note in {run.folder} what measures it, which goes on all the same")
        raise failure from error
    return found
