"""``hydra/launcher=hpc_slurm``: any Hydra application's multirun as a sweep of ours, with its arrays and requeues."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher

from hpc.combinations import spelled

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from hpc.sweep import Sweep

# What ``hpc submit`` calls job.nodes and so on; null is its default.
JOB_FIELDS = (
    *("nodes", "ranks_per_node", "time", "partition", "account", "qos", "reservation", "constraint", "exclude"),
    *("memory_gb", "grace", "throttle", "max_fruitless"),
)

ConfigStore.instance().store(
    group="hydra/launcher",
    name="hpc_slurm",
    node={
        "_target_": "hydra_plugins.hpc.launcher.HpcLauncher",
        "cluster": "local",
        "name": "${hydra.job.name}",
        "wait": True,
        "overrides": [],
        **dict.fromkeys(JOB_FIELDS),
        "nodes": 1,
        "ranks_per_node": 1,
    },
    provider="hpc",
)

log = logging.getLogger(__name__)


class HpcLauncher(Launcher):
    """Runs the task function of each combination in a Slurm job of its own.

    Args:
        cluster: as in ``hpc submit cluster=...``.
        name: what the runs are called; other characters than a run's name may have become "-".
        wait: block until all have ended and hand on what they returned, as optimising sweepers need it. Otherwise the
            prompt returns at once, and every value is None.
        overrides: further ones of ``hpc submit``, such as cluster.runs=/scratch/me/runs.
        job: fields of ``hpc.config.Job``.
    """

    def __init__(self, cluster: str, name: str, wait: bool, overrides: Sequence[str], **job: Any) -> None:
        self.wait = wait
        words = [f"job.{key}={spelled(value)}" for key, value in job.items() if value is not None]
        run_name = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "hydra"
        self.words = ["job=hydra", f"cluster={cluster}", f"name={run_name}", *words, *overrides]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra.core.utils import JobReturn, JobStatus
        from hydra.errors import HydraException

        from hpc import arrays
        from hpc.errors import Failed, Refused
        from jobs.hydra import APPLICATION, TASKS

        combinations = [list(words) for words in job_overrides]
        tasks = {
            "first": initial_job_idx,
            "overrides": combinations,
            "path": [os.path.abspath(entry) for entry in sys.path],  # noqa: PTH100 (keeps links)
            "working_folder": os.getcwd(),  # noqa: PTH109
        }
        files = {APPLICATION: self._application(), TASKS: json.dumps(tasks).encode()}
        try:
            sweep = arrays.dispatch(self._plans(len(combinations)), [*sys.argv], files)
        except (Refused, Failed) as error:
            raise HydraException(f"hydra/launcher=hpc_slurm: {error}") from None  # Hydra tells it without a traceback
        log.info("%d runs of %s: hpc sweep status %s", len(combinations), sweep.cluster, sweep.folder)
        if self.wait:
            return self._results(sweep, combinations)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED) for words in combinations]

    def _plans(self, tasks: int) -> list[Any]:
        from hpc import compose, submit

        with _apart():
            config = compose.compose(self.words)
        # The first is checked whole; the others differ in nothing that Slurm is asked for.
        first = submit.plan(config, [*self.words, "job.task=0"])
        return [
            dataclasses.replace(
                first,
                config=dataclasses.replace(first.config, job=dataclasses.replace(first.config.job, task=task)),  # pyright: ignore[reportCallIssue]
                typed=[*self.words, f"job.task={task}"],
            )
            for task in range(tasks)
        ]

    def _application(self) -> bytes:
        import cloudpickle
        from hydra.core.singleton import Singleton

        from jobs.hydra import Application

        return cloudpickle.dumps(
            Application(self.hydra_context, self.task_function, self.config, Singleton.get_state())
        )

    def _results(self, sweep: Sweep, combinations: list[list[str]]) -> list[JobReturn]:
        import cloudpickle
        from hydra.core.utils import JobReturn, JobStatus

        from hpc.standing import standings, wait
        from jobs.hydra import RESULT

        wait(sweep, say=log.info)
        found = []
        for row, words in zip(standings(sweep), combinations, strict=True):
            file = sweep.run(row.number).folder / RESULT
            if file.exists():
                found.append(cloudpickle.loads(file.read_bytes()))
                continue
            result = JobReturn(overrides=words, status=JobStatus.FAILED)
            result.return_value = RuntimeError(f"{row.run} {row.state}: {row.reason}. Its log: hpc logs {row.run}")
            found.append(result)
        return found


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Hydra as if the application had not started it; what it has is back afterwards."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime

    instances: Mapping[type, Any] = Singleton._instances
    own = {kind: each for kind, each in instances.items() if kind not in (GlobalHydra, HydraConfig, JobRuntime)}
    own[ConfigStore] = copy.deepcopy(instances[ConfigStore])  # ours and the application's groups may have one name
    Singleton._instances = own  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        Singleton._instances = instances  # pyright: ignore[reportAttributeAccessIssue]
