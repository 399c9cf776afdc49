"""Runs of other programs as run folders: to look at, compare and export, never to be started."""

from __future__ import annotations

import re
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import provenance, runs
from hpc.errors import Refused
from hpc.runs import IMPORTED, NAME, Run, mark_finished, sync_folder, write_json, write_text

if TYPE_CHECKING:
    from monitoring.importing import Tally
    from monitoring.importing.records import Written

# What the last attempt's end makes of the run; what is not here leaves it finished, as far as anybody knows.
STATES = {
    **dict.fromkeys(("time_limit", "preemption", "cancelled"), "cancelled"),
    **dict.fromkeys(("crash", "gpu_memory", "host_memory", "node_failure", "network"), "failed"),
}
SOURCES = 1000  # files whose sizes are noted


@dataclass(frozen=True)
class Request:
    """What is to be imported, and what a person knows of it."""

    sources: Sequence[Path]
    form: str
    name: str
    cluster: str = ""
    tokens_per_step: int | None = None


@dataclass(frozen=True)
class Imported:
    """The run that came of it."""

    run: Run
    written: Written
    tally: Tally


def import_run(root: Path, request: Request) -> Imported:
    """Read the sources and write the run's folder, whole or not at all.

    Raises:
        Refused: if they are not of the format.
        OSError: if something cannot be read or written.
    """
    from monitoring.importing import Tally, Unreadable, read
    from monitoring.importing.records import Writer

    tally = Tally()
    parent = root / request.name
    parent.mkdir(parents=True, exist_ok=True)
    tmp = parent / f".{secrets.token_hex(6)}.tmp"
    try:
        tmp.mkdir()
        (tmp / "attempts").mkdir()
        writer = Writer(tmp, request.name, tally, request.tokens_per_step)
        try:
            written = writer.write(read(request.form, list(request.sources), tally))
        except Unreadable as error:
            raise Refused(str(error)) from error
        folder = parent / runs.new_id(written.began or None)  # where it stands in the order of runs
        _fill(Run(tmp), folder, request, written, tally)
        tmp.rename(folder)
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        if not any(parent.iterdir()):
            parent.rmdir()
        raise
    return Imported(Run(folder), written, tally)


def _fill(tmp: Run, folder: Path, request: Request, written: Written, tally: Tally) -> None:
    about: dict[str, Any] = {"as": request.form, "from": [str(path.resolve()) for path in request.sources]}
    config = {
        "name": request.name,
        "cluster": {"name": request.cluster or None},
        "job": {"_target_": IMPORTED},
        IMPORTED: {**about, "steps": tally.steps, "world_size": tally.world_size, "args": tally.args},
    }
    write_text(tmp.config_file, _yaml(config))
    write_text(tmp.overrides_file, "[]\n")
    manifest = {
        "command": ["hpc", *sys.argv[1:]],
        "cluster": request.cluster,
        "submitted": written.began,
        "user": provenance.user(),
        IMPORTED: {
            **about,
            "at": time.time(),
            "files": _sizes(request.sources),
            "clock": tally.clock,
            "damaged": tally.damaged,
            "first_damaged": tally.first_damaged,
            "without_steps": tally.without_steps[:SOURCES],
        },
    }
    write_json(tmp.manifest_file, manifest)
    reached = tally.steps is not None and written.last_step >= tally.steps
    done = written.cause == "finished" or reached
    state = "finished" if done else STATES.get(written.cause, "finished")
    tmp.set_state(state, reason=_reason(request, written, done=done), cluster=request.cluster, emulated=False)
    if done:
        mark_finished(tmp.folder, step=written.last_step, tokens=written.tokens)


def _reason(request: Request, written: Written, *, done: bool) -> str:
    what = f"imported from {request.sources[0].name}" + (" and others" if len(request.sources) > 1 else "")
    return what if done or written.cause == "unknown" else f"{what}, which ends by {written.cause.replace('_', ' ')}"


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _sizes(sources: Sequence[Path]) -> dict[str, int]:
    files: dict[str, int] = {}
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.is_file() and len(files) < SOURCES:
                files[str(path.resolve())] = path.stat().st_size
    return files


def name_for(source: Path) -> str:
    """A run's name from that of a file or folder: what a name may not have becomes a dash."""
    given = source.resolve()
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", given.stem if given.is_file() else given.name).strip("-._")[:64]
    return text if NAME.fullmatch(text) else "imported"
