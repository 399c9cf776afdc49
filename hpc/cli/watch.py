"""``hpc watch RUN``: one run live in the terminal; one plain snapshot in a pipe."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import runs
from hpc.runs import Run

if TYPE_CHECKING:
    from monitoring.snapshot import JobState, Snapshot

HELP = "one run live: Slurm, steps, tokens, loss, log"
ASK_SLURM_EVERY = 5.0  # seconds between two squeues, whatever the refresh of the screen


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc watch", description=HELP)
    parser.add_argument("run", nargs="?", default="last", help="id or its beginning, name, folder, or last (default)")
    parser.add_argument("--json", action="store_true", help="one snapshot as JSON")
    parser.add_argument("--plain", action="store_true", help="one plain snapshot, as in a pipe")
    parser.add_argument("--interval", type=float, default=0.5, metavar="S", help="seconds between two looks (0.5)")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    read = reader(run)
    if args.json:
        from monitoring.terminal.plain import to_json

        print(json.dumps(to_json(read())))
    elif args.plain or not sys.stdout.isatty():
        from monitoring.terminal.plain import plain

        print(plain(read()))
    else:
        from monitoring.terminal.watch import watch

        watch(read, interval=args.interval, until_done=False)
    return 0


def until_ended(run: Run) -> int:
    """The live view of a run just submitted, until it has ended, then its summary. Returns its outcome."""
    from hpc.waiting import outcome, settle, wait
    from monitoring.terminal.plain import summary

    if sys.stdout.isatty():
        from monitoring.terminal.watch import watch

        watch(reader(run), interval=0.5, until_done=True)  # ends with the summary
    else:
        wait(run)
        print(summary(reader(run)()))
    code = outcome(run)
    if code is None:
        print(f"the run goes on; look again with: hpc watch {run.id}")
        return 0
    settle(run)
    return code


def reader(run: Run) -> Callable[[], Snapshot]:
    """What reads the run anew at each call: its records' new bytes, and Slurm every few seconds."""
    from hpc.queue import states
    from monitoring.reader import Reader

    source = Reader(run.folder)
    last_look = -math.inf
    jobs: Mapping[Path, JobState] = {}

    def read() -> Snapshot:
        nonlocal last_look, jobs
        now = time.monotonic()
        if now - last_look >= ASK_SLURM_EVERY:
            last_look, jobs = now, states([run], jobs)
        return source.read(jobs.get(run.folder))

    return read
