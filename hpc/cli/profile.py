"""``hpc profile RUN``: where the time of a running run's steps goes, measured by torch's profiler."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from hpc import ledger, runs
from hpc.config import HelloJob, PrepareJob
from hpc.errors import Failed, Refused
from hpc.request import resolve
from hpc.runs import Run
from trainer.profile_request import FOLDER, MOST_STEPS, Request, answered, ask, withdraw

HELP = "profile some steps of a running run"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc profile", description=HELP)
    parser.add_argument("run", help="id or its beginning, name, folder, or last")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help=f"how many, 1 to {MOST_STEPS} (3)")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="of this rank (0)")
    parser.add_argument("--patience", type=float, default=600.0, metavar="S", help="seconds to wait for it (600)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    run = runs.find(runs.root(), args.run)
    folder, found = profile(run, steps=args.steps, rank=args.rank, patience=args.patience)
    trace = folder / str(found["trace"])
    if args.json:
        print(json.dumps({"run": run.id, **found, "trace": str(trace)}))
    else:
        _table(run, found, trace)
    return 0


def profile(run: Run, *, steps: int, rank: int, patience: float, poll: float = 0.2) -> tuple[Path, dict[str, Any]]:
    """Ask for a profile and wait for it. Returns the folder it lies in, and what it says.

    Raises:
        Refused: if the run has ended or trains nothing, or there are no such steps or rank.
        Failed: if the run is not running just now, or gives no profile in time.
    """
    _check(run, steps, rank)
    number = _running(run)
    folder = ledger.folder(run, number) / FOLDER
    try:
        request = ask(folder, steps=steps, rank=rank)
    except FileExistsError:
        raise Failed(f"another profile of {run.name}/{run.id} was asked for just now. Try again after it") from None
    try:
        return folder, _await(run, number, folder, request, patience, poll)
    finally:
        withdraw(folder, request)


def _check(run: Run, steps: int, rank: int) -> None:
    config = run.config()
    if isinstance(config.job, HelloJob | PrepareJob):
        raise Refused(f"{run.name}/{run.id} trains nothing. Runs are listed by: hpc status")
    if not 1 <= steps <= MOST_STEPS:
        raise Refused(f"--steps {steps}: allowed: 1 to {MOST_STEPS}. Try: --steps {min(max(steps, 1), MOST_STEPS)}")
    size = resolve(config).world_size
    if not 0 <= rank < size:
        raise Refused(f"--rank {rank}: run {run.id} has ranks 0 to {size - 1}")


def _running(run: Run) -> int:
    """The attempt that runs now."""
    from hpc.waiting import outcome

    state = "finished" if run.finished else run.state().get("state", "unknown")
    if outcome(run) is not None:
        raise Refused(f"{run.name}/{run.id} has ended already: {state}. Only a running run can be profiled")
    numbers = ledger.numbers(run)
    record = ledger.Record.read(ledger.folder(run, numbers[-1])) if numbers else None
    if record is None or record.ended is not None or not (ledger.folder(run, record.number) / runs.READY).exists():
        raise Failed(f"{run.name}/{run.id} is not training now: {state}. Try again when it does: hpc watch {run.id}")
    return record.number


def _await(run: Run, number: int, folder: Path, request: Request, patience: float, poll: float) -> dict[str, Any]:
    from hpc.waiting import Gone, outcome

    gone = Gone(run)
    end = time.monotonic() + patience
    while True:
        over = outcome(run) is not None or _ended(run, number) or gone()  # before the look, which then is the last
        late = time.monotonic() > end
        if found := answered(folder, request):
            if "error" in found:
                raise Failed(f"{run.name}/{run.id}: {found['error']}")
            return found
        if over:
            raise Failed(f"attempt {number} of {run.name}/{run.id} ended before its profile was taken")
        if late:
            what = "was taken in" if withdraw(folder, request) else "ended of those to be profiled in"
            raise Failed(
                f"no step {what} {patience:.0f} s. What the run does now: hpc logs {run.id} --rank 0; to wait longer: "
                f"hpc profile {run.id} --patience {2 * patience:.0f}"
            )
        time.sleep(poll)


def _ended(run: Run, number: int) -> bool:
    record = ledger.Record.read(ledger.folder(run, number))
    return (record is not None and record.ended is not None) or ledger.folder(run, number + 1).exists()


def _table(run: Run, found: dict[str, Any], trace: Path) -> None:
    first, last = found["first_step"], found["last_step"]
    steps = f"steps {first} to {last}" if last > first else f"step {first}"
    print(f"{run.name}/{run.id}, {steps}, rank {found['rank']}: time spent in each operator itself ({found['device']})")
    print(f"{'share':>6}  {'ms/step':>9}  {'calls':>7}  operator")
    for row in found["top"]:
        print(f"{row['share']:>6.1%}  {row['ms_per_step']:>9.2f}  {row['calls']:>7}  {row['name'][:80]}")
    print(f"trace, for https://ui.perfetto.dev or chrome://tracing: {trace}")
