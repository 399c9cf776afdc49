"""``hpc cancel RUN``: end a run so that no attempt follows."""

from __future__ import annotations

import argparse
import json

from hpc import following, runs
from hpc.cancel import cancel

HELP = "save and end a run, so that no attempt follows"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc cancel", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("--now", action="store_true", help="without saving what was computed since the last checkpoint")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    said = cancel(run, now=args.now)
    following.give_up(run)
    print(json.dumps({"run": run.id, "result": said}) if args.json else f"{run.name}/{run.id}: {said}")
    return 0
