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
    add("run", nargs="*", help="ids or their beginnings, names, folders, or last; all that have not ended if left out")
    add("--json", action="store_true", help="a list of findings, each with its run")
    add("--exit-code", action="store_true", help="status 3 if there is a warning, 4 if something is critical")
    add("--notify", action="store_true", help="send what is new to notify.webhook and notify.mail of the run")
    add("--act", action="store_true", help="put a stalled job back into the queue")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--silence", metavar="KEY", help="say no more of this finding, or of all of a kind")
    which.add_argument("--speak", metavar="KEY", help="say it again")
    add(
        "--for",
        dest="span",
        type=runs.duration,
        metavar="TIME",
        help="with --silence: such as 12h or 2d; for good if left out",
    )
    args = parser.parse_args(argv)
    from hpc import findings

    named = [runs.find(runs.root(), each) for each in args.run]
    if args.silence or args.speak:
        return _silence(named, args)
    if args.span is not None:
        raise Refused("--for goes with --silence KEY")
    found = [(run, finding) for run, finding in _all(named or findings.runs_to_look_at(runs.root()), args)]
    if args.json:
        print(json.dumps([{"run": run.id, "name": run.name, **finding.to_json()} for run, finding in found]))
    else:
        _print(found)
    return findings.status(finding for _, finding in found) if args.exit_code else 0


def _all(chosen: list[Run], args: argparse.Namespace) -> list[tuple[Run, Finding]]:
    from hpc import findings

    found = []
    for run, snapshot in findings.snapshots(chosen, say):
        found += [(run, finding) for finding in snapshot.findings]
        try:
            if args.notify:
                findings.tell(run, snapshot.findings, lambda text, run=run: say(run, text))
            if args.act and (done := findings.act(run, snapshot.findings, snapshot.job)):
                say(run, done)
        except (Refused, SlurmError, OSError) as error:  # the others' turn comes all the same
            say(run, str(error))
    return found


def say(run: Run, text: str) -> None:
    print(f"{run.id}: {text}", file=sys.stderr)  # what is printed may be JSON


def _silence(named: list[Run], args: argparse.Namespace) -> int:
    from hpc import findings

    if not named:
        raise Refused("of which run? Type: hpc findings RUN --silence KEY")
    for run in named:
        if args.speak:
            findings.speak(run, args.speak)
        else:
            findings.silence(run, args.silence, until=None if args.span is None else time.time() + args.span)
    return 0


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
        console.print(
            Text.assemble((f"{word:<9}", style), f" {clean(run.name)}/{run.id}  ", (clean(finding.headline), "bold"))
        )
        rows = [
            finding.evidence,
            f"since {time.strftime('%Y-%m-%d %H:%M', time.localtime(finding.since))}, {finding.key}",
        ]
        rows += [f"type: {finding.do.replace('RUN', run.id)}"] if finding.do else []
        for row in rows:
            console.print(Text(f"          {clean(row)}", "dim" if finding.silenced else ""))
