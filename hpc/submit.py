"""From a composed configuration to a dispatched run: check, write the run folder, hand it to the executor."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hpc import (
    asking,
    attempt,
    check,
    check_access,
    check_command,
    check_disk,
    check_site,
    evaluations,
    following,
    program,
    script,
    slurm,
)
from hpc.config import CheckpointJob, Cluster, CommandJob, Config, EvaluateJob, Launcher
from hpc.errors import Failed, Refused
from hpc.request import Request, resolve
from hpc.runs import Run, disk_failure, new_id, read_json, sync_folder, write_json, write_text
from hpc.site import Site
from trainer.problems import Problem

if TYPE_CHECKING:
    from hpc.emulate import Emulation


PROGRAM_PATCH = "program.patch"  # in the run folder: what the files of a command's folder differ in from their commit


@dataclass(frozen=True)
class Plan:
    """A checked request with the place it goes to."""

    config: Config
    request: Request
    environment: dict[str, str]  # beside the caller's: which Slurm is spoken to
    emulated: bool
    missing: tuple[Problem, ...]  # what a dry run can do without
    typed: list[str]  # what asks for this request alone
    warnings: tuple[str, ...] = ()  # what may be right and looks wrong
    site: Site | None = None  # what the cluster's Slurm says of itself, where it answers
    hints: tuple[str, ...] = ()  # no mistakes, but worth knowing before a long wait


def plan(
    config: Config,
    typed: Sequence[str] = (),
    *,
    dry_run: bool = False,
    begun: bool = False,
    before: Sequence[Config] = (),
) -> Plan:
    """Check a request against its cluster. Writes nothing.

    Args:
        dry_run: data that is not there yet and memory that is not free now are told instead of refused.
        begun: the run has weights of its own already, and does not look for those of another.
        before: requests that finish before this one begins: what they make counts as there.

    Raises:
        Refused: with every problem that was found, one a line.
    """
    _absolute(config)
    emulation = _emulation(config.cluster.name, config.cluster.launcher)
    if emulation is not None:
        config.cluster = emulation.described(config.cluster)
    emulated = emulation is not None
    request = resolve(config)
    environment = _environment(emulation)
    site = _site(config, environment)
    if site is not None and site.max_array_size is not None:
        config.cluster.max_array_size = min(config.cluster.max_array_size, site.max_array_size)
    if isinstance(config.job, EvaluateJob):
        evaluations.fit(config, max(1, request.world_size))
    problems = [*check.problems(config, request, site), *check_access.submission(config, request, site, 1)]
    missing = [*check_disk.data(config, before), *([] if begun else check_disk.weights(config, before))]
    if not problems and (emulated or config.cluster.launcher is Launcher.local):
        missing += check.fits_here(config, request, psutil.virtual_memory().available / 2**30)
    if refused := problems + ([] if dry_run else missing):
        raise Refused("\n".join(str(problem) for problem in refused))
    hints = check_site.hints(config, request, site) if site is not None else []
    if site is None and dry_run and config.cluster.launcher is Launcher.slurm:
        hints = [f"no Slurm of {config.cluster.name} answers here: checked against cluster/{config.cluster.name}.yaml"]
    told = tuple(check_command.warnings(config, _program_found(config)))
    return Plan(config, request, environment, emulated, tuple(missing), list(typed), told, site, tuple(hints))


def _program_found(config: Config) -> bool:
    """Whether the program of a command is on this machine."""
    job = config.job
    if not isinstance(job, CommandJob):
        return False
    return program.find(check_command.words(config.command)[0], Path(str(job.directory))) is not None


def seen(config: Config) -> Cluster:
    """The cluster of a request as it is reached from here: with what its emulation changed, where that is up."""
    _absolute(config)
    emulation = _emulation(config.cluster.name, config.cluster.launcher)
    return config.cluster if emulation is None else emulation.described(config.cluster)


def _site(config: Config, environment: Mapping[str, str]) -> Site | None:
    cluster = config.cluster
    if cluster.launcher is Launcher.local or not slurm.available():
        return None
    return asking.site(environment, reservations=bool(config.job.reservation or cluster.reservation))


def target(cluster: str, launcher: Launcher) -> dict[str, str]:
    """What Slurm programs and jobs of a cluster find in their environment beside the caller's own.

    Empty for a real site, whose Slurm is the one that answers here.
    """
    return _environment(_emulation(cluster, launcher))


def _emulation(cluster: str, launcher: Launcher) -> Emulation | None:
    if launcher is Launcher.local:
        return None
    from hpc import emulate

    return emulate.find(cluster)


def _environment(emulation: Emulation | None) -> dict[str, str]:
    return {} if emulation is None else {**emulation.environment, attempt.EMULATED: "1"}


def render(plan: Plan, folder: Path | None = None) -> str:
    """The exact script that ``dispatch`` would submit; the run's id is not taken yet."""
    folder = folder or Path(plan.config.cluster.runs) / plan.config.name / "RUN_ID"
    return script.render(plan.config, plan.request, folder, emulated=plan.emulated)


