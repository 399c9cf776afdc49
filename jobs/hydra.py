"""``job=hydra``: one combination of another Hydra application's multirun, for ``hydra/launcher=hpc_slurm``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import sweep
from hpc.attempt import Attempt
from hpc.config import HydraJob
from hpc.errors import Failed
from hpc.runs import Run, load_config, mark_finished, write_bytes

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

# In the sweep's folder: the pickled application; of each task its overrides, and where the application was started.
APPLICATION, TASKS = "application.pkl", "tasks.json"
RESULT = "result.pkl"  # in the run's folder: what the task function returned, or raised


@dataclass(frozen=True)
class Application:
    """What a combination needs of the process that was typed, pickled once for all of them."""

    hydra_context: Any
    task_function: Any
    config: Any
    singletons: Any

    def __call__(self, overrides: list[str], number: int, job_id: str) -> JobReturn:
        """Run the task function as Hydra does it in a multirun."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import open_dict

        Singleton.set_state(self.singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        job: Any = config.hydra.job
        with open_dict(job):
            job.id, job.num = job_id, number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class Hydra:
    """Every rank calls the application's task function; what rank 0's returns is the run's result."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self) -> None:
        attempt = Attempt.from_environment()
        job = load_config(self.run).job
        folder = sweep.of_run(Run(self.run))
        if folder is None or not isinstance(job, HydraJob):
            raise Failed("job=hydra runs what hydra/launcher=hpc_slurm has submitted, and nothing else")
        result = _call(folder, job.task, attempt.job_id)
        if attempt.rank == 0:
            import cloudpickle

            write_bytes(self.run / RESULT, cloudpickle.dumps(result))
        if result.status.name == "FAILED":
            raise result._return_value
        if attempt.rank == 0:
            mark_finished(self.run)


def _call(folder: Path, task: int, job_id: str) -> JobReturn:
    import pickle

    tasks = json.loads((folder / TASKS).read_text(encoding="utf-8"))
    # As the application was started: modules that its function names, and its configuration, are found from there.
    sys.path += [entry for entry in tasks["path"] if entry not in sys.path]
    os.chdir(tasks["working_folder"])
    application = pickle.loads((folder / APPLICATION).read_bytes())
    return application(tasks["overrides"][task], tasks["first"] + task, job_id)
