"""``hpc report RUN|SWEEP``: one HTML file that opens anywhere, or plots for a paper."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import runs, sweep
from hpc.errors import Failed, Refused
from hpc.runs import Run
from hpc.sweep import Sweep

if TYPE_CHECKING:
    from monitoring.report.sweep import Member

HELP = "a run or a sweep as one HTML file that opens anywhere; or as plots for a paper"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc report", description=HELP)
    add = parser.add_argument
    add("run", nargs="?", default="last", help="a run or a sweep: id or its beginning, name, folder, or last (last)")
    add("-o", "--output", type=Path, metavar="FILE", help="an .html file (ID.html); .svg, .pdf or .png: one plot")
    add("--metric", default="loss", help="what a plot shows, and by what runs of a sweep are judged (loss)")
    add("--max", action="store_true", help="of a sweep: the largest is the best")
    add("--json", action="store_true", help="what was written, as JSON")
    args = parser.parse_args(argv)
    found = _find(args.run)
    output: Path = args.output or Path(f"{found.id}.html")
    if output.suffix not in (".html", ".svg", ".pdf", ".png"):
        raise Refused(f"-o {output}: allowed are .html, .svg, .pdf and .png. Try: -o {output.with_suffix('.html')}")
    if not output.parent.is_dir():
        raise Refused(f"-o {output}: there is no folder {output.parent}. Make it, or choose another with -o FILE")
    if output.suffix == ".html":
        text = _sweep(found, args) if isinstance(found, Sweep) else _run(found)
        write(output, text.encode("utf-8", "replace"))
    else:
        _plot(found, args)
    if args.json:
        of = "run" if isinstance(found, Run) else "sweep"
        print(json.dumps({of: found.id, "name": found.name, "file": str(output.resolve())}))
    else:
        print(output)
    return 0


def _find(text: str) -> Run | Sweep:
    try:
        return runs.find(runs.root(), text)
    except Refused as refused:
        try:
            return sweep.find(runs.root(), text)
        except Refused:
            raise refused from None


def write(path: Path, content: bytes) -> None:
    """
    Raises:
        Refused, Failed: if it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _failure(error, path) from error


def _failure(error: OSError, path: Path) -> Refused | Failed:
    """Why a file could not be written, and what to do instead."""
    if path.is_dir():
        return Refused(f"-o {path}: it is a folder. Name a file in it: -o {path / 'report.html'}")
    return Failed(f"-o {path} could not be written: {error.strerror or error}. Choose another place with -o FILE")


def _run(run: Run) -> str:
    from hpc.departed import Departed
    from hpc.queue import states
    from monitoring.report.run import report

    return report(run.folder, states([run], departed=Departed()).get(run.folder))


def _sweep(found: Sweep, args: argparse.Namespace) -> str:
    from hpc.standing import standings
    from monitoring.report.sweep import report

    members = _members(found, args.metric, [row.state for row in standings(found)])
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    return report(f"{found.name}/{found.id}", members, args.metric, largest=args.max, moment=moment)


def _members(found: Sweep, metric: str, states: Sequence[str]) -> list[Member]:
    from hpc import metrics
    from monitoring.report.sweep import Member

    runs = [found.run(number) for number in range(len(states))]
    return [
        Member(run.folder, run.id, state, found.settings(number), metrics.newest(run.folder, metric))
        for number, (run, state) in enumerate(zip(runs, states, strict=True))
    ]


def _plot(found: Run | Sweep, args: argparse.Namespace) -> None:
    from monitoring.report.figures import Missing, NoCurve, draw
    from monitoring.report.sweep import SHOWN, best, named

    if isinstance(found, Run):
        curves = [(found.id, found.folder)]
    else:
        members = _members(found, args.metric, [""] * len(found.members))  # curves are there whatever Slurm says
        curves = [(named(each), each.folder) for each in best(members, largest=args.max)[:SHOWN]]
        if len(members) > SHOWN:
            which = f"the {SHOWN} with the {'highest' if args.max else 'lowest'} {args.metric}"
            print(f"{found.id} has {len(members)} runs; drawn are {which}", file=sys.stderr)
    try:
        draw(curves, args.metric, args.output)
    except (Missing, NoCurve) as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise _failure(error, args.output) from error
