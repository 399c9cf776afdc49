"""``hpc submit``: a Hydra application around ``hpc.submit``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from hpc.config import Config
    from hpc.search import Space
    from hpc.submit import Plan

SWEEP = {"-m", "--multirun"}
FLAGS = ("--dry-run", "--wait", "--watch", "--json")


class _IsPipeline(Exception):
    """The request is for several runs that follow each other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def main(argv: list[str]) -> int:
    """Compose, check and dispatch; Hydra's own flags (--cfg, --info, --resolve, -m ...) work as everywhere."""
    flags = {flag for flag in FLAGS if flag in argv}
    words = [word for word in argv if word not in FLAGS]
    for word in words:
        if word.startswith("--dry") or word in ("--follow", "--block"):
            raise Refused(f"unknown flag {word}. Own flags: {', '.join(FLAGS)}; Hydra's: hpc submit --hydra-help")
    from hpc import asking

    asking.ahead_of(words)
    searches: list[Space] = []
    try:
        found = plans(words, dry_run="--dry-run" in flags, search=searches.append)
    except _IsPipeline as pipeline:
        from hpc.cli import pipeline as staged

        if SWEEP & set(words):
            raise Refused("a pipeline cannot be swept over. Prepare first, then: hpc submit -m ...") from None
        return staged.submit(pipeline.config, words, flags)
    if searches:
        return _search(searches[0], words, flags)
    for hint in dict.fromkeys(hint for plan in found for hint in plan.hints):
        print(f"hpc submit: {hint}", file=sys.stderr)
    from hpc import submit

    if SWEEP & set(words) and found:
        return _sweep(found, words, flags)
    for plan in found:  # one, or none where Hydra only showed something
        if "--dry-run" in flags:
            tell_missing([plan])
            print(submit.render(plan), end="")
            continue
        run = submit.dispatch(plan)
        tell(plan, run, flags)
        return follow(run, flags)
    return 0


def _sweep(found: list[Plan], words: list[str], flags: set[str]) -> int:
    from hpc import arrays
    from hpc.cli import sweep as sweeping

    if "--dry-run" in flags:
        return _show(found)
    sweep = arrays.dispatch(found, words)
    sweeping.tell(sweep, as_json="--json" in flags)
    if "--wait" in flags or "--watch" in flags:
        return sweeping.wait(sweep, quiet="--json" in flags)
    return 0


def _show(found: list[Plan]) -> int:
    from hpc import arrays

    arrays.refuse_many_clusters(found)
    arrays.refuse_too_many(found)
    tell_missing(found)
    for number, runs in enumerate(arrays.group(found)):
        plan = found[runs[0]]
        folder = Path(plan.config.cluster.runs) / plan.config.name / "SWEEP_ID"
        print(arrays.array_script(plan, folder, number, len(runs)), end="")
    return 0


def _search(space: Space, words: list[str], flags: set[str]) -> int:
    from hpc import search
    from hpc.cli import search as searching
    from hpc.cli import sweep as sweeping

    if any(word.startswith("--config") for word in words):
        raise Refused("hydra/sweeper=hpc_optuna: give the folder as hydra.searchpath=[file:///path] instead")
    # Words of Hydra's own are none of its sweepers' arguments.
    places = [word for word in _overrides(words) if word.startswith("hydra.searchpath")]
    space = dataclasses.replace(space, fixed=[*places, *space.fixed])
    if "--dry-run" in flags:
        return _show(search.scripts(space))
    sweep = search.begin(space, words)
    sweeping.tell(sweep, as_json="--json" in flags)
    return searching.go_on(sweep, quiet="--json" in flags, wait=bool({"--wait", "--watch"} & flags))


def tell_missing(found: list[Plan]) -> None:
    for problem in dict.fromkeys(str(problem) for plan in found for problem in plan.missing):
        print(f"hpc submit: before this can run: {problem}", file=sys.stderr)


def follow(run: Run, flags: set[str]) -> int:
    """Watch or wait as the flags say. Returns the exit status."""
    if "--watch" in flags:
        from hpc.cli import watch

        return watch.until_ended(run)
    if "--wait" in flags:
        from hpc.waiting import wait

        return wait(run, quiet="--json" in flags)
    return 0


