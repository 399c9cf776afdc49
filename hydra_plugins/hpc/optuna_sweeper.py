"""``hydra/sweeper=hpc_optuna``: values are proposed by Optuna from what the runs before them returned.

    python app.py -m hydra/sweeper=hpc_optuna 'lr=tag(log, interval(1e-5, 1e-1))' 'layers=range(2, 8)' 'act=gelu,relu'

Trials are launched some at a time by whatever launcher is chosen. The study lies in the sweep's folder, so that the
same command goes on with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

from hpc import search
from hpc import study as studies
from hpc.combinations import spelled

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

# Of the job that submits the rounds, what hpc submit calls job.time and so on; null is the cluster's default.
JOB_FIELDS = ("time", "partition", "account", "qos", "reservation", "memory_gb", "grace")

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="hpc_optuna",
    node={
        "_target_": "hydra_plugins.hpc.optuna_sweeper.OptunaSweeper",
        "direction": "minimize",
        "trials": 20,
        "at_once": 4,
        "seed": None,
        "params": {},
        "metric": None,
        "value": "last",
        "as_job": False,
        "job": dict.fromkeys(JOB_FIELDS),
    },
    provider="hpc",
)

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """
    Args:
        direction: minimize or maximize what the task function returns; a list where it returns several numbers.
        trials: of the study in all, those of earlier calls included.
        at_once: trials that are proposed and launched together.
        seed: of the sampler, for proposals that can be repeated.
        params: as of Hydra's basic sweeper: what to vary, by key, beside what is typed.
        metric, value, as_job, job: of ``hpc submit`` alone: the metric of a run (or several), its last or best value,
            whether a small job submits the rounds, and what that job asks for.
    """

    def __init__(
        self,
        direction: str | Sequence[str],
        trials: int,
        at_once: int,
        seed: int | None,
        params: Mapping[str, str] | None = None,
        metric: str | Sequence[str] | None = None,
        value: str = "last",
        as_job: bool = False,
        job: Mapping[str, Any] | None = None,
    ) -> None:
        self.directions: list[Any] = [direction] if isinstance(direction, str) else list(direction)
        self.trials = trials
        self.at_once = at_once
        self.seed = seed
        self.params = dict(params or {})
        self.metrics = (metric,) if isinstance(metric, str) else tuple(metric or ())
        self.value = value
        self.as_job = as_job
        self.job = tuple(f"job.{key}={spelled(each)}" for key, each in (job or {}).items() if each is not None)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher: Launcher | None = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        assert self.launcher and self.config is not None and self.hydra_context is not None, "setup comes first"
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(words)
        varied = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        if (hand_over := getattr(self.task_function, "search", None)) is not None:
            hand_over(self._space(varied, fixed))
            return None
        if self.metrics or self.as_job:
            raise HydraException("hydra.sweeper.metric and as_job are of hpc submit: here the function's result counts")
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        study = self._study(folder)
        while (begun := len(study.trials)) < self.trials:
            batch = [study.ask(varied) for _ in range(min(self.at_once, self.trials - begun))]
            combinations = [[*fixed, *(f"{key}={spelled(trial.params[key])}" for key in varied)] for trial in batch]
            for trial, done in zip(batch, self.launcher.launch(combinations, initial_job_idx=begun), strict=True):
                self._tell(study, trial, done)
        best = studies.conclude(study, folder)
        log.info("best: %s; written to %s", best, folder / studies.RESULTS)
        return best

    def _space(self, varied: Mapping[str, Any], fixed: list[str]) -> Any:
        from optuna.distributions import distribution_to_json

        return search.Space(
            varied={key: distribution_to_json(each) for key, each in varied.items()},
            fixed=fixed,
            directions=self.directions,
            trials=self.trials,
            at_once=self.at_once,
            seed=self.seed,
            metrics=self.metrics,
            value=self.value,
            as_job=self.as_job,
            job=self.job,
        )

    def _study(self, folder: Path) -> Any:
        from optuna.trial import TrialState

        study = studies.open_study(folder, self.directions, self.seed)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)  # whoever asked for it is gone
        return study

    def _tell(self, study: Any, trial: Any, done: JobReturn) -> None:
        from hydra.core.utils import JobStatus
        from optuna.trial import TrialState

        if done.status is not JobStatus.COMPLETED:
            log.warning("trial %d failed: %s", trial.number, done._return_value)
            study.tell(trial, state=TrialState.FAIL)
            return
        value = done.return_value
        values = [float(each) for each in (value if isinstance(value, list | tuple) else [value])]
        study.tell(trial, values)
        log.info("trial %d: %s gives %s", trial.number, trial.params, values)


def distribution(override: Override) -> Any:
    """What Optuna draws from for ``x=a,b``, ``range(...)``, ``interval(...)``, with tags log and int.

    Raises:
        HydraException: for anything else that Hydra can sweep over, such as glob.
    """
    from hydra.errors import HydraException
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    log_scale = "log" in getattr(value, "tags", ())
    if override.is_choice_sweep() and hasattr(value, "list"):  # a glob has none
        return CategoricalDistribution([_choice(each) for each in value.list])
    if override.is_range_sweep():
        start, stop, step = value.start or 0, value.stop, value.step
        if all(isinstance(each, int) for each in (start, stop, step)):
            last = start + (stop - 1 - start) // step * step  # the last one that the range has
            return IntDistribution(start, last, log=log_scale, step=1 if log_scale else step)
        return FloatDistribution(float(start), float(stop), step=float(step))
    if override.is_interval_sweep():
        if "int" in value.tags:
            return IntDistribution(int(value.start), int(value.end), log=log_scale)
        return FloatDistribution(float(value.start), float(value.end), log=log_scale)
    raise HydraException(
        f"{override.input_line}: allowed are choices a,b,c, range(...), interval(...) and tag(log, ...)"
    )


def _choice(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    return value.text if isinstance(value, QuotedString) else value
