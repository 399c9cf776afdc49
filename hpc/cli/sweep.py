"""``hpc sweep``: the runs of a sweep together."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import runs, sweep
from hpc.errors import Refused
from hpc.sweep import Sweep

if TYPE_CHECKING:
    from hpc.standing import Standing

HELP = "the runs of a sweep: where they stand, which is best, which are to be tried again"
WHICH = "id or its beginning, name, folder, or last"
FAILED_SHOWN = 20
DEFAULTS = ("validation_loss", "loss")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc sweep", description=HELP)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="status|table|resume|cancel")
    add = _adder(verbs)
    status = add("status", _status, "how many runs wait, run, have finished; what failed and why")
    status.add_argument("--wait", action="store_true", help="until no run goes on; exit status 0 if all finished")
    table = add("table", _table, "one line a run, the best by a metric first")
    table.add_argument("--metric", metavar="NAME", help="its newest value (validation_loss, or loss where none has it)")
    table.add_argument("--best", action="store_true", help="not the newest value of each run but its best")
    table.add_argument("--max", action="store_true", help="the largest is the best")
    resume = add("resume", _resume, "submit what is missing, failed or was cancelled, and nothing else")
    resume.add_argument("--trials", type=runs.count, metavar="N", help="of a search: go on until there are N")
    resume.add_argument("--wait", action="store_true", help="of a search whose rounds are a job's: until it has ended")
    cancel = add("cancel", _cancel, "end all runs, and let none begin")
    cancel.add_argument("--now", action="store_true", help="without saving what was computed since the last checkpoint")
    args = parser.parse_args(argv)
    return args.call(sweep.find(runs.root(), args.sweep), args)


def _adder(verbs: Any) -> Callable[[str, Callable[..., int], str], argparse.ArgumentParser]:
    def add(name: str, call: Callable[..., int], text: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(name, help=text, description=text)
        parser.add_argument("sweep", nargs="?", default="last", help=f"{WHICH} (last)")
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(call=call)
        return parser

    return add


def tell(found: Sweep, *, as_json: bool) -> None:
    """Say what was dispatched."""
    jobs = [str(array.job_id) for array in found.arrays]
    if as_json:
        fields = {"cluster": found.cluster, "emulated": found.emulated, "runs": len(found.members), "job_ids": jobs}
        print(json.dumps({"sweep": found.id, "name": found.name, "folder": str(found.folder), **fields}), flush=True)
        return
    where = found.cluster + (" (EMULATED)" if found.emulated else "")
    many = f"{len(jobs)} arrays {', '.join(jobs)}" if len(jobs) > 1 else f"job {jobs[0]}"
    print(
        f"{found.name}/{found.id} is {many} on {where}: {len(found.members)} runs\n"
        f"  folder  {found.folder}\n"
        f"  look    hpc sweep status {found.id}\n"
        f"  best    hpc sweep table {found.id}",
        flush=True,
    )


def wait(found: Sweep, *, quiet: bool) -> int:
    """Block until no run of the sweep goes on. Returns 0 if all finished."""
    from hpc.standing import wait

    return 0 if all(each.state == "finished" for each in wait(found, teller(found, quiet=quiet))) else 1


def teller(found: Sweep, *, quiet: bool) -> Callable[[str], None]:
    """Says what happens to a sweep while somebody waits, or nothing."""

    def say(text: str) -> None:
        if not quiet:
            print(f"{found.name}/{found.id}: {text}", file=sys.stderr, flush=True)

    return say


def _status(found: Sweep, args: argparse.Namespace) -> int:
    from hpc.standing import interrupted, standings, tally

    code = wait(found, quiet=args.json) if args.wait else 0
    rows = standings(found)
    if args.json:
        fields = {"sweep": found.id, "name": found.name, "interrupted": interrupted(found)}
        print(json.dumps({**fields, "runs": [asdict(row) for row in rows]}))
        return code
    print(f"{found.name}/{found.id}, {len(rows)} runs: {tally(rows)}")
    if why := interrupted(found):
        print(f"  {why}")
    if found.search:
        from hpc.cli import search

        search.status(found)
    troubled = [row for row in rows if row.state in ("failed", "gone", "never began")]
    for row in troubled[:FAILED_SHOWN]:
        print(f"  {row.run} {row.state}: {row.reason}\n    {_changed(row.changes)}")
    if len(troubled) > FAILED_SHOWN:
        print(f"  and {len(troubled) - FAILED_SHOWN} more; all: hpc sweep status {found.id} --json")
    if troubled and not interrupted(found):
        print(f"To try these again: hpc sweep resume {found.id}")
    return code


def _changed(changes: dict[str, Any]) -> str:
    return " ".join(f"{path}={value}" for path, value in changes.items()) or "as the base"


def _table(found: Sweep, args: argparse.Namespace) -> int:
    from hpc.standing import standings

    rows = standings(found)
    if found.search:
        from hpc.cli import search

        search.as_searched(found, args)
    metric, values = _values(rows, args.metric, best=args.best, largest=args.max)

    def place(row: Standing) -> tuple[bool, float]:
        value = values[row.number]
        known = value is not None and not math.isnan(value)
        return not known, 0.0 if value is None or not known else -value if args.max else value

    rows.sort(key=place)
    if args.json:
        told = [{**asdict(row), "settings": found.settings(row.number), metric: values[row.number]} for row in rows]
        print(json.dumps(told))
        return 0
    _print_table(found, rows, metric, values)
    return 0


def _values(
    rows: list[Standing], metric: str | None, *, best: bool, largest: bool
) -> tuple[str, dict[int, float | None]]:
    """The value of each run of the metric, or of the first usual one that any of them has recorded."""
    from hpc import metrics

    def value(row: Standing, name: str) -> float | None:
        folder = Path(row.folder)
        return metrics.best(folder, name, largest=largest) if best else metrics.newest(folder, name)

    values: dict[int, float | None] = {}
    for name in [metric] if metric else DEFAULTS:
        values = {row.number: value(row, name) for row in rows}
        if any(value is not None for value in values.values()):
            return name, values
    if metric and (known := _recorded(rows)):
        near = difflib.get_close_matches(metric, known, 1, 0.5)
        hint = f" Nearest: --metric {near[0]}" if near else ""
        raise Refused(f"--metric {metric}: no run has recorded it. Recorded are: {', '.join(known)}.{hint}")
    return metric or DEFAULTS[-1], values


def _recorded(rows: list[Standing]) -> list[str]:
    """Names of what the first run with any record recorded with its newest step."""
    from monitoring import layout
    from monitoring.recorder import metric
    from monitoring.tail import last_record

    for row in rows:
        for number in reversed(layout.attempt_numbers(Path(row.folder))):
            if record := last_record(layout.attempt_folder(Path(row.folder), number)):
                return sorted(
                    key for key, value in record.items() if key not in ("seq", "t") and metric(value) is not None
                )
    return []


def _print_table(found: Sweep, rows: list[Standing], metric: str, values: dict[int, float | None]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    settings = {row.number: found.settings(row.number) for row in rows}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", *settings[rows[0].number], metric, "step", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        value = values[row.number]
        cells = [str(each) for each in settings[row.number].values()]
        number = "" if value is None else f"{value:.6g}"
        step = "" if row.step is None else str(row.step)
        table.add_row(*map(Text, (row.run, *cells, number, step, row.state)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _resume(found: Sweep, args: argparse.Namespace) -> int:
    from hpc import arrays

    if found.search:
        from hpc.cli import search

        return search.again(found, args)
    if args.trials is not None:
        raise Refused(f"--trials {args.trials}: {found.id} is no search; it has {len(found.members)} runs")
    numbers = arrays.resume(found)
    if args.json:
        print(json.dumps({"sweep": found.id, "runs": numbers}))
    elif numbers:
        print(f"{found.name}/{found.id}: {len(numbers)} runs were submitted again. Look: hpc sweep status {found.id}")
    else:
        print(f"{found.name}/{found.id}: nothing to submit: every run has finished or is under way")
    return 0


def _cancel(found: Sweep, args: argparse.Namespace) -> int:
    from hpc.cancel import cancel_sweep

    told = cancel_sweep(found, now=args.now)
    if args.json:
        print(json.dumps({"sweep": found.id, "runs": told}))
    else:
        print(f"{found.name}/{found.id}: {len(told)} runs that had begun were told to end, and none begins any more")
    return 0
