"""``hpc efficiency RUN|SWEEP``: what a run used of what it was given, and what to ask for next time."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpc import runs
from hpc.efficiency import Efficiency, gb
from hpc.errors import Refused
from hpc.request import clock

if TYPE_CHECKING:
    from hpc.usage import Usage

HELP = "what a run used of what it was given, and what to ask for next time"
BAR = 20
UNKNOWN = "not known without accounting: CPU time and memory"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc efficiency", description=HELP)
    parser.add_argument("run", help="a run or a sweep: id or its beginning, name, folder, or last")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    from hpc import sweep, usage

    try:
        run = runs.find(runs.root(), args.run)
    except Refused as refused:
        try:
            found = sweep.find(runs.root(), args.run)
        except Refused:
            raise refused from None
        each, together = usage.of_sweep(found)
        title = f"{found.name}/{found.id}"
        _print_json({"sweep": found.id}, each, together) if args.json else _sweep(title, each, together)
        return 0
    one = usage.of_run(run)
    if args.json:
        print(json.dumps(_document(one)))
    else:
        _run(one)
    return 0


def _document(one: Usage) -> dict[str, Any]:
    said = asdict(one.efficiency) | {
        "time_share": one.efficiency.time_share,
        "memory_share": one.efficiency.memory_share,
    }
    fields = {"run": one.run.id, "name": one.run.name, "folder": str(one.run.folder), "emulated": one.run.emulated}
    allocations = [
        {key: None if value == math.inf else value for key, value in asdict(each).items()} for each in one.allocations
    ]
    return fields | {"source": one.source, "why": one.why, **said, "allocations": allocations}


def _print_json(head: dict[str, Any], each: list[Usage], together: Efficiency) -> None:
    print(json.dumps({**head, "together": asdict(together), "runs": [_document(one) for one in each]}))


def _run(one: Usage) -> None:
    run, said = one.run, one.efficiency
    where = run.cluster + (" EMULATED" if run.emulated else "")
    starts = f"{said.starts} start{'s' * (said.starts != 1)}"
    print(f"{run.name}/{run.id}  {run.state().get('state', 'unknown')}  {where}  {starts}, by {_source(one)}")
    if not said.starts:
        print("  it has not begun yet" + (f", its job {run.job_id} waits" if run.job_id else ""))
        return
    for line in _shares(said):
        print(f"  {line}")
    print()
    _table(one)
    _next(said)
    if one.source == "ledger":
        print(f"{UNKNOWN} ({one.why})")
    if run.emulated:
        print("EMULATED: its cores and memory are this machine's, its GPUs compute nothing")


def _source(one: Usage) -> str:
    return "sacct" if one.source == "sacct" else "its own ledger"


def _shares(said: Efficiency) -> Iterator[str]:
    """A line for each thing that was given."""
    limit = f" of {clock(said.limit_seconds)} asked" if said.limit_seconds else ""
    waited = f"; {clock(said.waited_seconds)} in the queue" if said.waited_seconds is not None else ""
    yield _line("time", said.time_share, f"{clock(said.seconds)}{limit}{waited}")
    if said.gpu_hours:
        yield _line("GPU", said.step_share, _gpu(said))
    elif said.step_share is not None:
        yield _line("steps", said.step_share, "of the time in training steps")
    if said.cpu_share is not None:
        yield _line("CPU", said.cpu_share, f"{said.cores_used:.1f} of up to {said.cores} cores busy on average")
    else:
        yield _line("CPU", None, "not known")
    used, asked = said.memory_used_gib, said.memory_asked_gib
    if used is not None:
        given = f" of {gb(asked)}" if asked else ""
        yield _line("memory", said.memory_share, f"at most {gb(used)}{given} GB on one node")
    else:
        yield _line("memory", None, "not known")


def _gpu(said: Efficiency) -> str:
    hours = f"{said.gpu_hours:.1f} GPU hours" if said.gpu_hours is not None else ""
    training = said.training
    if training is None:
        return f"{hours}; use not measured: the run recorded no steps"
    mfu = f"; MFU {training.mfu:.0%}" if training.mfu is not None else ""
    peak = f"; peak {gb(training.peak_memory_gib)} GB of one" if training.peak_memory_gib is not None else ""
    lost = f"; {clock(training.lost_seconds)} of steps were lost" if training.lost_seconds >= 1 else ""
    busy = f"; a kernel ran for {training.gpu_util:.0%}" if training.gpu_util is not None else ""
    energy = f"; {training.kwh:.3g} kWh" if training.kwh is not None else ""
    return f"{hours}, so much of it in training steps{mfu}{busy}{peak}{energy}{lost}"


def _line(name: str, share: float | None, text: str) -> str:
    if share is None:
        return f"{name:<7} {'':{BAR + 2}}    -   {text}"
    full = min(BAR, round(share * BAR))
    return f"{name:<7} [{'|' * full}{' ' * (BAR - full)}] {_percent(share):>5}  {text}"


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"


def _table(one: Usage) -> None:
    rows = [("job", "state", "began", "waited", "ran", "nodes", "CPU", "GB a node")]
    for each in one.allocations:
        cores = each.seconds * (each.cpus or 0)
        rows.append(
            (
                each.job_id,
                each.state.lower() or "-",
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.began)) if each.began else "-",
                clock(each.waited) if each.waited is not None else "-",
                clock(each.seconds),
                str(each.nodes),
                _percent(each.cpu_seconds / cores if each.cpu_seconds is not None and cores else None),
                gb(each.memory_used / 2**30) if each.memory_used is not None else "-",
            )
        )
    _columns(rows)


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _next(said: Efficiency) -> None:
    if said.advice:
        print(f"\nNext time: {' '.join(each.override for each in said.advice)}")
        for each in said.advice:
            print(f"  {each.override}: {each.why}")
    else:
        print("\nNext time: nothing to change in what it asks for")
    for remark in said.remarks:
        print(f"  {remark}")


def _sweep(title: str, each: list[Usage], together: Efficiency) -> None:
    sources = sorted({_source(one) for one in each})
    print(f"{title}: {len(each)} runs, {together.starts} starts, by {' and '.join(sources)}")
    for line in _shares(together):
        print(f"  {line}")
    print()
    rows = [("run", "state", "starts", "waited", "ran", "GPU hours", "in steps", "CPU", "GB a node")]
    for one in each:
        said = one.efficiency
        rows.append(
            (
                one.run.id,
                str(one.run.state().get("state", "unknown")),
                str(said.starts),
                clock(said.waited_seconds) if said.waited_seconds is not None else "-",
                clock(said.seconds),
                f"{said.gpu_hours:.2f}" if said.gpu_hours is not None else "-",
                _percent(said.step_share),
                _percent(said.cpu_share),
                gb(said.memory_used_gib) if said.memory_used_gib is not None else "-",
            )
        )
    _columns(rows)
    _next(together)
    why = next((one.why for one in each if one.source == "ledger"), None)
    if why is not None:
        print(f"{UNKNOWN} ({why})")