def dispatch(
    plan: Plan, *, kin: Mapping[str, Any] | None = None, fill: Callable[[Run], None] = lambda run: None
) -> Run:
    """Write the run folder and hand it to the cluster.

    Args:
        kin: what the manifest says of the run that this one comes from.
        fill: writes what else the folder begins with, before it gets its name.

    Raises:
        Failed: if the folder cannot be written or Slurm does not take the job; then no folder is left.
    """
    need_sbatch(plan.config.cluster)
    run = Run(write_folder(plan, kin, fill))
    try:
        job_id = hand_over(run, plan)
    except BaseException as error:
        shutil.rmtree(run.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_failure(error, "dispatch the run") from error
        raise
    # The state is the supervisor's from here on; it may be running already.
    write_json(run.manifest_file, {**(read_json(run.manifest_file) or {}), "job_id": job_id})
    return run


def need_sbatch(cluster: Cluster) -> None:
    """
    Raises:
        Failed: if the cluster is reached through sbatch and there is none.
    """
    if cluster.launcher is Launcher.slurm and not slurm.available():
        raise Failed(
            f"cluster={cluster.name} is reached through sbatch, which is not installed here. Submit from its "
            f"login node, rehearse with `hpc emulate up cluster={cluster.name}`, or use cluster=local."
        )


def write_folder(
    plan: Plan, kin: Mapping[str, Any] | None = None, fill: Callable[[Run], None] = lambda run: None
) -> Path:
    """Write the run folder of a checked request, whole; nothing knows of it yet. Arguments as of ``dispatch``."""

    def write(tmp: Path, _: Path) -> None:
        _write(Run(tmp), plan, kin or {})
        fill(Run(tmp))

    return new_folder(Path(plan.config.cluster.runs) / plan.config.name, write)


def new_folder(parent: Path, write: Callable[[Path, Path], None]) -> Path:
    """Write a new folder under a hidden name, which becomes the real one when all is there.

    Args:
        write: fills the folder; is given where it is now, and where it will be.

    Raises:
        Failed: if it cannot be written; nothing is left then.
    """
    try:
        tmp, folder = _new_folder(parent)
    except OSError as error:
        raise disk_failure(error, "write the run folder") from error
    try:
        write(tmp, folder)
        tmp.rename(folder)
        sync_folder(parent)
    except BaseException as error:
        shutil.rmtree(tmp, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_failure(error, "write the run folder") from error
        raise
    return folder


def _new_folder(parent: Path) -> tuple[Path, Path]:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        name = new_id()
        tmp, folder = parent / f".{name}.tmp", parent / name
        # Many may be submitting in the same second, and one must not clear away another's.
        with contextlib.suppress(FileExistsError):
            tmp.mkdir()
            if not folder.exists():
                return tmp, folder
            tmp.rmdir()


def _write(run: Run, plan: Plan, kin: Mapping[str, Any]) -> None:
    from omegaconf import OmegaConf

    from hpc import provenance

    write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(plan.typed)))
    patch = provenance.dirty_patch()
    if patch:
        write_text(run.patch_file, patch)
    manifest = provenance.manifest(plan.typed, plan.config.cluster.name, emulated=plan.emulated)
    write_json(run.manifest_file, {**manifest, **note_program(run.folder, plan.config), **kin})
    provenance.snapshot(run.code)
    run.attempts.mkdir()
    run.checkpoints.mkdir()
    run.set_state("queued", cluster=plan.config.cluster.name, emulated=plan.emulated, reason="")
    write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.structured(plan.config)))


def note_program(folder: Path, config: Config) -> dict[str, Any]:
    """For the manifest: where the program of a command comes from. What its files differ in goes beside it."""
    if not isinstance(config.job, CommandJob):
        return {}
    from hpc import provenance

    place = Path(str(config.job.directory))
    if patch := provenance.dirty_patch(place):
        write_text(folder / PROGRAM_PATCH, patch)
    return {"program": {"directory": str(place), "git": provenance.git_state(place)}}


def hand_over(run: Run, plan: Plan) -> str:
    """Give a written run folder to the cluster; the job's id."""
    from hpc.executor import LocalRunExecutor, SlurmRunExecutor

    if plan.config.cluster.launcher is Launcher.local:
        executor = LocalRunExecutor(run.folder, plan.config, plan.request)
    else:
        options = following.dependency(run)
        executor = SlurmRunExecutor(run.folder, plan.config, plan.request, plan.environment, options)
    return executor.submit(attempt.start, str(run.folder)).job_id


def _absolute(config: Config) -> None:
    """Paths mean the folder they were typed in; on a compute node there is another."""
    config.cluster.runs = os.path.abspath(Path(config.cluster.runs).expanduser())  # noqa: PTH100 (keeps links)
    config.cluster.data = os.path.abspath(Path(config.cluster.data).expanduser())  # noqa: PTH100
    if config.cluster.venv:
        config.cluster.venv = os.path.abspath(Path(config.cluster.venv).expanduser())  # noqa: PTH100
    if (config.notify.webhook or "").startswith("file:"):
        file = Path(str(config.notify.webhook).removeprefix("file:")).expanduser()
        config.notify.webhook = f"file:{os.path.abspath(file)}"  # noqa: PTH100
    config.data.corpus.files = [os.path.abspath(Path(f).expanduser()) for f in config.data.corpus.files]  # noqa: PTH100
    config.data.path = os.path.abspath(Path(config.data.path).expanduser())  # noqa: PTH100
    if isinstance(config.job, CommandJob):
        config.job.directory = os.path.abspath(Path(config.job.directory or ".").expanduser())  # noqa: PTH100
        if config.job.pythonpath is None:
            config.job.pythonpath = os.environ.get("PYTHONPATH", "")
    if isinstance(config.job, CheckpointJob) and config.job.run is not None:
        config.job.run = os.path.abspath(Path(config.job.run).expanduser())  # noqa: PTH100 (keeps links)
    if config.train.init_from is not None:
        config.train.init_from = os.path.abspath(Path(config.train.init_from).expanduser())  # noqa: PTH100
