"""``hpc runs``: all runs, filtered; tags and notes on them."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from fnmatch import fnmatchcase

from hpc import notes, runs
from hpc.errors import Refused
from hpc.listing import Row, read
from hpc.runs import Run
from monitoring.text import printable

HELP = "list runs by state, name, tag, cluster or age; tag them, write notes on them"
WHICH = "id or its beginning, name, folder, or last"
# What `hpc status` shows: a run's own word, or Slurm's while it is in Slurm's hands.
STATES = (
    *("queued", "pending", "configuring", "running", "completing", "suspended", "requeued", "gone"),
    *("finished", "failed", "cancelled", "unknown"),
)
EPILOG = """verbs:
  hpc runs tag RUN TAG... [--remove TAG...]   such as: hpc runs tag last good --remove unsure
  hpc runs note RUN TEXT                      replaces the note; an empty text removes it
"""


def main(argv: list[str]) -> int:
    verbs = {"tag": _tag, "note": _note}
    if argv and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    return _list(argv)


def _list(argv: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="hpc runs", description=HELP, epilog=EPILOG, formatter_class=raw)
    add = parser.add_argument
    add("--state", type=_words, metavar="S,...", help="as `hpc status` shows it, such as failed,running")
    add("--name", metavar="NAME", help="of this name; * and ? stand for any text and any character")
    add("--tag", type=_words, action="extend", default=[], metavar="T,...", help="with all of these tags")
    add("--cluster", metavar="C", help="submitted to this cluster")
    add("--since", type=runs.duration, metavar="AGE", help="submitted at most so long ago: 90m, 12h, 2d, 3w")
    add("-n", type=runs.count, default=None, metavar="N", help="the newest N of them")
    add("--json", action="store_true", help="a JSON list")
    args = parser.parse_args(argv)
    for state in args.state or ():
        if state not in STATES:
            raise Refused(f"--state {state}: there is no such state. Allowed: {', '.join(STATES)}")
    rows = select(args)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    elif rows:
        from hpc.cli.status import table

        table(rows)
    else:
        print(f"no such run under {runs.root().resolve()}")
    return 0


def select(args: argparse.Namespace) -> list[Row]:
    """The rows of the runs that are meant, newest first."""
    found = [run for run in runs.every(runs.root()) if _meant(run, args)]
    if args.state is None:  # what a run's state is takes a look at more of its files, and at Slurm
        return read(found[: args.n])
    return [row for row in read(found) if row.state in args.state][: args.n]


def _meant(run: Run, args: argparse.Namespace) -> bool:
    return (
        (args.name is None or fnmatchcase(run.name, args.name))
        and (args.since is None or runs.submitted(run) >= time.time() - args.since)
        and (args.cluster is None or run.cluster == args.cluster)
        and (not args.tag or set(args.tag) <= set(notes.read(run).tags))
    )


def _tag(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc runs tag", description="add tags to a run, or remove them")
    parser.add_argument("run", help=WHICH)
    parser.add_argument("tags", nargs="*", metavar="TAG", help="letters, digits, dot, dash and underscore")
    parser.add_argument("--remove", nargs="+", default=[], metavar="TAG")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    if not args.tags and not args.remove:
        return _tell(run, notes.read(run), args.json)
    return _tell(run, notes.tag(run, args.tags, args.remove), args.json)


def _note(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc runs note", description="write a note on a run")
    parser.add_argument("run", help=WHICH)
    parser.add_argument("text", nargs="?", help="replaces the note, and removes it if empty; shown if left out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    return _tell(run, notes.read(run) if args.text is None else notes.note(run, args.text), args.json)


def _tell(run: Run, written: notes.Notes, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"run": run.id, **asdict(written)}))
        return 0
    print(f"{run.name}/{run.id}: {printable(' '.join(written.tags)) or 'no tags'}")
    if written.note:
        print(printable(written.note))
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
