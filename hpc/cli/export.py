"""``hpc export RUN|SWEEP --to FORMAT -o FOLDER``: runs for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from hpc import runs
from hpc.errors import Failed, Refused
from hpc.runs import Run

HELP = "runs for TensorBoard, Weights & Biases, Prometheus, or as Parquet and CSV"
FORMATS = ("tensorboard", "wandb", "parquet", "csv", "openmetrics")
LOST = ("tensorboard", "parquet", "csv")  # have a place for what was done in vain


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc export", description=HELP, epilog="docs/exports.md says more.")
    add = parser.add_argument
    add("run", nargs="+", help="runs or a sweep: ids or their beginnings, names, folders, or last")
    add("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made where it is not there")
    add("--follow", action="store_true", help="go on with what is new until the runs have ended, over all requeues")
    add("--lost", action="store_true", help="steps that were done again, too, each attempt's by itself")
    add("--json", action="store_true", help="one line a run when it is exported")
    args = parser.parse_args(argv)
    _check(args)
    from hpc import exporting

    found = exporting.find(runs.root(), args.run)
    chosen = lambda: exporting.members(found)  # noqa: E731 - a sweep's runs begin one after the other
    if not chosen() and not args.follow:
        raise Refused("no run of it has begun yet. Type --follow to wait for them")
    try:
        return _metrics(args, chosen) if args.to == "openmetrics" else _curves(args, chosen)
    except OSError as error:
        raise runs.disk_failure(error, "write the export") from error


def _check(args: argparse.Namespace) -> None:
    if args.to not in FORMATS:
        import difflib

        near = difflib.get_close_matches(args.to, FORMATS, 1, 0.4)
        hint = f" Nearest: {near[0]}" if near else ""
        raise Refused(f"--to {args.to}: there is no such format. Allowed: {', '.join(FORMATS)}.{hint}")
    if args.lost and args.to not in LOST:
        raise Refused(f"--lost: {args.to} has no place for lost steps. They go to {', '.join(LOST)}")
    if args.output.exists() and not args.output.is_dir():
        raise Refused(f"-o {args.output}: a file of that name is there. Give a folder, such as -o {args.output}.d")


def _curves(args: argparse.Namespace, chosen: Callable[[], list[Run]]) -> int:
    from hpc.exporting import Curves
    from monitoring.export import Missing

    def say(run: str, steps: int) -> None:
        where = {"run": run, "steps": steps, "to": args.to, "folder": str(args.output)}
        print(json.dumps(where) if args.json else f"{run}: {steps} steps", flush=True)

    curves = Curves(chosen, args.to, args.output, lost=args.lost, say=say)
    try:
        curves.follow() if args.follow else curves.once()
    except Missing as error:
        raise Failed(str(error)) from error
    if not args.json:
        print(_next(args.to, args.output), file=sys.stderr)
    return 0


def _metrics(args: argparse.Namespace, chosen: Callable[[], list[Run]]) -> int:
    from hpc.exporting import METRICS_FILE, Metrics

    metrics = Metrics(chosen, args.output / METRICS_FILE)
    metrics.follow() if args.follow else metrics.once()
    print(json.dumps({"file": str(metrics.file)}) if args.json else metrics.file)
    return 0


def _next(to: str, folder: Path) -> str:
    """What a person types next."""
    import shlex

    where = shlex.quote(str(folder))
    return {
        "tensorboard": f"look: tensorboard --logdir {where}",
        "wandb": f"send: wandb sync {where}/wandb/offline-run-*",
    }.get(to, f"in {folder}")
