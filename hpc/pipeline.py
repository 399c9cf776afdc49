"""``hpc submit job=pipeline``: several runs, each of which begins when those that it needs have finished."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpc import executor, following, slurm, submit
from hpc.config import CheckpointJob, Launcher, PipelineJob, TrainJob
from hpc.errors import Failed, Refused
from hpc.runs import NAME, Run, disk_failure, read_json, write_json
from hpc.submit import Plan
from trainer.problems import Problem

# Of what is typed for `job`, who pays is the same for all stages; the rest is meant for the training.
_FOR_ALL = ("account", "qos", "reservation")


@dataclass(frozen=True)
class Planned:
    """A stage whose request was checked."""

    name: str
    after: list[str]
    plan: Plan


@dataclass(frozen=True)
class Begun:
    """A stage that was handed over."""

    name: str
    after: list[str] = field(default_factory=list)
    run: Run = field(kw_only=True)


def ordered(job: PipelineJob) -> list[str]:
    """The stages, each behind those that it follows; otherwise as they are written.

    Raises:
        Refused: for stages that follow what is not there, or each other.
    """
    if not job.stages:
        raise Refused(str(Problem("job.stages", "{}", "a pipeline needs at least one stage", "job=pipeline")))
    for name, stage in job.stages.items():
        if not NAME.fullmatch(name):
            raise Refused(f"job.stages.{name}: a name has letters, digits, dot, dash and underscore")
        for other in stage.after:
            if other not in job.stages or other == name:
                names = ", ".join(each for each in job.stages if each != name)
                raise Refused(str(Problem(f"job.stages.{name}.after", f"[{other}]", f"allowed are {names or 'none'}")))
    found: list[str] = []
    while len(found) < len(job.stages):
        ready = [n for n, stage in job.stages.items() if n not in found and set(stage.after) <= set(found)]
        if not ready:
            rest = ", ".join(name for name in job.stages if name not in found)
            raise Refused(f"job.stages: {rest} wait for each other. Each may only follow stages that come before it")
        found.append(ready[0])
    return found


def words(typed: Sequence[str], job: PipelineJob, name: str, run_name: str) -> list[str]:
    """What would be typed to have one stage alone.

    Args:
        typed: for the whole pipeline, ``job=...`` among it.
        run_name: ``name`` of the whole request.
    """
    stage = job.stages[name]
    training = stage.job == "train" or name == "train"
    kept = [word for word in typed if _is_for(word, training=training)]
    renamed = [word for word in kept if _key(word) != "name"]
    return [*renamed, f"job={stage.job}", f"name={_run_name(run_name, name)}", *stage.overrides]


def _is_for(word: str, *, training: bool) -> bool:
    key = _key(word)
    if key == "job" or key.startswith("job.stages"):
        return False
    if not key.startswith("job."):
        return True
    return training or key.removeprefix("job.") in _FOR_ALL


def _run_name(name: str, stage: str) -> str:
    return name if stage == "train" else f"{name[: 63 - len(stage)]}-{stage}"


def _key(word: str) -> str:
    return re.split(r"[=@]", word.lstrip("+~"), maxsplit=1)[0]


def upstream(job: PipelineJob, name: str) -> list[str]:
    """All stages that finish before one begins, the nearest last."""
    found: list[str] = []
    for other in job.stages[name].after:
        found += [each for each in (*upstream(job, other), other) if each not in found]
    return found


def dispatch(stages: Sequence[Planned]) -> list[Begun]:
    """Write all run folders, then hand the stages over in their order.

    Raises:
        Failed: if one of them cannot be; what was submitted is withdrawn then, and no folder is left.
    """
    cluster = stages[0].plan.config.cluster
    for stage in stages:
        if stage.plan.config.cluster.name != cluster.name:
            raise Refused(f"stage {stage.name}: cluster={stage.plan.config.cluster.name}, and others on {cluster.name}")
    submit.need_sbatch(cluster)
    runs: dict[str, Run] = {}
    submitted: list[str] = []
    try:
        for stage in stages:
            runs[stage.name] = _write(stage, stages, runs)
        for stage in stages:
            following.note(runs[stage.name], [runs[each.name] for each in stages if stage.name in each.after])
        if cluster.launcher is Launcher.local:
            _start_here(stages, runs)
        else:
            for stage in stages:
                submitted.append(submit.hand_over(runs[stage.name], stage.plan))
                _note_job(runs[stage.name], submitted[-1])
    except BaseException as error:
        _withdraw(submitted, stages[0].plan.environment)
        for run in runs.values():
            shutil.rmtree(run.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_failure(error, "dispatch the pipeline") from error
        raise
    return [Begun(stage.name, stage.after, run=runs[stage.name]) for stage in stages]


def _write(stage: Planned, stages: Sequence[Planned], runs: Mapping[str, Run]) -> Run:
    config = stage.plan.config
    if isinstance(config.job, CheckpointJob) and config.job.run is None:
        trained = [each.name for each in stages if each.name in runs and isinstance(each.plan.config.job, TrainJob)]
        config.job.run = str(runs[trained[-1]].folder)
        stage.plan.typed.append(f"job.run={config.job.run}")
    after = [str(runs[name].folder) for name in stage.after]
    return Run(submit.write_folder(stage.plan, {"stage": stage.name, "after": after}))


def _note_job(run: Run, job_id: str) -> None:
    write_json(run.manifest_file, {**(read_json(run.manifest_file) or {}), "job_id": job_id})


def _start_here(stages: Sequence[Planned], runs: Mapping[str, Run]) -> None:
    """Without Slurm one process takes the stages in turn."""
    for run in runs.values():
        executor.write_entry(run.pickle)
    first = runs[stages[0].name]
    folders = [str(runs[stage.name].folder) for stage in stages]
    process = executor.start_here(stages[0].plan.config.cluster, first.code, ["--turns", *folders], first.log)
    for run in runs.values():
        _note_job(run, f"local-{process.pid}")


def _withdraw(job_ids: Sequence[str], environment: Mapping[str, str]) -> None:
    """The last first, so that none begins because the one before it ended."""
    for job_id in reversed(job_ids):
        with contextlib.suppress(Failed):
            slurm.cancel(job_id, environment)
