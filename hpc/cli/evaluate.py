"""``hpc evaluate RUN [OVERRIDES]``: perplexity of a run's checkpoints on held-out text."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import runs
from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from hpc.evaluations import Evaluation
    from hpc.sweep import Sweep

HELP = "perplexity of a run's checkpoints on held-out text, measured by jobs of their own, also while training goes on"
EPILOG = (
    "Values of the run's own configuration can be changed for it: hpc evaluate RUN job.samples=1000 job.time=1:00:00. "
    "Results are written to the run's folder: evaluations/step-N.json."
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc evaluate", description=HELP, epilog=EPILOG)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as job.samples=1000")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=runs.count, metavar="N", help="this checkpoint; the newest if left out")
    which.add_argument("--missing", action="store_true", help="all that were not measured, and that no run measures")
    which.add_argument("--table", action="store_true", help="what was measured; submit nothing")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--wait", action="store_true", help="block until all is measured, and show it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_intermixed_args(argv)
    if wrong := [word for word in args.overrides if "=" not in word]:
        raise Refused(f"{wrong[0]}: name one run, then values such as job.samples=1000")
    run = runs.find(runs.root(), args.run)
    if args.table:
        return show(run, as_json=args.json)
    from hpc import evaluate

    steps = evaluate.missing(run) if args.missing else [evaluate.chosen(run, args.step)]
    if not args.again and not args.missing:
        steps = [step for step in steps if not _known(run, step, quiet=args.json)]
    if not steps:
        if args.missing and not args.json:
            print(f"every complete checkpoint of {run.name}/{run.id} is measured, or is about to be")
        return show(run, as_json=args.json) if args.wait else _nothing(run, as_json=args.json)
    found = evaluate.dispatch(run, evaluate.plan(run, steps, args.overrides))
    _tell(run, steps, found, as_json=args.json)
    if not args.wait:
        return 0
    code = _wait(found, quiet=args.json)
    return code or (0 if args.json else show(run, as_json=False))


def _known(run: Run, step: int, *, quiet: bool) -> bool:
    """Whether a step was measured, or is about to be; says so."""
    from hpc import evaluate, evaluations

    done, by = evaluations.read(run, step), evaluate.under_way(run, step)
    if done is None and by is None:
        return False
    if not quiet:
        said = f"is measured by {by.name}/{by.id}" if by is not None else "was measured"
        print(f"step {step} of {run.name}/{run.id} {said}. All: hpc evaluate {run.id} --table; to begin anew: --again")
    return True


def _nothing(run: Run, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"of": run.id, "steps": []}))
    return 0


def _tell(run: Run, steps: list[int], found: Run | Sweep, *, as_json: bool) -> None:
    folder, job_ids = _place(found)
    if as_json:
        told = {"of": run.id, "steps": steps, "run": folder.name, "folder": str(folder), "job_ids": job_ids}
        print(json.dumps(told), flush=True)
        return
    what = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"
    verb = "hpc watch" if len(steps) == 1 else "hpc sweep status"
    print(
        f"{what} of {run.name}/{run.id}: job {', '.join(job_ids)}\n"
        f"  watch    {verb} {folder.name}\n"
        f"  results  hpc evaluate {run.id} --table",
        flush=True,
    )


def _place(found: Run | Sweep) -> tuple[Path, list[str]]:
    from hpc.sweep import Sweep

    if isinstance(found, Sweep):
        return found.folder, [str(array.job_id) for array in found.arrays]
    return found.folder, [str(found.job_id)]


def _wait(found: Run | Sweep, *, quiet: bool) -> int:
    from hpc.sweep import Sweep

    if isinstance(found, Sweep):
        from hpc.cli.sweep import wait as wait_for_all

        return wait_for_all(found, quiet=quiet)
    from hpc.waiting import wait

    return wait(found, quiet=quiet)


def show(run: Run, *, as_json: bool) -> int:
    """What was measured of a run, by step."""
    from hpc import evaluations

    found = evaluations.every(run)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    elif not found:
        print(f"nothing was measured of {run.name}/{run.id}. Try: hpc evaluate {run.id}", file=sys.stderr)
    else:
        _table(found)
    return 0


def _table(found: list[Evaluation]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sources = sorted({source for each in found for source in each.by_source})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("step", "tokens", "loss", "perplexity", *sources):
        table.add_column(column, justify="right", overflow="fold")
    for each in found:
        by_source = (each.by_source.get(source, {}).get("perplexity") for source in sources)
        cells = [str(each.step), f"{each.trained_tokens:,}", f"{each.loss:.4f}", f"{each.perplexity:.2f}"]
        table.add_row(*map(Text, [*cells, *("" if value is None else f"{value:.2f}" for value in by_source)]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    if sources:
        console.print(Text("perplexity by source at the right"), style="dim")
