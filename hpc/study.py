"""Optuna's study in a folder: every proposal and every result stands there before anything follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc.runs import write_text

STUDY = "study.journal"
RESULTS = "optimization_results.yaml"


def open_study(folder: Path, directions: Sequence[str], seed: int | None) -> Any:
    """The study in ``folder``, which is made if there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))),
        directions=list(directions),  # pyright: ignore[reportArgumentType] (it checks them itself)
        load_if_exists=True,
    )
    # With the same seed again, a study that is taken up would propose again what it began with.
    seed = None if seed is None else seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def conclude(study: Any, folder: Path) -> dict[str, Any] | None:
    """Write what is best so far into ``folder``. Returns the best trial, or the first of several; None without one."""
    from omegaconf import OmegaConf

    found = [{"params": each.params, "values": list(each.values), "trial": each.number} for each in _best(study)]
    several = len(study.directions) > 1
    results = {"name": "optuna", "solutions": found} if several or not found else {"name": "optuna", "best": found[0]}
    write_text(folder / RESULTS, OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(results)))))
    return found[0] if found else None


def _best(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return list(study.best_trials) if study.get_trials(states=(TrialState.COMPLETE,)) else []


def best(folder: Path) -> list[dict[str, Any]]:
    """What was best when it was last written down: parameters, values and trial."""
    from omegaconf import OmegaConf

    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(folder / RESULTS))
    except OSError:
        return []
    return found.get("solutions") or ([found["best"]] if "best" in found else [])