def plans(
    words: list[str],
    *,
    dry_run: bool,
    begun: bool = False,
    change: Callable[[Config], None] = lambda config: None,
    search: Callable[[Space], None] | None = None,
    before: Sequence[Config] = (),
) -> list[Plan]:
    """Every request that was typed, composed and checked: of a multirun all of them, before any is dispatched.

    Args:
        begun, before: as ``hpc.submit.plan`` has them.
        change: what is done to each composed configuration before it is checked.
        search: takes what is to be searched, where hydra/sweeper=hpc_optuna is to propose the values.
    """
    from hpc import submit
    from hpc.compose import refused, typed
    from hpc.config import PipelineJob

    found: list[Plan] = []
    failures: list[Exception] = []

    def one(config: Config, alone: list[str]) -> None:
        if isinstance(config.job, PipelineJob):
            raise _IsPipeline(config)
        change(config)
        found.append(submit.plan(config, alone, dry_run=dry_run, begun=begun, before=before))

    def task(config: Any) -> None:
        # Hydra prints a traceback's worth of text for an exception that passes through it.
        try:
            one(typed(config), words)
        except Exception as error:
            failures.append(error)

    def many(combinations: list[list[str]], configs: Iterator[Config]) -> None:
        try:
            if not combinations:
                raise Refused("this sweep has no combination at all. Give at least one value to each: KEY=1,2")
            for combination, config in zip(combinations, configs, strict=True):
                one(config, [*common, *combination])
        except Exception as error:
            failures.append(error)

    # What is typed beside the overrides, such as --config-dir=DIR.
    common = [word for word in words if word not in SWEEP and word not in _overrides(words)]
    task.many = many  # what a multirun is handed to: hydra_plugins.hpc.sweeper
    if search is not None:
        task.search = search  # and hydra_plugins.hpc.optuna_sweeper

    # A multirun of Hydra's notes its overrides in a folder; a run's own folder says more.
    with tempfile.TemporaryDirectory(prefix="hpc-multirun-") as scratch:
        sweep = [f"hydra.sweep.dir={scratch}"] if SWEEP & set(words) else []
        _run_hydra(_side_by_side([*words, *sweep]), task)
    if failures:
        raise refused(failures[0]) from failures[0]
    return found


def _side_by_side(words: list[str]) -> list[str]:
    """Hydra's parser refuses overrides with a flag between them, and ours may stand anywhere."""
    overrides = _overrides(words)
    return overrides + [word for word in words if word not in overrides]


def _overrides(words: list[str]) -> list[str]:
    takes_value = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"}
    pairs = list(zip(["", *words], words, strict=False))
    return [
        word
        for before, word in pairs
        if before not in takes_value and (word.startswith("~") or ("=" in word and not word.startswith("-")))
    ]


def _run_hydra(words: list[str], task: Any) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from hpc.compose import CONF, CONFIG_NAME, opened, refused, register

    register()
    # Hydra would print its own text and leave with status 1; errors are translated here instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed, sys.argv = sys.argv, ["hpc submit", *opened(words)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(task)()
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise refused(error) from error
    finally:
        sys.argv = typed
        GlobalHydra.instance().clear()


def told(plan: Plan, run: Run) -> dict[str, Any]:
    """What ``--json`` says of a run that was dispatched."""
    return {
        "run": run.id,
        "name": run.name,
        "folder": str(run.folder),
        "job_id": run.job_id,
        "cluster": plan.config.cluster.name,
        "emulated": plan.emulated,
        "submitted": time.time(),
    }


def tell(plan: Plan, run: Run, flags: set[str], kin: Mapping[str, Any] | None = None) -> None:
    """Say what was dispatched where.

    Args:
        kin: what else programs are told: the run that this one comes from.
    """
    where = plan.config.cluster.name + (" (EMULATED)" if plan.emulated else "")
    if "--json" in flags:
        print(json.dumps({**told(plan, run), **(kin or {})}), flush=True)
        return
    for warning in plan.warnings:
        print(f"hpc submit: {warning}", file=sys.stderr)
    request = plan.request
    print(
        f"{run.name}/{run.id} is job {run.job_id} on {where}: {request.nodes} x {request.ranks_per_node} ranks\n"
        f"  folder  {run.folder}\n"
        f"  watch   hpc watch {run.id}",
        flush=True,
    )
