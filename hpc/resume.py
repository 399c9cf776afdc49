"""Going on with a run that has ended: as it was, longer, or on another layout. Its folder and history stay."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpc import check, provenance, slurm, submit
from hpc.config import CommandJob, Config, EvaluateJob, Launcher, TrainJob
from hpc.errors import Failed, Refused
from hpc.queue import belongs, controller, local_lives
from hpc.runs import NAME, Run, disk_failure, read_json, sync_folder, write_json, write_text
from hpc.submit import Plan
from hpc.waiting import outcome
from monitoring.job import OVER
from trainer import checkpoint_folder as checkpoints
from trainer.problems import Problem


def words(run: Run, new: list[str]) -> list[str]:
    """What was typed for the run, with ``new`` overrides in place of those of the same keys."""
    from omegaconf import OmegaConf

    try:
        typed = [str(word) for word in OmegaConf.load(run.overrides_file)]
    except OSError as error:
        raise Refused(f"{run.folder} does not say what was typed for it ({error.strerror})") from error
    changed = {key(word) for word in new}
    return [word for word in typed if key(word) not in changed] + new


def keep_places(config: Config, run: Run, new: list[str]) -> None:
    """The run stays where it is, and reads the data it read, whatever folder or environment this is typed in."""
    before = run.config()
    config.name = run.name if NAME.fullmatch(run.name) else before.name  # it may have been moved to any folder
    config.cluster.runs = str(run.folder.parent.parent)
    keep_data(config, before, new)


def keep_data(config: Config, before: Config, new: list[str]) -> None:
    """What ``before`` read is read, unless ``new`` overrides say otherwise."""
    keys = {key(word) for word in new}
    if not keys & {"data", "data.path", "cluster.data"}:
        config.cluster.data, config.data.path = before.cluster.data, before.data.path
    if not keys & {"data", "data.corpus.files"}:
        config.data.corpus.files = before.data.corpus.files
    if "train.init_from" not in keys:
        config.train.init_from = before.train.init_from
    if isinstance(config.job, CommandJob) and isinstance(before.job, CommandJob):
        for name in ("directory", "pythonpath"):
            if f"job.{name}" not in keys:
                setattr(config.job, name, getattr(before.job, name))


@dataclass(frozen=True)
class Origin:
    """The newest complete checkpoint of a run, from which it would go on."""

    step: int
    marker: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the data."""
        return self.marker["identity"]["data"]["fingerprint"]


def origin(run: Run) -> Origin | None:
    """What the run would go on from, as far as can be seen without reading it all."""
    found = checkpoints.newest(run.checkpoints)
    return Origin(*found) if found else None


