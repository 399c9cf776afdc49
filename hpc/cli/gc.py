"""``hpc gc``: remove checkpoints by policy, and what processes that died left behind."""

from __future__ import annotations

import argparse
import json

from hpc import garbage, runs
from hpc.cli.ask import amount, confirmed, interactive
from hpc.errors import Refused
from hpc.garbage import Piece, Policy
from hpc.listing import ENDED, read
from hpc.runs import Run

HELP = "remove old checkpoints of finished runs, and what interrupted processes left behind"
EPILOG = "Shows what would go, and asks. The newest complete checkpoint of a run always stays."


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc gc", description=HELP, epilog=EPILOG)
    add = parser.add_argument
    add("run", nargs="*", help="of these runs only: id or its beginning, name, or folder; of all if left out")
    add("--keep-latest", type=_positive, default=1, metavar="N", help="the newest N checkpoints of a run stay (1)")
    add("--keep-every", type=runs.count, metavar="STEPS", help="multiples of it stay; 0: none (as the run itself says)")
    add("--older-than", type=runs.duration, metavar="AGE", help="of runs that ended so long ago: 12h, 30d, 8w")
    add("--all", action="store_true", help="also of runs that failed, were cancelled or whose job is gone")
    add("--yes", action="store_true", help="remove without being asked")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    root = runs.root()
    named = [runs.find(root, text) for text in args.run]
    found = _ended(named or list(runs.every(root)), every=args.all, older=args.older_than or 0.0)
    for run in named:
        if run not in found:
            raise Refused(_why_not(run))
    before = {run: run.state() for run in found}
    policy, wanted = Policy(args.keep_latest, args.keep_every), garbage.wanted(root)
    pieces = {run: garbage.of_run(run, policy, wanted) for run in found}
    beside = [] if named else garbage.beside(root)
    whole = [*(piece for each in pieces.values() for piece in each), *beside]
    go = bool(whole) and (args.yes or (not args.json and _agreed(whole)))
    if go:
        for run, each in pieces.items():
            if not garbage.changed_since(run, before[run]):  # else somebody goes on with it
                _remove(each)
        _remove(beside)
    _tell(whole, removed=go, as_json=args.json)
    return 0


def _ended(found: list[Run], *, every: bool, older: float) -> list[Run]:
    states = (*ENDED, "gone") if every else ("finished",)
    rows = read(found)
    return [
        run
        for run, row in zip(found, rows, strict=True)
        if row.state in states and (not older or garbage.idle(run) > older)
    ]


def _why_not(run: Run) -> str:
    (row,) = read([run])
    if row.state in (*ENDED, "gone"):
        return f"{row.name}/{row.id} is {row.state}: --all takes such runs too, and --older-than may leave it out"
    return f"{row.name}/{row.id} has not ended: it is {row.state}, and its own trainer keeps house there"


def _remove(pieces: list[Piece]) -> None:
    for piece in pieces:
        garbage.remove(piece.path)


def _agreed(pieces: list[Piece]) -> bool:
    for piece in pieces:
        name = piece.path.name
        print(f"{piece.run}  {name}  {amount(piece.bytes)}  {piece.why}")
    return interactive() and confirmed(f"Remove {_many(pieces)}, {amount(garbage.total(pieces))}, for good?")


def _tell(pieces: list[Piece], *, removed: bool, as_json: bool) -> None:
    if as_json:
        listed = [{"run": p.run, "path": str(p.path), "bytes": p.bytes, "why": p.why} for p in pieces]
        print(json.dumps({"removed": removed, "bytes": garbage.total(pieces), "pieces": listed}))
    elif not pieces:
        print("nothing to remove")
    elif removed:
        print(f"removed {_many(pieces)}, {amount(garbage.total(pieces))}")
    else:
        print(f"{_many(pieces)}, {amount(garbage.total(pieces))}. Nothing was removed; to remove them, add: --yes")


def _many(pieces: list[Piece]) -> str:
    return f"{len(pieces)} folders and files" if len(pieces) != 1 else "1 folder or file"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
