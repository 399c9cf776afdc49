"""``hpc submit``: a Hydra application around ``hpc.submit``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from hpc.config import Config
    from hpc.submit import Plan

FLAGS = ("--dry-run", "--wait", "--watch", "--json")


def main(argv: list[str]) -> int:
    """Compose, check and dispatch; Hydra's own flags (--cfg, --info, --resolve, -m ...) work as everywhere."""
    flags = {flag for flag in FLAGS if flag in argv}
    words = [word for word in argv if word not in FLAGS]
    for word in words:
        if word.startswith("--dry") or word in ("--follow", "--block"):
            raise Refused(f"unknown flag {word}. Own flags: {', '.join(FLAGS)}; Hydra's: hpc submit --hydra-help")
    found = plans(words, dry_run="--dry-run" in flags)
    from hpc import submit

    if "--dry-run" in flags:
        for plan in found:
            for problem in plan.missing:
                print(f"hpc submit: before this can run: {problem}", file=sys.stderr)
            print(submit.render(plan), end="")
        return 0
    started = []
    for plan in found:
        started.append(submit.dispatch(plan, words))
        tell(plan, started[-1], flags)
    return follow(started, flags) if started else 0


def follow(started: list[Run], flags: set[str]) -> int:
    """Watch or wait as the flags say. Returns the exit status."""
    if "--watch" in flags:
        from hpc.cli import watch

        return watch.until_ended(started[-1])
    if "--wait" in flags:
        from hpc.waiting import wait

        return max(wait(run, quiet="--json" in flags) for run in started)
    return 0


def plans(
    words: list[str],
    *,
    dry_run: bool,
    begun: bool = False,
    change: Callable[[Config], None] = lambda config: None,
) -> list[Plan]:
    """Every request that was typed, composed and checked: of a multirun all of them, before any is dispatched.

    Args:
        begun: as ``hpc.submit.plan`` has it.
        change: what is done to each composed configuration before it is checked.
    """
    from hpc import submit
    from hpc.compose import refused, typed

    found: list[Plan] = []
    failures: list[Exception] = []

    def one(config: Config) -> None:
        change(config)
        found.append(submit.plan(config, dry_run=dry_run, begun=begun))

    def task(config: Any) -> None:
        # Hydra prints a traceback's worth of text for an exception that passes through it.
        try:
            one(typed(config))
        except Exception as error:
            failures.append(error)

    def many(combinations: list[list[str]], configs: Iterator[Config]) -> None:
        try:
            for config in configs:
                one(config)
        except Exception as error:
            failures.append(error)

    task.many = many  # what a multirun is handed to: hydra_plugins.hpc.sweeper

    # A multirun of Hydra's notes its overrides in a folder; a run's own folder says more.
    with tempfile.TemporaryDirectory(prefix="hpc-multirun-") as scratch:
        sweep = [f"hydra.sweep.dir={scratch}"] if {"-m", "--multirun"} & set(words) else []
        _run_hydra(_side_by_side([*words, *sweep]), task)
    if failures:
        raise refused(failures[0]) from failures[0]
    return found


def _side_by_side(words: list[str]) -> list[str]:
    """Hydra's parser refuses overrides with a flag between them, and ours may stand anywhere."""
    takes_value = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"}
    pairs = list(zip(["", *words], words, strict=False))
    overrides = [
        word
        for before, word in pairs
        if before not in takes_value and (word.startswith("~") or ("=" in word and not word.startswith("-")))
    ]
    return overrides + [word for word in words if word not in overrides]


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


def tell(plan: Plan, run: Run, flags: set[str]) -> None:
    """Say what was dispatched where."""
    where = plan.config.cluster.name + (" (EMULATED)" if plan.emulated else "")
    if "--json" in flags:
        print(
            json.dumps(
                {
                    "run": run.id,
                    "name": run.name,
                    "folder": str(run.folder),
                    "job_id": run.job_id,
                    "cluster": plan.config.cluster.name,
                    "emulated": plan.emulated,
                    "submitted": time.time(),
                }
            ),
            flush=True,
        )
        return
    request = plan.request
    print(
        f"{run.name}/{run.id} is job {run.job_id} on {where}: {request.nodes} x {request.ranks_per_node} ranks\n"
        f"  folder  {run.folder}\n"
        f"  watch   hpc watch {run.id}",
        flush=True,
    )
