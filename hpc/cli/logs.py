"""``hpc logs RUN``: what the supervisor or one rank printed, over all attempts."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from hpc import runs
from hpc.errors import Refused
from hpc.runs import Run

HELP = "what a run's supervisor or one of its ranks printed"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc logs", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing until the run has ended")
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank; the supervisor's log if left out")
    parser.add_argument("--attempt", type=int, metavar="K", help="of this attempt only (with --rank)")
    parser.add_argument("-n", type=int, default=None, metavar="N", help="the last N lines only")
    parser.add_argument("--json", action="store_true", help='one {"file", "line"} a line')
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    _check(run, args.rank, args.attempt)
    show = _printer(args.json)
    positions: dict[Path, int] = {}
    first = True
    while True:
        from hpc.waiting import outcome

        ended = outcome(run) is not None  # looked at before the files, so that no last line is missed
        for file in files(run, args.rank, args.attempt):
            _print_new(file, positions, show, args.n if first else None)
        first = False
        if not args.follow or ended:
            return 0
        time.sleep(0.3)


def files(run: Run, rank: int | None, attempt: int | None) -> list[Path]:
    """The log files that are meant, oldest attempt first."""
    if rank is None:
        return [run.log] if run.log.exists() else []
    numbers = sorted(int(p.name) for p in run.attempts.glob("*") if p.name.isdigit())
    chosen = [n for n in numbers if attempt is None or n == attempt]
    found = [run.attempts / str(n) / f"rank-{rank}.log" for n in chosen]
    return [file for file in found if file.exists()]


def _check(run: Run, rank: int | None, attempt: int | None) -> None:
    if rank is None:
        return
    from hpc.request import resolve

    size = resolve(run.config()).world_size
    if not 0 <= rank < size:
        raise Refused(f"--rank {rank}: run {run.id} has ranks 0 to {size - 1}")
    if attempt is not None and not (run.attempts / str(attempt)).exists():
        known = sorted(int(p.name) for p in run.attempts.glob("*") if p.name.isdigit())
        raise Refused(f"--attempt {attempt}: run {run.id} has attempts {', '.join(map(str, known)) or 'none yet'}")


def _print_new(file: Path, positions: dict[Path, int], show, last: int | None) -> None:
    with file.open("rb") as handle:
        handle.seek(positions.get(file, 0))
        data = handle.read()
    whole = data.rfind(b"\n") + 1
    positions[file] = positions.get(file, 0) + whole
    lines = data[:whole].decode("utf-8", "replace").splitlines()
    for line in lines if last is None else lines[-last:] if last else []:
        show(file, line)
    sys.stdout.flush()


def _printer(as_json: bool):
    from monitoring.text import clean

    if as_json:
        return lambda file, line: print(json.dumps({"file": f"{file.parent.name}/{file.name}", "line": line}))
    return lambda file, line: print(clean(line))
