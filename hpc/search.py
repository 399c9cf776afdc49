"""A sweep whose values Optuna proposes: rounds of trials, each an array, until there are as many as were asked for.

Beside a sweep's own files its folder has ``study.journal`` and ``optimization_results.yaml`` (``hpc.study``), and
``loop.json``, who submits the rounds (``hpc.rounds``). In its sweep.json ``search`` is what was asked for, and
``trials`` the trial of each run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc import arrays, submit
from hpc.combinations import spelled
from hpc.config import Config, Launcher, TrainJob
from hpc.errors import Refused
from hpc.resume import keep_data
from hpc.study import STUDY, open_study
from hpc.submit import Plan
from hpc.sweep import Sweep
from trainer.problems import Problem


@dataclass(frozen=True)
class Space:
    """What is searched, for what, and how long."""

    varied: dict[str, str]  # Optuna's distribution of each key, as its JSON
    fixed: list[str]  # the other overrides
    directions: list[str]  # minimize or maximize, one for each metric
    trials: int
    at_once: int
    seed: int | None = None
    metrics: tuple[str, ...] = ()
    value: str = "last"  # or best: of a metric that is recorded again and again
    as_job: bool = False
    job: tuple[str, ...] = ()  # overrides of the job that runs the rounds

    @classmethod
    def of(cls, sweep: Sweep) -> Space:
        assert sweep.search is not None
        return cls(**sweep.search)

    def distributions(self) -> dict[str, Any]:
        from optuna.distributions import json_to_distribution

        return {key: json_to_distribution(text) for key, text in self.varied.items()}

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial."""
        return [*self.fixed, *(f"{key}={spelled(params[key])}" for key in self.varied)]


def begin(space: Space, typed: list[str]) -> Sweep:
    """Check the request, and submit the first round.

    Raises:
        Refused: if a value that may be proposed is none that a run can have.
    """
    first, space = _checked(space)
    with tempfile.TemporaryDirectory(prefix="hpc-study-") as folder:
        study = open_study(Path(folder), space.directions, space.seed)
        trials = ask(study, space)
        plans = [submit.plan(config, words) for config, words in composed(space, trials, first)]
        journal = (Path(folder) / STUDY).read_bytes()
    more = {"search": asdict(space), "trials": [each.number for each in trials], "width": len(str(space.trials - 1))}
    return arrays.dispatch(plans, typed, {STUDY: journal}, **more)


def scripts(space: Space) -> list[Plan]:
    """The runs of a first round, as ``hpc submit --dry-run`` shows them; nothing is written."""
    first, space = _checked(space, dry_run=True)
    with tempfile.TemporaryDirectory(prefix="hpc-study-") as folder:
        trials = ask(open_study(Path(folder), space.directions, space.seed), space)
        return [submit.plan(config, words, dry_run=True) for config, words in composed(space, trials, first)]


def _checked(space: Space, *, dry_run: bool = False) -> tuple[Config, Space]:
    """A first configuration and the request with its metric, after the ends of every range were tried."""
    from hpc.compose import compose_many

    for name, count, least in (("trials", space.trials, 1), ("at_once", space.at_once, 1)):
        if count < least:
            raise Refused(f"hydra.sweeper.{name}={count}: must be at least {least}. Try: hydra.sweeper.{name}=8")
    if space.value not in ("last", "best"):
        raise Refused(f"hydra.sweeper.value={space.value}: allowed are last, best. Try: hydra.sweeper.value=last")
    if "cluster" in space.varied:
        raise Refused("cluster=...: a search runs on one cluster. Try: cluster=local")
    probes = [space.words(params) for params in _probes(space.distributions())]
    configs = list(compose_many(probes))
    for config, words in zip(configs, probes, strict=True):
        submit.plan(config, words, dry_run=dry_run)
    first = configs[0]
    if space.as_job and first.cluster.launcher is Launcher.slurm and not first.cluster.slurm_from_compute:
        allowed = f"compute nodes of {first.cluster.name} may not submit (cluster.slurm_from_compute=false)"
        fix = "hydra.sweeper.as_job=false, and leave the command running"
        raise Refused(str(Problem("hydra.sweeper.as_job", "true", allowed, fix)))
    names = space.metrics or _usual(first)
    if len(names) != len(space.directions):
        text = f"{len(space.directions)} directions need as many metrics"
        raise Refused(str(Problem("hydra.sweeper.metric", str(list(names)), text, "hydra.sweeper.direction=minimize")))
    return first, Space(**{**asdict(space), "metrics": tuple(names)})


def _usual(config: Config) -> tuple[str, ...]:
    if not isinstance(config.job, TrainJob):
        text = "which number of a run is to be made small; what it records, or what stands in its FINISHED"
        raise Refused(str(Problem("hydra.sweeper.metric", "null", text, "hydra.sweeper.metric=NAME")))
    return ("validation_loss",) if config.train.evaluate.every_steps else ("loss",)


def _probes(distributions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Parameters with each end of a range and each choice once."""
    ends = {key: list(getattr(each, "choices", None) or (each.low, each.high)) for key, each in distributions.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        for value in values[1:]:
            yield {**first, key: value}


def ask(study: Any, space: Space) -> list[Any]:
    """The next trials, as Optuna proposes them."""
    distributions = space.distributions()
    count = min(space.at_once, space.trials - len(study.trials))
    return [study.ask(distributions) for _ in range(count)]


def composed(space: Space, trials: Sequence[Any], before: Config) -> list[tuple[Config, list[str]]]:
    """Of each trial its configuration, with the places of the first one, and what asks for it alone."""
    from hpc.compose import compose_many

    words = [space.words(trial.params) for trial in trials]
    configs = list(compose_many(words))
    varied = [f"{key}=" for key in space.varied]
    for config in configs:
        config.cluster.runs = before.cluster.runs
        keep_data(config, before, varied)
    return list(zip(configs, words, strict=True))
