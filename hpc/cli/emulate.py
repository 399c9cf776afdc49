"""``hpc emulate up|status|down``: a real Slurm in the shape of a cluster, on this machine."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpc.errors import Refused

if TYPE_CHECKING:
    from hpc.emulate import Emulation

HELP = "start a real Slurm in the shape of a cluster on this machine, to rehearse on"


def main(argv: list[str]) -> int:
    """Run ``hpc emulate`` with what was typed after it."""
    parser = argparse.ArgumentParser(
        prog="hpc emulate",
        description="A real, rootless Slurm (slurmctld, one slurmd per node, munge) in the shape of a described "
        "cluster, on this machine. While it is up, `hpc submit cluster=NAME` goes to it.",
        epilog="Example: hpc emulate up cluster=noctua2 --nodes 4; hpc submit job=hello cluster=noctua2 --wait",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up|status|down")
    _add_up(verbs)
    status = verbs.add_parser("status", help="which emulated clusters there are")
    status.add_argument("overrides", nargs="*", metavar="cluster=NAME", help="only this one")
    status.add_argument("--json", action="store_true", help="print one JSON document")
    down = verbs.add_parser("down", help="end exactly the processes of one, its jobs included")
    down.add_argument("overrides", nargs="*", metavar="cluster=NAME")
    down.add_argument("--keep", action="store_true", help="keep the daemons' logs")
    args = parser.parse_args(argv)
    return {"up": _up, "status": _status, "down": _down}[args.verb](args)


def _add_up(verbs: Any) -> None:
    up = verbs.add_parser("up", help="start one; every node is idle when it returns")
    up.add_argument(
        "overrides", nargs="*", metavar="cluster=NAME", help="the described cluster, and changes such as cluster.x=1"
    )
    up.add_argument("--nodes", type=int, metavar="N", help="at most N of each type of node (default: all)")
    up.add_argument(
        "--fast",
        action="store_true",
        help="schedule each second, KillWait=5, and a silent node is down after 20 s; without it all is as on a site",
    )
    up.add_argument("--preemptible", action="store_true", help="add a partition whose jobs others preempt")
    up.add_argument(
        "--accounting",
        action="store_true",
        help="slurmdbd on a database of its own: sacct and sacctmgr answer, accounts and QoS are enforced",
    )
    up.add_argument("--node-timeout", type=int, metavar="S", help="a silent node is down after S seconds")


def _up(args: argparse.Namespace) -> int:
    from hpc import compose, emulate

    _name(args.overrides, "up")
    if args.node_timeout is not None and not 5 <= args.node_timeout <= 65533:
        raise Refused(f"--node-timeout {args.node_timeout}: allowed: 5 to 65533 seconds")
    # A closed terminal ends this as Ctrl-C does: with everything started so far.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    start = time.monotonic()
    cluster = compose.cluster(args.overrides)
    options = emulate.Options(args.nodes, args.fast, args.preemptible, args.node_timeout, args.accounting)
    before = emulate.find(cluster.name)

    def say(text: str) -> None:
        print(f"EMULATED {cluster.name}: {text}", file=sys.stderr, flush=True)

    emulation = emulate.up(cluster, options, say)
    say("is up already" if before else f"all {emulation.nodes} nodes idle after {time.monotonic() - start:.1f} s")
    print(
        f"{_describe(emulation)}\n"
        f"rehearse:  hpc submit job=hello cluster={cluster.name} --wait\n"
        f"by hand:   export {_export(emulation)}; sinfo\n"
        f"end it:    hpc emulate down cluster={cluster.name}"
    )
    return 0


def _down(args: argparse.Namespace) -> int:
    from hpc import emulate, slurm

    name = _name(args.overrides, "down")
    jobs = 0
    if (emulation := emulate.find(name)) is not None:
        with suppress(slurm.SlurmError):  # a controller that hangs is no reason to leave it there
            jobs = emulation.queue()["RUNNING"]
    if not emulate.down(name, args.keep, print):
        print(f"EMULATED {name}: is not up; nothing to end")
        return 0
    print(f"EMULATED {name}: ended" + (f", with {jobs} running jobs" if jobs else ""))
    return 0


def _status(args: argparse.Namespace) -> int:
    name = _name(args.overrides, "status") if args.overrides else None
    found = [report for report in _reports() if name is None or report["cluster"] == name]
    if args.json:
        print(json.dumps({"emulated": found}, indent=1))
        return 0
    for report in found:
        print(_line(report))
    if not found:
        which = f"no emulated {name}" if name else "no emulated cluster"
        print(f"{which}. Start one: hpc emulate up cluster={name or 'noctua2'}")
    return 0


def _reports() -> list[dict[str, Any]]:
    """What is known about each emulated cluster, dead ones included."""
    from collections import Counter

    from hpc import emulate, slurm
    from hpc.emulate import state

    found = []
    for directory in emulate.directories():
        known = state.read(directory)
        report: dict[str, Any] = {"cluster": directory.name, "emulated": True, "directory": str(directory)}
        if known is not None:
            report |= {**known.options, "nodes": len(known.nodes), "host": known.host, "began": known.began}
        emulation = emulate.find(directory.name)
        report["alive"] = emulation is not None
        if emulation is not None:
            report["export"] = _export(emulation)
            if ended := emulation.accounting_ended():
                report["problem"] = f"no accounting: {', '.join(ended)} ended. Start it anew to have it again"
            try:
                report["node_states"] = dict(Counter(emulation.node_states().values()))
                report["queue"] = dict(emulation.queue())
            except slurm.SlurmError as error:
                report["problem"] = str(error)
        elif known is not None and known.elsewhere:
            report["problem"] = f"was started on {known.host}"
        elif emulate.busy(directory.name):
            report["problem"] = "is just being brought up or down"
        found.append(report)
    return found


def _line(report: dict[str, Any]) -> str:
    name = report["cluster"]
    if not report["alive"]:
        why = report.get("problem", f"dead. Clear it: hpc emulate down cluster={name}")
        return f"EMULATED {name}: {why}\n  {report['directory']}"
    nodes = ", ".join(f"{count} {state}" for state, count in report.get("node_states", {}).items())
    queue = ", ".join(f"{count} {state.lower()}" for state, count in report.get("queue", {}).items())
    options = [f"--{name}" for name in ("fast", "accounting") if report.get(name)]
    kind = f" ({' '.join(options)})" if options else ""
    said = report.get("problem") or f"nodes: {nodes}; queue: {queue or 'empty'}"
    return f"EMULATED {name}{kind}: {said}\n  {report['directory']}\n  export {report['export']}"


def _describe(emulation: Emulation) -> str:
    partition = f", partition {emulation.preemptible} is preemptible" if emulation.preemptible else ""
    kind = "a fast scheduler, not a site's" if emulation.fast else "the scheduler as on a site"
    sacct = ", with accounting" if emulation.accounting else ""
    return f"EMULATED {emulation.name}: {emulation.nodes} nodes, {kind}{partition}{sacct}"


def _export(emulation: Emulation) -> str:
    return " ".join(f"{key}={value}" for key, value in emulation.environment.items())


def _name(overrides: list[str], verb: str) -> str:
    """The NAME of the one ``cluster=NAME``.

    Raises:
        Refused: if it is missing.
    """
    names = [text.removeprefix("cluster=") for text in overrides if text.startswith("cluster=")]
    if len(names) == 1 and names[0] and "/" not in names[0]:
        return names[0]
    if verb == "down":
        from hpc import emulate

        there = [directory.name for directory in emulate.directories()]
        known = f"There are: {', '.join(there)}" if there else "There is none"
        raise Refused(f"hpc emulate down: which one? {known}. Try: hpc emulate down cluster={(there or ['NAME'])[0]}")
    raise Refused(f"hpc emulate {verb}: which cluster? Try: hpc emulate {verb} cluster=noctua2")
