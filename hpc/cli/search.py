"""What ``hpc submit`` and ``hpc sweep`` do with a sweep whose values Optuna proposes."""

from __future__ import annotations

import argparse

from hpc import rounds, search, study
from hpc.cli.sweep import teller
from hpc.combinations import spelled
from hpc.errors import Refused
from hpc.sweep import Sweep


def go_on(found: Sweep, *, quiet: bool, wait: bool, again: tuple[str, ...] = ()) -> int:
    """Run the rounds of a search to their end, here or in a job of their own.

    Args:
        wait: also for that job.
        again: further states of trials whose runs are submitted again.
    """
    say = teller(found, quiet=quiet)
    if search.Space.of(found).as_job:
        if again:
            rounds.Loop(found, say).take_up((*rounds.LOST, *again))
        run = rounds.start_job(found)
        say(f"its rounds are submitted by run {run.name}/{run.id}, job {run.job_id}")
        from hpc.waiting import wait as wait_for

        return wait_for(run, quiet=quiet) if wait else 0
    try:
        how = rounds.Loop(found, say).main((*rounds.LOST, *again))
    except KeyboardInterrupt:
        say(
            f"the trials that run go on. To go on with the search: hpc sweep resume {found.id}; to end it: "
            f"hpc sweep cancel {found.id}"
        )
        return 130
    say(f"{how}; {_best(found)}")
    return 0 if how == "finished" and study.best(found.folder) else 1


def _best(found: Sweep) -> str:
    names, best = search.Space.of(found).metrics, study.best(found.folder)
    if not best:
        return "no trial has a result yet"
    lines = []
    for each in best:
        values = ", ".join(f"{name}={value:.6g}" for name, value in zip(names, each["values"], strict=True))
        changes = " ".join(f"{key}={spelled(value)}" for key, value in each["params"].items())
        lines.append(f"best is trial {each['trial']}: {changes}: {values}")
    return "; ".join(lines)


def status(found: Sweep) -> None:
    """Print what is best so far, and who submits the rounds."""
    wanted = search.Space.of(found).trials
    who = rounds.runner(found)
    print(f"  a search of {wanted} trials; {_best(found)}")
    if who:
        print(f"  its rounds are submitted by {who}")
    elif not found.cancelled and len(found.members) < wanted:
        print(f"  nobody submits its next round. To go on: hpc sweep resume {found.id}")


def as_searched(found: Sweep, args: argparse.Namespace) -> None:
    """A search is by what it searched for, unless something else is asked."""
    space = search.Space.of(found)
    if args.metric is None or args.metric in space.metrics:
        args.metric = args.metric or space.metrics[0]
        args.max = args.max or space.directions[space.metrics.index(args.metric)] == "maximize"
        args.best = args.best or space.value == "best"


def again(found: Sweep, args: argparse.Namespace) -> int:
    """``hpc sweep resume`` of a search: take it up, to as many trials as are wanted now."""
    rounds.refuse_running(found)
    if args.trials is not None:
        if args.trials < len(found.members):
            raise Refused(f"--trials {args.trials}: there are {len(found.members)} already")
        found = found.write(search={**(found.search or {}), "trials": args.trials})
    found.cancel_file.unlink(missing_ok=True)
    return go_on(found, quiet=args.json, wait=args.wait, again=("cancelled", "failed"))