def keep_phases(config: Config, saved: Origin | None, new: list[str]) -> None:
    """Phases of the mixture begin where they began, also in a longer run: what was read is read in that order.

    Phases that are typed anew count as they are.

    Raises:
        Refused: if the run is to end before the last of them begins.
    """
    phases = config.data.mixture.phases
    if saved is None or not phases or any(re.match(r"data$|experiment$|data\.mixture\b", key(word)) for word in new):
        return
    from trainer.data.mixture import first_samples, kept_phases
    from trainer.identity import phase_starts

    samples = -(-config.train.tokens // config.data.seq_len)
    starts = phase_starts(saved.marker)
    if len(starts) != len(phases) or starts == first_samples(phases, samples):
        return
    if starts[-1] >= samples:
        begins = starts[-1] * config.data.seq_len
        allowed = f"the run's last phase of data.mixture begins at token {begins}, and the run cannot end before"
        fix = f"train.tokens={begins + config.data.seq_len}"
        raise Refused(str(Problem("train.tokens", str(config.train.tokens), allowed, fix)))
    config.data.mixture.phases = kept_phases(phases, starts, samples)


def refuse_other(run: Run, config: Config, saved: Origin, new: list[str]) -> None:
    """
    Raises:
        Refused: if the run could not go on from its checkpoint: its model, its samples or its seed would be others.
    """
    if isinstance(config.job, TrainJob) and any(key(word) == "train.init_from" for word in new):
        allowed = f"the run has weights of its own already, those of step {saved.step}"
        raise Refused(str(Problem("train.init_from", str(config.train.init_from), allowed, "hpc submit, as a new run")))
    if problems := others(run, config, saved):
        raise Refused("\n".join(map(str, problems)))


def others(run: Run, config: Config, saved: Origin) -> list[Problem]:
    """In what a configuration differs from a checkpoint of a run where it must not, if it is to go on from there."""
    if not isinstance(config.job, TrainJob):
        return []
    from trainer.data.files import DataError
    from trainer.data.manifest import Manifest
    from trainer.identity import differences, identity, typed

    try:
        data = Manifest.read(Path(config.data.path))
    except DataError:  # not there, of which a dry run was told
        data = saved
    problems = []
    for found in differences(saved.marker["identity"], identity(check.trainer_config(config), data)):
        if found.field == "data.fingerprint":
            fix = f"data.path={run.config().data.path}, if it holds what it held then"
            problems.append(Problem("data.path", config.data.path, "the run was trained on other tokens", fix))
        else:
            had = f"the run's checkpoint of step {saved.step} has {typed(found.before) or '{}'}, and that cannot change"
            problems.append(Problem(found.field, typed(found.now) or "{}", had, found.fix or "leave it as it was"))
    return problems


def refuse_live(run: Run) -> None:
    """
    Raises:
        Refused: if an attempt of the run may still come or is under way: there must never be two.
    """
    if outcome(run) is not None or not lives(run):
        return
    raise Refused(
        f"{run.name}/{run.id} has not ended: it is {run.state().get('state')}, job {run.job_id}. "
        f"To end it first: hpc cancel {run.id}"
    )


def refuse_evaluation(run: Run) -> None:
    """
    Raises:
        Refused: if the run measures a checkpoint with the configuration of another, which nobody typed.
    """
    job = run.config().job
    if isinstance(job, EvaluateJob) and job.run and "stage" not in (read_json(run.manifest_file) or {}):
        step = f" --step {job.step}" if job.step is not None else ""
        raise Refused(f"{run.name}/{run.id} is an evaluation. To begin it anew: hpc evaluate {job.run}{step} --again")


def refuse_finished(run: Run, config: Config, new: list[str]) -> None:
    """
    Raises:
        Refused: if there is nothing left to do.
    """
    done = read_json(run.finished_file)
    if done is None:
        return
    if isinstance(config.job, CommandJob):
        if any(re.match(r"(command|args)\b", key(word)) for word in new):
            return
        raise Refused(f"{run.name}/{run.id} is finished. To go on in its folder: hpc resume {run.id} command=...")
    reached = done.get("tokens")
    if isinstance(reached, int) and config.train.tokens > reached:
        return
    more = f" at {reached:,} tokens. To train longer: hpc resume {run.id} train.tokens={2 * reached}" if reached else ""
    raise Refused(f"{run.name}/{run.id} is finished{more}")


class Plans(Protocol):
    """Composes what was typed into a checked request."""

    def __call__(self, typed: list[str], *, begun: bool, change: Callable[[Config], None]) -> Plan: ...


def plan(run: Run, new: list[str], plans: Plans) -> tuple[Plan, list[str]]:
    """The request to go on with a run as it was typed, but for ``new``; and all that would have to be typed for it.

    Raises:
        Refused: if the run has not ended, has nothing left to do, or cannot go on in this way.
    """
    refuse_live(run)
    typed = words(run, new)
    saved = origin(run)

    def keep(config: Config) -> None:
        keep_places(config, run, new)
        keep_phases(config, saved, new)

    found = plans(typed, begun=saved is not None, change=keep)
    refuse_finished(run, found.config, new)
    if saved is not None:
        refuse_other(run, found.config, saved, new)
    return found, typed


def resume(run: Run, plan: Plan, typed: list[str], new: list[str]) -> str:
    """Write the changed request into the run's folder and hand it over. Returns the job's id.

    Raises:
        Failed: if that cannot be done; the run then stands as before.
    """
    from omegaconf import OmegaConf

    if plan.config.cluster.launcher is Launcher.slurm and not slurm.available():
        raise Failed(f"cluster={plan.config.cluster.name} is reached through sbatch, which is not installed here")
    texts = {path: path.read_text() for path in (run.config_file, run.overrides_file, run.state_file) if path.exists()}
    try:
        _refresh_code(run)
        write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(typed)))
        write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.structured(plan.config)))
        _note(run, new)
        fields = {"cluster": plan.config.cluster.name, "emulated": plan.emulated, "reason": "", "job_id": ""}
        run.set_state("queued", **fields)
        clear_ends(run)
        job_id = submit.hand_over(run, plan)
    except BaseException as error:
        with suppress(OSError):
            for path, text in texts.items():
                write_text(path, text)
        if isinstance(error, OSError):
            raise disk_failure(error, "resume the run") from error
        raise
    write_json(run.manifest_file, {**(read_json(run.manifest_file) or {}), "job_id": job_id})
    return job_id


def key(word: str) -> str:
    """What an override is about: +train.seed=1, train.seed=2 and ~train.seed all are about train.seed."""
    return re.split(r"[=@]", word.lstrip("+~"), maxsplit=1)[0]


def lives(run: Run) -> bool:
    """Whether the newest job of a run is in the queue or runs.

    Raises:
        Refused: if that cannot be seen from here.
    """
    job_id = run.job_id
    if job_id is None:
        return False
    if job_id.startswith("local-"):
        alive = local_lives(run)
        if alive is None:
            raise Refused(f"the run is on {run.host}: only there can be seen whether it has ended")
        return alive
    environment = controller(run)
    if environment is None:
        return False
    row = slurm.queue([job_id], environment).get(job_id)
    return row is not None and row.state not in OVER and belongs(row, run)


def _refresh_code(run: Run) -> None:
    """The code of now in place of the run's snapshot; what is missing after a crash the next resume brings."""
    fresh, old = run.folder / ".code.new", run.folder / ".code.old"
    for leftover in (fresh, old):
        _remove(leftover)
    provenance.snapshot(fresh)
    if run.code.exists() or run.code.is_symlink():  # which leads nowhere once a sweep's run was moved
        run.code.rename(old)
    fresh.rename(run.code)
    sync_folder(run.folder)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # to the code of a sweep, which its other runs need
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _note(run: Run, new: list[str]) -> None:
    """Add this resumption to the run's manifest, and what its code differs by from its commit."""
    manifest: dict[str, Any] = read_json(run.manifest_file) or {}
    resumed = [
        *manifest.get("resumed", []),
        {"typed": new, "time": time.time(), "git": provenance.git_state(provenance.ROOT)},
    ]
    if patch := provenance.dirty_patch():
        write_text(Path(f"{run.patch_file}.{len(resumed)}"), patch)
    write_json(run.manifest_file, {**manifest, "resumed": resumed})


def clear_ends(run: Run) -> None:
    """What said that the run had ended says so no more; when it finished before stays known."""
    run.cancel_file.unlink(missing_ok=True)
    if run.finished:
        number = len(list(run.folder.glob(f"{run.finished_file.name}.*"))) + 1
        run.finished_file.rename(f"{run.finished_file}.{number}")
    sync_folder(run.folder)
