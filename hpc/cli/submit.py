"""``hpc submit``: a Hydra application around ``hpc.submit``."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from hpc.errors import Refused
from hpc.runs import Run

FLAGS = ("--dry-run", "--wait", "--watch", "--json")


def main(argv: list[str]) -> int:
    """Compose, check and dispatch; Hydra's own flags (--cfg, --info, --resolve, -m ...) work as everywhere."""
    flags = {flag for flag in FLAGS if flag in argv}
    words = [word for word in argv if word not in FLAGS]
    for word in words:
        if word.startswith("--dry") or word in ("--follow", "--block"):
            raise Refused(f"unknown flag {word}. Own flags: {', '.join(FLAGS)}; Hydra's: hpc submit --hydra-help")
    started: list[Run] = []
    failures: list[BaseException] = []

    def task(config: Any) -> None:
        # Hydra prints a traceback's worth of text for an exception that passes through it.
        if failures:
            return
        try:
            _one(config, words, flags, started)
        except Exception as error:
            failures.append(error)

    _run_hydra(words, task)
    if failures:
        raise failures[0]
    if not started:
        return 0
    if "--watch" in flags:
        from hpc.cli import watch

        return watch.until_ended(started[-1])
    if "--wait" in flags:
        from hpc.waiting import wait

        return max(wait(run, quiet="--json" in flags) for run in started)
    return 0


def _run_hydra(words: list[str], task: Any) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from hpc.compose import CONF, CONFIG_NAME, refused, register

    register()
    # Hydra would print its own text and leave with status 1; errors are translated here instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed, sys.argv = sys.argv, ["hpc submit", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=CONFIG_NAME)(task)()
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise refused(error) from error
    finally:
        sys.argv = typed
        GlobalHydra.instance().clear()


def _one(config: Any, words: list[str], flags: set[str], started: list[Run]) -> None:
    from hpc import submit
    from hpc.compose import typed

    plan = submit.plan(typed(config))
    if "--dry-run" in flags:
        print(submit.render(plan), end="")
        return
    run = submit.dispatch(plan, words)
    started.append(run)
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
