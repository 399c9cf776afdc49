"""``hpc import FILE|FOLDER --as FORMAT [name=...]``: an old run beside new ones."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import runs
from hpc.errors import Refused

if TYPE_CHECKING:
    from hpc.imported import Imported, Request

HELP = "old runs beside new ones: logs of Megatron and DeepSpeed, TensorBoard's files, CSV"
FORMATS = ("megatron", "deepspeed", "tensorboard", "lit-gpt", "csv")
CLUSTER = 64  # characters of a cluster's name
KEYS = ("name", "cluster", "tokens_per_step")
EPILOG = """what may be said of the run:
  name=NAME            what it is called (the first file's or folder's name)
  cluster=NAME         where it ran
  tokens_per_step=N    where the source does not say tokens

Several files are several attempts, in the order given; of a folder in that of their names. docs/exports.md says more.
"""


def main(argv: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="hpc import", description=HELP, epilog=EPILOG, formatter_class=raw)
    add = parser.add_argument
    add("source", nargs="+", metavar="FILE|FOLDER|KEY=VALUE", help="what to read, and what is known of it")
    add("--as", dest="form", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add("--json", action="store_true", help="one JSON document")
    args = parser.parse_intermixed_args(argv)
    request = _request(args)
    from hpc.imported import import_run

    try:
        found = import_run(runs.root(), request)
    except OSError as error:
        raise runs.disk_failure(error, "import the run") from error
    _tell(found, as_json=args.json)
    return 0


def _request(args: argparse.Namespace) -> Request:
    from hpc.imported import Request, name_for
    from monitoring.text import clean

    if args.form not in FORMATS:
        near = difflib.get_close_matches(args.form, FORMATS, 1, 0.4)
        hint = f" Nearest: {near[0]}" if near else ""
        raise Refused(f"--as {args.form}: there is no such format. Allowed: {', '.join(FORMATS)}.{hint}")
    said: dict[str, str] = {}
    sources: list[Path] = []
    for word in args.source:
        key, sign, value = word.partition("=")
        if Path(word).exists():
            sources.append(Path(word))
        elif sign and key in KEYS:
            said[key] = value
        elif sign:
            near = difflib.get_close_matches(key, KEYS, 1, 0.4)
            hint = f" Nearest: {near[0]}=" if near else ""
            raise Refused(f"{word}: of the run may be said {', '.join(f'{each}=' for each in KEYS)}.{hint}")
        else:
            raise Refused(f"{word}: there is no such file or folder")
    if not sources:
        raise Refused("which file or folder? Type: hpc import FILE --as megatron name=lola")
    name = said.get("name") or name_for(sources[0])
    if not runs.NAME.fullmatch(name):
        raise Refused(f"name={name}: a name has letters, digits, dot, dash and underscore, and at most 64 of them")
    tokens = said.get("tokens_per_step")
    if tokens is not None and not (tokens.isascii() and tokens.isdecimal() and 0 < int(tokens) < 1 << 40):
        raise Refused(f"tokens_per_step={tokens}: a whole number above 0, such as tokens_per_step=1572864")
    cluster = said.get("cluster", "")
    if clean(cluster) != cluster or len(cluster) > CLUSTER:
        raise Refused(f"cluster={clean(cluster)[:CLUSTER]}: at most {CLUSTER} characters, all of which can be printed")
    return Request(sources, args.form, name, cluster, None if tokens is None else int(tokens))


def _tell(found: Imported, *, as_json: bool) -> None:
    run, written, tally = found.run, found.written, found.tally
    if as_json:
        said = {"attempts": written.attempts, "steps": written.steps, "last_step": written.last_step}
        more = {"tokens": written.tokens, "damaged": tally.damaged, "clock": tally.clock}
        document = {"run": run.id, "name": run.name, "folder": str(run.folder), **said, **more}
        print(json.dumps({**document, "without_steps": tally.without_steps}))
        return
    attempts = f"{written.attempts} attempt{'s' * (written.attempts > 1)}"
    print(f"{run.name}/{run.id}: {attempts}, {written.steps} records of steps, the last of step {written.last_step}")
    print(f"  look    hpc watch {run.id}")
    from monitoring.text import clean

    if tally.clock != "recorded":
        print(f"  times are {tally.clock}", file=sys.stderr)
    if tally.damaged:
        lines = f"{tally.damaged} damaged line{'s' * (tally.damaged > 1)} or records"
        print(f"  {lines}; the first: {clean(tally.first_damaged)}", file=sys.stderr)
    if tally.without_steps:
        some = ", ".join(tally.without_steps[:5]) + (" ..." if len(tally.without_steps) > 5 else "")
        print(f"  no step in {len(tally.without_steps)} of the files: {clean(some)}", file=sys.stderr)
