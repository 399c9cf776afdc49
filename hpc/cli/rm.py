"""``hpc rm RUN...``: remove runs that have ended, and sweeps with all of their runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from hpc import garbage, runs, sweep
from hpc.cli.ask import amount, confirmed, interactive
from hpc.errors import Refused
from hpc.listing import ENDED, read
from hpc.runs import Run
from hpc.sweep import Sweep

HELP = "remove runs that have ended, and sweeps with all of their runs; asks first"


@dataclass(frozen=True)
class Meant:
    """What a word means: folders, in the order in which they go."""

    text: str
    runs: list[Run]
    sweep: Sweep | None = None

    @property
    def folders(self) -> list[Path]:
        return [run.folder for run in self.runs] + ([self.sweep.folder] if self.sweep else [])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc rm", description=HELP)
    parser.add_argument("run", nargs="+", help="id or its beginning, name (its newest), folder, or a sweep's id")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    root = runs.root()
    meant = [_meant(root, text) for text in dict.fromkeys(args.run)]
    each = {run.folder: run for found in meant for run in found.runs}
    before = {folder: run.state() for folder, run in each.items()}
    for found in meant:
        _refuse_live(found)
    wanted = {path: who for path, who in garbage.wanted(root).items() if who not in _stems(each)}
    for folder in each:
        garbage.refuse_wanted(folder, wanted)
    folders = list(dict.fromkeys(folder for found in meant for folder in found.folders))
    size = sum(map(garbage.size, folders))
    if not args.yes and not _agreed(folders, size):
        return 1
    for folder in folders:
        if folder in each and garbage.changed_since(each[folder], before[folder]):
            raise Refused(f"{folder.parent.name}/{folder.name} is no longer as it was: hpc status {folder.name}")
        garbage.remove(folder)
    if args.json:
        print(json.dumps({"removed": [str(folder) for folder in folders], "bytes": size}))
    else:
        print(f"removed {len(folders)} {'folders' if len(folders) > 1 else 'folder'}, {amount(size)}")
    return 0


def _meant(root: Path, text: str) -> Meant:
    try:
        return Meant(text, [runs.find(root, text)])
    except Refused as error:
        try:
            found = sweep.find(root, text)
        except Refused:
            raise error from None
    begun = [run for run in map(found.run, range(len(found.members))) if run.config_file.exists()]
    return Meant(text, begun, found)


def _refuse_live(meant: Meant) -> None:
    if meant.sweep is not None:
        from hpc.standing import ENDED as OVER
        from hpc.standing import standings

        rows = [row for row in standings(meant.sweep) if row.state not in OVER]
        if rows:
            fix = f"hpc sweep cancel {meant.sweep.id}"
            raise Refused(f"{meant.text}: {len(rows)} runs of this sweep have not ended. To end them first: {fix}")
        return
    for row in read(meant.runs):
        if row.state not in (*ENDED, "gone"):
            raise Refused(f"{row.name}/{row.id} has not ended: it is {row.state}. To end it first: hpc cancel {row.id}")


def _stems(each: dict[Path, Run]) -> set[str]:
    return {f"{run.name}/{run.id}" for run in each.values()}


def _agreed(folders: list[Path], size: int) -> bool:
    if not interactive():
        raise Refused("nobody is there to be asked. To remove without being asked, add: --yes")
    for folder in folders:
        print(folder)
    return confirmed(f"Remove {len(folders)} folders, {amount(size)}, for good?")
