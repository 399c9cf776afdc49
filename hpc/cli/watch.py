"""``hpc watch``: runs live in the terminal; what they are at one moment in a pipe."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import runs
from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from hpc.sweep import Sweep
    from monitoring.job import JobState
    from monitoring.snapshot import Snapshot

HELP = "runs live: Slurm, steps, tokens, loss, ranks, experts, attempts, logs, findings"
ASK_SLURM_EVERY = 5.0  # seconds between two squeues, whatever the refresh of the screen


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc watch", description=HELP)
    which = "id or its beginning, name, folder, last, or a sweep's id; without one all runs, in a pipe the last"
    parser.add_argument("run", nargs="*", help=which)
    parser.add_argument("--json", action="store_true", help="one snapshot as JSON; of several a list")
    parser.add_argument("--plain", action="store_true", help="one plain snapshot, as in a pipe")
    parser.add_argument("--once", action="store_true", help="one look, on a terminal too; the same as --plain")
    parser.add_argument(
        "--exit-code", action="store_true", help="one look; status 3 if it shows a warning, 4 if something critical"
    )
    parser.add_argument("--interval", type=float, default=0.5, metavar="S", help="seconds between two looks (0.5)")
    args = parser.parse_args(argv)
    if not 0 < args.interval < math.inf:
        raise Refused(f"--interval {args.interval:g}: must be above 0, such as 0.5")
    root = runs.root()
    live = not (args.json or args.plain or args.once or args.exit_code) and _is_terminal()
    found = [_find(root, text) for text in args.run or ([] if live else ["last"])]
    if live:
        _watch(root, found, args.interval)
        return 0
    return _once(found, args)


def _find(root: Path, text: str) -> Run | Sweep:
    """The run that a person means, or the sweep."""
    from hpc import sweep

    try:
        return runs.find(root, text)
    except Refused:
        try:
            return sweep.find(root, text)
        except Refused:
            pass
        raise


def _is_terminal() -> bool:
    """Whether there is a screen to draw on, and keys to be taken from."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return False
    if not os.isatty(0):  # as in a pipe; the terminal may still be asked
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return False
    return True


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _print(text: str) -> None:
    if not _unicode():
        from monitoring.terminal.last import ascii_only

        text = ascii_only(text)
    print(text)


def _watch(root: Path, found: Sequence[Run | Sweep], interval: float) -> None:
    from hpc import watching
    from monitoring.terminal.app import Options, watch

    fleet = watching.some(found) if found else watching.everything(root)
    alone = found[0].folder if len(found) == 1 and isinstance(found[0], Run) else None
    watch(fleet, alone, Options(interval, unicode=_unicode()))


def _once(found: Sequence[Run | Sweep], args: argparse.Namespace) -> int:
    from hpc import findings
    from hpc.cli.findings import say
    from monitoring.terminal.plain import plain, to_json

    several = len(found) > 1 or not isinstance(found[0], Run)
    judged = findings.judge(_runs(found), say)
    looks = [look for _, look in judged.looks]
    if args.json:
        values = [to_json(look) for look in looks]
        print(json.dumps(values if several or not values else values[0]))
    else:
        _print("\n\n".join(map(plain, looks)))
    return judged.status(of_findings=args.exit_code)


def _runs(found: Sequence[Run | Sweep]) -> list[Run]:
    """The runs that are meant, of sweeps those that have begun."""
    members: list[Run] = []
    for each in found:
        if isinstance(each, Run):
            members.append(each)
        else:
            members += [run for n in range(len(each.members)) if (run := each.run(n)).config_file.exists()]
    return members


def until_ended(run: Run) -> int:
    """The live view of a run just submitted, until it has ended, then its summary. Returns its outcome."""
    from hpc.waiting import outcome, settle, wait
    from monitoring.terminal.plain import summary

    if _is_terminal():
        from hpc import watching
        from monitoring.terminal.app import Options, watch

        watch(watching.some([run]), run.folder, Options(until_done=True, unicode=_unicode()))  # ends with the summary
    else:
        wait(run)
        _print(summary(reader(run)()))
    code = outcome(run)
    if code is None:
        print(f"the run goes on; look again with: hpc watch {run.id}")
        return 0
    settle(run)
    return code


def reader(run: Run) -> Callable[[], Snapshot]:
    """What reads the run anew at each call: its records' new bytes, and Slurm every few seconds."""
    from hpc.departed import Departed
    from hpc.queue import states
    from monitoring.reader import Reader

    source, departed = Reader(run.folder), Departed()
    last_look = -math.inf
    jobs: Mapping[Path, JobState] = {}

    def read() -> Snapshot:
        nonlocal last_look, jobs
        now = time.monotonic()
        if now - last_look >= ASK_SLURM_EVERY:
            last_look, jobs = now, states([run], jobs, departed=departed)
        return source.read(jobs.get(run.folder))

    return read
