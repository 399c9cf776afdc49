"""``hpc report RUN|SWEEP``: one HTML file that opens anywhere, or plots for a paper."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from hpc import runs, sweep
from hpc.errors import Refused
from hpc.runs import Run, disk_failure
from hpc.sweep import Sweep

HELP = "a run or a sweep as one HTML file that opens anywhere; or as plots for a paper"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc report", description=HELP)
    add = parser.add_argument
    add("run", nargs="?", default="last", help="a run or a sweep: id or its beginning, name, folder, or last (last)")
    add("-o", "--output", type=Path, metavar="FILE", help="an .html file (ID.html); .svg, .pdf or .png: one plot")
    add("--metric", default="loss", help="what a plot shows, and by what runs of a sweep are judged (loss)")
    add("--max", action="store_true", help="of a sweep: the largest is the best")
    args = parser.parse_args(argv)
    found = _find(args.run)
    output: Path = args.output or Path(f"{found.id}.html")
    if output.suffix not in (".html", ".svg", ".pdf", ".png"):
        raise Refused(f"-o {output}: allowed are .html, .svg, .pdf and .png. Try: -o {output.with_suffix('.html')}")
    if output.suffix == ".html":
        text = _sweep(found, args) if isinstance(found, Sweep) else _run(found)
        write(output, text.encode("utf-8", "replace"))
    else:
        _plot(found, args.metric, output)
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
        Failed: if it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_failure(error, f"write {path}") from error


def _run(run: Run) -> str:
    from hpc.departed import Departed
    from hpc.queue import states
    from monitoring.report.run import report

    return report(run.folder, states([run], departed=Departed()).get(run.folder))


def _sweep(found: Sweep, args: argparse.Namespace) -> str:
    from hpc import metrics
    from hpc.standing import standings
    from monitoring.report.sweep import Member, report

    members = [
        Member(
            Path(row.folder),
            row.run,
            row.state,
            found.settings(row.number),
            metrics.newest(Path(row.folder), args.metric),
        )
        for row in standings(found)
    ]
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    return report(f"{found.name}/{found.id}", members, args.metric, largest=args.max, moment=moment)


def _plot(found: Run | Sweep, metric: str, output: Path) -> None:
    from monitoring.report.figures import Missing, NoCurve, draw

    members = [found] if isinstance(found, Run) else [found.run(number) for number in range(len(found.members))]
    try:
        draw([(run.id, run.folder) for run in members], metric, output)
    except (Missing, NoCurve) as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise disk_failure(error, f"write {output}") from error
