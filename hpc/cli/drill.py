"""``hpc drill FAULT RUN``: bring a fault into a run of one's own, and watch it survive."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from hpc import drill, runs

HELP = "bring a fault into a run of your own, and see it survive"


def main(argv: list[str]) -> int:
    faults = "\n".join(f"  {name:<13} {text}" for name, text in drill.HELP.items())
    parser = argparse.ArgumentParser(
        prog="hpc drill",
        description=HELP,
        epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fault", choices=list(drill.HELP), metavar="FAULT")
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("--rank", type=int, metavar="R", help="which rank, or the one whose node is meant; the last")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the run trains again")
    parser.add_argument("--patience", type=float, default=900.0, metavar="S", help="seconds to wait for that (900)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    where = drill.target(run, args.rank, args.fault)
    since = time.time()
    done = drill.inject(args.fault, where)
    if not args.json:
        print(f"   0.0 s  {done}", flush=True)
    if args.no_wait:
        if args.json:
            print(json.dumps({"run": run.id, "fault": args.fault, "done": done}))
        return 0
    silent = args.json
    found = drill.recovery(where, since, args.patience, lambda line: None if silent else print(line, flush=True))
    if args.json:
        print(json.dumps({"run": run.id, "fault": args.fault, "done": done, **asdict(found)}))
    else:
        print(f"{run.name}/{run.id} survived")
    return 0
