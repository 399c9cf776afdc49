"""``hpc logs RUN``: what the supervisor, one rank, or all of them together printed, over all attempts."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc import ledger, runs
from hpc.errors import Refused
from hpc.logs import Line, Log, Merged
from hpc.runs import Run
from monitoring.layout import rank_log

HELP = "what a run's supervisor or its ranks printed"
WIDTH = len("supervisor")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc logs", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing until the run has ended")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="of this rank; the supervisor's log if left out")
    which.add_argument("--all", action="store_true", help="of supervisor, srun and all ranks, merged by time")
    parser.add_argument("--attempt", type=int, metavar="K", help="of this attempt only (with --rank or --all)")
    parser.add_argument("-n", type=runs.count, default=None, metavar="N", help="the last N lines only")
    parser.add_argument("--json", action="store_true", help='one {"file", "line"} a line; with --all also "time"')
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    _check(run, args)
    show = _printer(args.json, merged=args.all)
    ended = _watcher(run) if args.follow else lambda: True
    log: Merged | Several = Merged(run, args.attempt) if args.all else Several(run, args.rank, args.attempt)
    last, printed = args.n, False
    while True:
        over = ended()  # looked at before the files, so that no last line is missed
        new = log.lines(rest=over)
        for line in new if last is None else deque(new, last):
            show(line)
            printed = True
        sys.stdout.flush()
        last = None
        if over:
            break
        time.sleep(0.3)
    if not printed and args.n != 0:
        print(f"nothing was printed yet; {run.name}/{run.id} is {run.state().get('state', 'unknown')}", file=sys.stderr)
    return 0


class Several:
    """The logs of the supervisor, or of one rank in each attempt, one behind the other."""

    def __init__(self, run: Run, rank: int | None, attempt: int | None) -> None:
        self.files = lambda: files(run, rank, attempt)
        self._logs: dict[Path, Log] = {}

    def lines(self, *, rest: bool) -> Iterator[Line]:
        """New lines since the last look, as ``Log.lines``."""
        for file in self.files():
            yield from self._logs.setdefault(file, Log(file)).lines(rest=rest)


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


def _check(run: Run, args: argparse.Namespace) -> None:
    if args.attempt is not None and not (run.attempts / str(args.attempt)).exists():
        known = ", ".join(map(str, ledger.numbers(run)))
        raise Refused(f"--attempt {args.attempt}: run {run.id} has attempts {known or 'none yet'}")
    if args.rank is None:
        return
    from hpc.request import resolve

    size = resolve(run.config()).world_size
    if not 0 <= args.rank < size:
        raise Refused(f"--rank {args.rank}: run {run.id} has ranks 0 to {size - 1}")


def _printer(as_json: bool, *, merged: bool) -> Callable[[Line], None]:
    from monitoring.text import clean

    def show(line: Line) -> None:
        if as_json:
            place = {"file": f"{line.file.parent.name}/{line.file.name}", "line": line.text}
            print(json.dumps({**place, "time": line.time} if merged else place))
        elif merged:
            print(f"{line.source:>{WIDTH}} | {clean(line.text)}")
        else:
            print(clean(line.text))

    return show
