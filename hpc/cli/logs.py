"""``hpc logs RUN``: what the supervisor or one rank printed, over all attempts."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hpc import ledger, runs
from hpc.errors import Refused
from hpc.runs import Run
from monitoring.layout import rank_log

HELP = "what a run's supervisor or one of its ranks printed"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc logs", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing until the run has ended")
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank; the supervisor's log if left out")
    parser.add_argument("--attempt", type=int, metavar="K", help="of this attempt only (with --rank)")
    parser.add_argument("-n", type=runs.count, default=None, metavar="N", help="the last N lines only")
    parser.add_argument("--json", action="store_true", help='one {"file", "line"} a line')
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    _check(run, args.rank, args.attempt)
    show = _printer(args.json)
    ended = _watcher(run) if args.follow else lambda: True
    positions: dict[Path, int] = {}
    last = args.n
    while True:
        over = ended()  # looked at before the files, so that no last line is missed
        chosen = files(run, args.rank, args.attempt)
        new = ((file, line) for file in chosen for line in _new_lines(file, positions, rest=over))
        for file, line in new if last is None else deque(new, last):
            show(file, line)
        sys.stdout.flush()
        last = None
        if over:
            break
        time.sleep(0.3)
    if not positions:
        print(f"nothing was printed yet; {run.name}/{run.id} is {run.state().get('state', 'unknown')}", file=sys.stderr)
    return 0


def _watcher(run: Run) -> Callable[[], bool]:
    """Whether the run has ended and its supervisor has had its last word, or there is none left to have it."""
    from hpc.waiting import Gone, outcome, settle

    gone = Gone(run)

    def ended() -> bool:
        if outcome(run) is not None:
            settle(run)
            return True
        if gone():
            print(f"job {run.job_id} left the queue and the run has not ended", file=sys.stderr)
            return True
        return False

    return ended


def files(run: Run, rank: int | None, attempt: int | None) -> list[Path]:
    """The log files that are meant, oldest attempt first."""
    if rank is None:
        return [run.log] if run.log.exists() else []
    chosen = [n for n in ledger.numbers(run) if attempt is None or n == attempt]
    found = [rank_log(run.attempts / str(n), rank) for n in chosen]
    return [file for file in found if file.exists()]


def _check(run: Run, rank: int | None, attempt: int | None) -> None:
    if rank is None:
        return
    from hpc.request import resolve

    size = resolve(run.config()).world_size
    if not 0 <= rank < size:
        raise Refused(f"--rank {rank}: run {run.id} has ranks 0 to {size - 1}")
    if attempt is not None and not (run.attempts / str(attempt)).exists():
        known = ledger.numbers(run)
        raise Refused(f"--attempt {attempt}: run {run.id} has attempts {', '.join(map(str, known)) or 'none yet'}")


def _new_lines(file: Path, positions: dict[Path, int], *, rest: bool) -> list[str]:
    """Whole lines since the last look; with ``rest`` also one that was never ended, as of a rank that was killed."""
    with file.open("rb") as handle:
        handle.seek(positions.get(file, 0))
        data = handle.read()
    whole = len(data) if rest else data.rfind(b"\n") + 1
    positions[file] = positions.get(file, 0) + whole
    return data[:whole].decode("utf-8", "replace").splitlines()


def _printer(as_json: bool):
    from monitoring.text import clean

    if as_json:
        return lambda file, line: print(json.dumps({"file": f"{file.parent.name}/{file.name}", "line": line}))
    return lambda file, line: print(clean(line))
