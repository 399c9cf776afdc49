"""``hpc cluster detect``: the description of a site, from what its own Slurm says."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from hpc import asking
from hpc.errors import Failed, Refused
from hpc.site import Site

HELP = "write the description of the site that this is called on"
DETECTED = "{}_detected"  # for a name that is taken by a shipped description


def main(argv: list[str]) -> int:
    """Run ``hpc cluster`` with what was typed after it."""
    parser = argparse.ArgumentParser(prog="hpc cluster", description="Descriptions of Slurm sites.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="detect")
    detect = verbs.add_parser("detect", help=HELP, description=f"{HELP}: DIR/cluster/NAME.yaml")
    detect.add_argument("cluster", nargs="?", metavar="cluster=NAME", help="an emulated one, instead of the site here")
    detect.add_argument("--name", help="what the site is called here (default: its ClusterName)")
    detect.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="default: the working folder")
    detect.add_argument("--force", action="store_true", help="overwrite the file")
    detect.add_argument("--json", action="store_true", help="one JSON document about what was written")
    return _detect(parser.parse_args(argv))


def _detect(args: argparse.Namespace) -> int:
    from hpc.compose import CONF
    from hpc.detect import describe, usable
    from hpc.runs import write_text

    site = _site(args.cluster)
    shipped = {file.stem for file in (CONF / "cluster").glob("*.yaml")}
    name = args.name or (DETECTED.format(site.name) if site.name in shipped else site.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", name):
        raise Refused(f"--name {name!r}: allowed: up to 40 letters, digits, '_', '-' and '.'. Try: --name mysite")
    if name in shipped:
        raise Refused(
            f"--name {name}: a description of this name is shipped, and would hide yours. "
            f"Try: --name {DETECTED.format(name)}"
        )
    if not usable(site):
        raise Failed(
            f"Slurm on {site.name} shows no partition with nodes for {site.user}. Try: scontrol show partition"
        )
    text = describe(site, name, time.strftime("%Y-%m-%d"))
    file = args.output / "cluster" / f"{name}.yaml"
    if file.exists() and not args.force:
        raise Refused(f"{file} is there already. Try: --force, or another --name")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    try_it = f"hpc submit job=hello cluster={name} --config-dir {args.output} --wait"
    if args.json:
        print(json.dumps({"file": str(file), "name": name, "slurm_name": site.name, "try": try_it}))
    else:
        print(f"wrote {file}. Look through it, then use it with --config-dir {args.output}:\n  {try_it}")
    return 0


def _site(given: str | None) -> Site:
    """What Slurm says: of the emulated cluster that is named, or of the site here."""
    from hpc import emulate

    environment = {}
    if given is not None:
        name = given.removeprefix("cluster=")
        emulation = emulate.find(name) if given.startswith("cluster=") and name and "/" not in name else None
        if emulation is None:
            raise Refused(f"{given}: no emulated cluster of this name is up. Try: hpc cluster detect, on a login node")
        environment = emulation.environment
    question = asking.ahead(environment)
    site = question.site(patience=30)
    if site is None or site.nodes is None:
        raise Failed("; ".join(dict.fromkeys(question.silent)) or "Slurm does not answer here")
    return site
