"""``hpc explain RUN``: in words why it waits or why it died, and what to type."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from hpc import explain, ledger, runs
from hpc.config import CommandJob
from hpc.departed import Departed
from hpc.explain import Explanation, Subject
from hpc.listing import read
from hpc.queue import states
from hpc.runs import Run
from hpc.waiting import ENDED

HELP = "why a run waits or died, and what to type"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc explain", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    attempts = ledger.history(run)
    told = of(run, attempts)
    if args.json:
        print(json.dumps({**asdict(told), "records": [asdict(record) for record in attempts]}))
    else:
        _print(told)
    return 0


def of(run: Run, attempts: list[ledger.Record]) -> Explanation:
    """The explanation of a run as it stands."""
    jobs = states([run], departed=Departed())
    (row,) = read([run], jobs)
    command = isinstance(run.config().job, CommandJob)
    subject = Subject(run.id, row.state, row.reason, row.state in ENDED, run.cancelled, command)
    return explain.explain(subject, attempts, jobs.get(run.folder))


def _print(told: Explanation) -> None:
    from monitoring.text import clean

    for sentence in told.sentences:
        print(clean(sentence))
    if told.attempts:
        print("\nattempts")
    for line in told.attempts:
        print(f"  {clean(line)}")
    width = max((len(command) for command, _ in told.commands), default=0)
    if told.commands:
        print("\ntype")
    for command, what in told.commands:
        print(f"  {clean(command):<{width}}   {what}")
