"""``hpc doctor``: a site as it is seen from here, and with ``--job`` from its nodes."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import doctor, probes
from hpc.doctor import Finding, Level, bad, ok, warn
from hpc.errors import Failed, Refused

if TYPE_CHECKING:
    from hpc.config import Cluster
    from hpc.runs import Run
    from hpc.site import Site
    from hpc.submit import Plan

HELP = "look over a site from here, with --job also from its nodes"
PATIENCE = 600.0  # seconds until a job that has not ended is taken back


def main(argv: list[str]) -> int:
    """Exit status 0 if nothing is bad, else 1."""
    parser = argparse.ArgumentParser(prog="hpc doctor", description=HELP)
    parser.add_argument("overrides", nargs="*", metavar="cluster=NAME", help="and changes such as job.partition=x")
    parser.add_argument("--job", action="store_true", help="submit a job of a minute that reports from two nodes")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="where cluster/NAME.yaml lies")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    overrides = list(args.overrides)
    if args.config_dir is not None:
        overrides.append(f"hydra.searchpath=[file://{args.config_dir.resolve()}]")
    found: list[Finding] = []
    for finding in _findings(overrides, job=args.job):
        found.append(finding)
        if not args.json:
            _print(finding)
    worst = doctor.worst(found)
    if args.json:
        rows = [{**asdict(finding), "level": finding.level.name} for finding in found]
        print(json.dumps({"findings": rows, "worst": worst.name}))
    else:
        number = {level: sum(each.level is level for each in found) for level in Level}
        print(f"{number[Level.ok]} ok, {number[Level.warn]} to know, {number[Level.bad]} bad")
    return int(worst is Level.bad)


def _print(finding: Finding) -> None:
    print(f"{finding.level.name:<4}  {finding.what}: {finding.found}", flush=True)
    if finding.advice:
        print(f"      {finding.advice}", flush=True)


def _findings(overrides: list[str], *, job: bool) -> Iterator[Finding]:
    from hpc import compose, submit
    from hpc.config import Launcher

    config = compose.compose(["job=doctor", "name=doctor", *overrides])
    cluster = submit.seen(config)
    environment = submit.target(cluster.name, cluster.launcher)
    site = None
    if cluster.launcher is Launcher.slurm:
        yield doctor.programs({name: shutil.which(name) is not None for name in (*doctor.NEEDED, "sacctmgr", "sacct")})
        site, found = _slurm(cluster, environment)
        yield from found
    else:
        yield ok("launcher", "local: no Slurm, runs are processes of this machine")
    alone = cluster.launcher is Launcher.local or bool(environment) or _alone(site)
    yield from _files(cluster, alone=alone)
    yield from _python(cluster, alone=alone)
    if job:
        yield from _job(overrides, cluster)


def _slurm(cluster: Cluster, environment: dict[str, str]) -> tuple[Site | None, list[Finding]]:
    from hpc import asking, slurm
    from hpc.site_text import AS_OF

    if not slurm.available():
        return None, []
    question = asking.Asking(environment)
    site = question.site(patience=30)
    if site is None:
        said = "; ".join(dict.fromkeys(question.silent)) or "no answer"
        return None, [bad("controller", said, f"hpc emulate up cluster={cluster.name} rehearses without the site")]
    told = slurm.unix(site.config.get(AS_OF, ""))
    skew = told - time.time() + (question.seconds or 0) if told is not None else None
    return site, [*doctor.slurm(site, question.seconds, cluster, skew), *doctor.partitions(site, cluster)]


def _alone(site: Site | None) -> bool:
    """Whether every node is this machine."""
    names = {name for group in (site.nodes or () if site else ()) for name in group.names}
    return names == {socket.gethostname().partition(".")[0]}


def _files(cluster: Cluster, *, alone: bool) -> Iterator[Finding]:
    folder = Path(cluster.runs)
    kind = probes.file_system(folder)
    yield doctor.file_system("cluster.runs", str(folder), kind, alone=alone)
    yield doctor.space("room", *probes.room(folder))
    if (finding := doctor.quota("quota", probes.quota(folder, kind))) is not None:
        yield finding
    try:
        written = probes.write(folder)
    except OSError as error:
        yield bad("writing", f"{folder}: {error.strerror or error}", "cluster.runs=DIR that is yours to write to")
        return
    yield doctor.writing("writing", written.taken)
    yield doctor.of_clock("clock of cluster.runs", written.skew)


def _python(cluster: Cluster, *, alone: bool) -> Iterator[Finding]:
    from hpc.script import interpreter

    python = interpreter(cluster)
    try:
        yield from doctor.python("python", python, probes.packages(python))
    except OSError as error:
        if cluster.modules:
            yield warn("python", f"{python}: {error}", f"may come with the modules {', '.join(cluster.modules)}: --job")
        else:
            yield bad("python", f"{python}: {error}", "cluster.python=PATH")
        return
    where = doctor.file_system(
        "python's place", str(Path(python).parent), probes.file_system(Path(python)), alone=alone
    )
    if where.level is not Level.ok:
        yield warn(where.what, where.found, "nodes must find the same there, or cluster.python=PATH on a shared one")


def _job(overrides: list[str], cluster: Cluster) -> Iterator[Finding]:
    from hpc import compose, submit

    most = min(node.count for node in cluster.node_types.values())
    words = ["job=doctor", "name=doctor", *(["job.nodes=1"] if most < 2 else []), *overrides]
    try:
        plan = submit.plan(compose.compose(words), words)
        run = submit.dispatch(plan)
    except (Refused, Failed) as error:
        yield bad(
            "job", str(error).replace("\n", "; "), "hpc doctor --job with other overrides, such as job.partition=NAME"
        )
        return
    print(f"hpc doctor: job {run.job_id} in {run.folder}", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        status, why = _wait(run, plan)
    except BaseException:
        _take_back(run)
        raise
    if status is None:
        yield bad("job", f"not done after {PATIENCE:.0f} s: {why}", "it was taken back; try job.partition=NAME")
        return
    if status:
        reason = run.state().get("reason", "")
        yield bad("job", f"{run.state().get('state')}: {reason}", f"hpc logs {run.id}")
    else:
        yield ok("job", f"{run.job_id} was done after {time.monotonic() - start:.0f} s; all ranks met at rank 0")
    yield from _reports(run.folder, plan)


def _wait(run: Run, plan: Plan) -> tuple[int | None, str]:
    """The exit status of the run; None, and why, if it did not end in time."""
    from hpc.waiting import outcome, settle

    end = time.monotonic() + PATIENCE
    while (status := outcome(run)) is None and time.monotonic() < end:
        time.sleep(0.2)
    if status is not None:
        settle(run)
        return status, ""
    why = _why(run, plan)
    _take_back(run)
    return None, why


def _take_back(run: Run) -> None:
    from hpc.cli.cancel import cancel

    print(f"hpc doctor: {cancel(run, now=True)}", file=sys.stderr, flush=True)


def _why(run: Run, plan: Plan) -> str:
    from hpc import slurm

    try:
        row = slurm.queue([str(run.job_id)], plan.environment).get(str(run.job_id))
    except slurm.SlurmError as error:
        return str(error)
    return f"{row.state} ({row.reason})" if row else "its job left the queue"


def _reports(folder: Path, plan: Plan) -> Iterator[Finding]:
    from hpc.runs import read_json

    config, request = plan.config, plan.request
    files = (folder / "doctor" / f"{rank}.json" for rank in range(request.world_size))
    found = [report for report in map(read_json, files) if report is not None]
    yield from doctor.reports(found, request.world_size, config.cluster, request.gpus_per_node)
