"""``hpc findings [RUN ...]``: what runs' records show that a person should know."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from hpc import runs
from hpc.errors import Refused
from hpc.slurm import SlurmError

if TYPE_CHECKING:
    from hpc.findings import Judged
    from hpc.runs import Run
    from monitoring.findings import Finding

HELP = "what is wrong with runs: stalls, stragglers, spikes, experts, disks; for people and for cron"
STYLES = {"info": "dim", "warning": "yellow", "critical": "bold red"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hpc findings",
        description=HELP,
        epilog="From cron: hpc findings --notify --exit-code. docs/findings.md lists all findings.",
    )
    add = parser.add_argument
    which_runs = "ids or their beginnings, names, folders, last, or sweeps; all runs that have not ended if left out"
    add("run", nargs="*", help=which_runs)
    add("--json", action="store_true", help="a list of findings, each with its run")
    add(
        "--exit-code",
        action="store_true",
        help="status 3 if there is a warning, 4 if something is critical; 1 if a run cannot be judged",
    )
    add("--notify", action="store_true", help="send what is new to notify.webhook, .mail and .file of the run")
    add("--act", action="store_true", help="put a stalled job back into the queue")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--silence", metavar="KEY", help="say no more of this finding, or of all of a kind")
    which.add_argument("--acknowledge", metavar="KEY", help="say no more of it until it gets worse, or for a week")
    which.add_argument("--speak", metavar="KEY", help="say it again")
    add(
        "--for",
        dest="span",
        type=runs.duration,
        metavar="TIME",
        help="with --silence: such as 12h or 2d; for good if left out",
    )
    args = parser.parse_args(argv)
    from hpc import exporting, findings

    named = exporting.members(exporting.find(runs.root(), args.run))
    if args.silence or args.speak or args.acknowledge:
        return _silence(named, args)
    if args.span is not None:
        raise Refused("--for goes with --silence KEY")
    judged = findings.judge(named if args.run else findings.runs_to_look_at(runs.root()), say)
    _follow_up(judged, args)
    found = [(run, finding) for run, look in judged.looks for finding in look.findings]
    if args.json:
        print(json.dumps([{"run": run.id, "name": run.name, **finding.to_json()} for run, finding in found]))
    elif found or not judged.failed:
        _print(found)
    return judged.status(of_findings=args.exit_code)


def _follow_up(judged: Judged, args: argparse.Namespace) -> None:
    """Tell and act, where that was asked for."""
    from hpc import findings

    for run, snapshot in judged.looks:
        try:
            if args.notify:
                findings.tell(run, snapshot.findings, lambda text, run=run: say(run, text))
            if args.act and (done := findings.act(run, snapshot.findings, snapshot.job)):
                say(run, done)
        except (Refused, SlurmError, OSError) as error:  # the others' turn comes all the same
            say(run, str(error))


def say(run: Run, text: str) -> None:
    print(f"{run.id}: {text}", file=sys.stderr)  # what is printed may be JSON


def _silence(named: list[Run], args: argparse.Namespace) -> int:
    from hpc import findings

    if not named:
        raise Refused("of which run? Type: hpc findings RUN --silence KEY")
    for run in named:
        if args.speak:
            findings.speak(run, args.speak)
        elif args.acknowledge:
            _acknowledge(run, args.acknowledge)
        else:
            findings.silence(run, args.silence, until=None if args.span is None else time.time() + args.span)
    return 0


def _acknowledge(run: Run, key: str) -> None:
    from hpc import findings

    known = [finding for _, look in findings.judge([run], say).looks for finding in look.findings]
    chosen = [finding for finding in known if key in (finding.key, finding.kind)]
    if not chosen:
        keys = ", ".join(dict.fromkeys(finding.key for finding in known)) or "none"
        raise Refused(f"{run.id} has no finding {key!r} now. Those that it has: {keys}")
    for finding in chosen:
        findings.acknowledge(run, finding)


def _print(found: list[tuple[Run, Finding]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from monitoring.text import clean

    console = Console(highlight=False, soft_wrap=True)
    if not found:
        console.print("nothing found")
    for run, finding in found:
        style = "dim" if finding.silenced else STYLES[finding.severity.value]
        word = "silenced" if finding.silenced else finding.severity.value
        word = "seen" if finding.acknowledged else word
        console.print(
            Text.assemble((f"{word:<9}", style), f" {clean(run.name)}/{run.id}  ", (clean(finding.headline), "bold"))
        )
        rows = [
            finding.evidence,
            f"since {time.strftime('%Y-%m-%d %H:%M', time.localtime(finding.since))}, {finding.key}",
        ]
        rows += [f"type: {finding.typed(run.id)}"] if finding.do else []
        for row in rows:
            console.print(Text(f"          {clean(row)}", "dim" if finding.silenced else ""))
