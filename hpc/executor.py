"""Our submitit executors: submitit's interface and entry on every rank, our script and our supervisor.

submitit finds ``SlurmRunExecutor`` and ``RunJobEnvironment`` through its entry points. What differs from its own: one
pickle that holds nothing but the path of the run folder; the supervisor instead of submitit's signal handling, which
runs on rank 0 alone and inside the handler; and a script that is rendered by a pure function.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.core import core, job_environment, utils
from submitit.local import local
from submitit.slurm import slurm as submitit_slurm

from hpc import attempt, script, slurm
from hpc.config import Cluster, Config
from hpc.request import Request
from hpc.runs import Run, write_text
from monitoring.layout import rank_log


class RunPaths(utils.JobPaths):
    """submitit's files inside a run folder."""

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def submission_file(self) -> Path:
        return Run(self._folder).script

    @property
    def submitted_pickle(self) -> Path:
        return Run(self._folder).pickle

    @property
    def _attempt(self) -> Path:
        number = os.environ.get(attempt.ATTEMPT)
        if number is None:
            taken = [int(p.name) for p in Run(self._folder).attempts.glob("*") if p.name.isdigit()]
            number = str(max(taken, default=0))
        return Run(self._folder).attempts / number

    @property
    def result_pickle(self) -> Path:
        return self._attempt / f"rank-{self.task_id}.result.pkl"

    @property
    def stdout(self) -> Path:
        return rank_log(self._attempt, self.task_id)

    @property
    def stderr(self) -> Path:
        return self.stdout


class RunJobEnvironment(job_environment.JobEnvironment):
    """What submitit's entry asks on each rank. Signals are ``hpc.attempt``'s."""

    _env = {  # noqa: RUF012 (submitit reads it from the class)
        "job_id": attempt.JOB_ID,
        "num_tasks": attempt.WORLD_SIZE,
        "num_nodes": "SLURM_JOB_NUM_NODES",
        "node": "SLURM_NODEID",
        "global_rank": attempt.RANK,
        "local_rank": attempt.LOCAL_RANK,
    }

    @classmethod
    def name(cls) -> str:
        return "hpc"

    @property
    def num_tasks(self) -> int:
        return int(os.environ.get(attempt.WORLD_SIZE) or os.environ.get("SLURM_STEP_NUM_TASKS", "1"))

    @property
    def global_rank(self) -> int:
        return int(os.environ.get(attempt.RANK) or os.environ.get("SLURM_PROCID", "0"))

    @property
    def local_rank(self) -> int:
        return int(os.environ.get(attempt.LOCAL_RANK) or os.environ.get("SLURM_LOCALID", "0"))

    @property
    def paths(self) -> utils.JobPaths:
        return RunPaths(os.environ["SUBMITIT_FOLDER"], job_id=self.job_id, task_id=self.global_rank)

    def _handle_signals(self, paths: utils.JobPaths, submission: utils.DelayedSubmission) -> None:
        """Nothing: ranks set a flag (``Attempt.install_stop_handlers``) and the supervisor requeues."""


class SlurmRunJob(submitit_slurm.SlurmJob[Any]):
    """submitit's Job of a run on Slurm."""

    def __init__(self, folder: Path | str, job_id: str, tasks: Any = (0,)) -> None:
        super().__init__(folder, job_id, tasks)
        self._paths = RunPaths(folder, job_id=job_id, task_id=self.task_id)


class LocalRunJob(local.LocalJob[Any]):
    """submitit's Job of a run on this machine."""

    def __init__(self, folder: Path | str, job_id: str, tasks: Any = (0,), process: Any = None) -> None:
        super().__init__(folder, job_id, tasks, process)
        self._paths = RunPaths(folder, job_id=job_id, task_id=self.task_id)


class SlurmRunExecutor(submitit_slurm.SlurmExecutor):
    """Dispatches a run folder to Slurm."""

    job_class = SlurmRunJob

    def __init__(
        self,
        folder: Path | str,
        config: Config | None = None,
        request: Request | None = None,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(folder, **kwargs)
        self.options = options
        self.run = Run(Path(folder))
        self.config = config
        self.request = request
        self.environment = dict(environment or {})

    @classmethod
    def name(cls) -> str:
        return "hpc"

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        assert self.config is not None and self.request is not None, "made by hpc.submit"
        jobs: list[core.Job[Any]] = []
        for delayed in delayed_submissions:
            _dump(delayed, self.run.pickle)
            emulated = self.environment.get(attempt.EMULATED) == "1"
            text = script.render(self.config, self.request, self.run.folder, emulated=emulated)
            write_text(self.run.script, text)
            job_id = slurm.sbatch(self.run.script, self.environment, *self.options)
            jobs.append(self.job_class(self.run.folder, job_id, tuple(range(self.request.world_size))))
        return jobs


class LocalRunExecutor(local.LocalExecutor):
    """Dispatches a run folder to this machine: the same supervisor, as a process that outlives its starter."""

    job_class = LocalRunJob

    def __init__(self, folder: Path | str, config: Config, request: Request, **kwargs: Any) -> None:
        super().__init__(folder, **kwargs)
        self.run = Run(Path(folder))
        self.config = config
        self.request = request

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        jobs: list[core.Job[Any]] = []
        for delayed in delayed_submissions:
            _dump(delayed, self.run.pickle)
            process = start_here(self.config.cluster, self.run.code, [str(self.run.folder)], self.run.log)
            tasks = tuple(range(self.request.world_size))
            jobs.append(LocalRunJob(self.run.folder, f"local-{process.pid}", tasks, process=process))
        return jobs


def start_here(cluster: Cluster, code: Path, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A supervisor on this machine, as a process that outlives its starter."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [script.interpreter(cluster), "-P", "-u", "-m", "hpc.supervise", *words],
            env={
                **slurm.clean_environment(),
                **cluster.environment,
                **script.interfaces(cluster, emulated=False),
                "PYTHONPATH": str(code),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def write_entry(file: Path) -> None:
    """Write what submitit's entry on each rank of any run reads: the supervisor says which run it is."""
    _dump(utils.DelayedSubmission(attempt.start), file)


def _dump(delayed: utils.DelayedSubmission, file: Path) -> None:
    tmp = file.with_suffix(".tmp")
    delayed.dump(tmp)
    tmp.replace(file)
