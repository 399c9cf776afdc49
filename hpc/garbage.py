"""What may go: whole runs that a person names, and of others the checkpoints and leftovers that nobody needs.

A run that has not ended is not touched at all: its own trainer keeps house there. Of the others the newest complete
checkpoint stays, whatever the policy, and those that another run is yet to begin from. What goes is renamed to a hidden
name first, so that nothing half removed is ever taken for whole.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc.errors import Refused
from hpc.runs import Run, disk_failure, every, sync_folder
from trainer import checkpoint_folder as checkpoints

REMOVED = re.compile(r"\..+\.removed-[0-9a-f]{8}")  # being removed, or left over by a process that died at it
TEMPORARY = re.compile(r"\..+\.tmp")  # being written, likewise
CODE = (".code.old", ".code.new")  # of an interrupted `hpc resume`
SETTLED = 3600.0  # seconds without a change after which nobody is still writing under a temporary name


@dataclass(frozen=True)
class Policy:
    """Which checkpoints stay."""

    keep_latest: int = 1  # the newest, at least one
    keep_every: int | None = None  # each whose step is a multiple of it; None: as the run's configuration says


@dataclass(frozen=True)
class Piece:
    """A folder or file that may go."""

    run: str  # name/id; the name alone for what was to become a run of it
    path: Path
    bytes: int  # that this gives back: a file that lies in another folder too gives nothing
    why: str


def of_run(run: Run, policy: Policy, wanted: Mapping[Path, str]) -> list[Piece]:
    """What may go of a run that has ended.

    Args:
        wanted: as ``wanted`` found it.
    """
    stem = f"{run.name}/{run.id}"
    leftovers = [*_checkpoint_leftovers(run), *_hidden(run)]
    found = [(path, "left over by a writer that died") for path in leftovers]
    found += [(path, why) for path, why in _checkpoints(run, policy) if path.resolve() not in wanted]
    return [Piece(stem, path, size(path), why) for path, why in found]


def _checkpoints(run: Run, policy: Policy) -> Iterator[tuple[Path, str]]:
    try:
        steps = checkpoints.complete_steps(run.checkpoints)
    except OSError:  # it has none, or it is another user's
        return
    if not steps:
        return
    every_nth = _own_keep_every(run) if policy.keep_every is None else policy.keep_every
    stay = checkpoints.kept(steps, policy.keep_latest, every_nth)
    if newest := checkpoints.newest(run.checkpoints):  # the newest of all may have a marker that cannot be read
        stay.add(newest[0])
    said = f"older than the newest {policy.keep_latest}" if policy.keep_latest > 1 else "older than the newest"
    said += f", and no multiple of {every_nth}" if every_nth else ""
    for step in steps:
        if step not in stay:
            yield checkpoints.step_folder(run.checkpoints, step), said
    for marker in run.checkpoints.glob(f"step-*/{checkpoints.CORRUPT}"):
        step = marker.parent.name.removeprefix("step-")
        if step.isdecimal() and newest and int(step) < newest[0] and int(step) not in steps:
            yield marker.parent, "found damaged, and passed over"


def _checkpoint_leftovers(run: Run) -> list[Path]:
    try:
        return checkpoints.leftovers(run.checkpoints)
    except OSError:
        return []


def _hidden(run: Run) -> list[Path]:
    """What interrupted writers left in a run's own folder and in that of its attempts."""
    found = [run.folder / name for name in CODE if (run.folder / name).exists()]
    for folder in (run.folder, run.attempts, run.checkpoints):
        with suppress(OSError):
            found += [p for p in folder.iterdir() if REMOVED.fullmatch(p.name) or _abandoned(p)]
    return sorted(found)


def _abandoned(path: Path) -> bool:
    return TEMPORARY.fullmatch(path.name) is not None and _untouched(path) > SETTLED


def beside(root: Path) -> list[Piece]:
    """Folders that were to become runs or sweeps, or are half removed, and nobody is working at."""
    found = []
    for path in sorted(root.glob("*/.*")):
        removed = REMOVED.fullmatch(path.name)
        if not removed and not _abandoned(path):
            continue
        why = "half removed" if removed else "left over by a process that died while writing it"
        found.append(Piece(path.parent.name, path, size(path), why))
    return found


def _untouched(folder: Path) -> float:
    """Seconds since anything was written in a folder, to its second level."""
    times = []
    for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return time.time() - max(times, default=0.0)


def wanted(root: Path) -> dict[Path, str]:
    """Checkpoints, and folders with them, from which a run is yet to begin; by whom, as name/id.

    A run that has saved nothing and is not finished begins from there once more when it is resumed.
    """
    found: dict[Path, str] = {}
    for run in every(root):
        if (given := _init_from(run)) and not run.finished and checkpoints.newest(run.checkpoints) is None:
            found[Path(given).resolve()] = f"{run.name}/{run.id}"
    return found


def refuse_wanted(folder: Path, wanted: Mapping[Path, str]) -> None:
    """
    Raises:
        Refused: if another run is yet to begin from a checkpoint in this run's folder.
    """
    here = folder.resolve()
    for path, who in wanted.items():
        if path.is_relative_to(here) and f"{folder.parent.name}/{folder.name}" != who:
            raise Refused(
                f"{folder.parent.name}/{folder.name}: {who} is yet to begin from its weights (train.init_from). "
                f"Let that save once, or remove it too"
            )


def remove(path: Path) -> None:
    """Remove a file or a folder, which from the first moment on is not there under its name.

    Raises:
        Failed: if it cannot be removed.
    """
    try:
        hidden = path
        if not REMOVED.fullmatch(path.name):
            hidden = path.with_name(f".{path.name.removeprefix('.')}.removed-{secrets.token_hex(4)}")
            path.rename(hidden)
            sync_folder(path.parent)
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden)
        else:
            hidden.unlink()
    except FileNotFoundError:  # somebody else was faster
        return
    except OSError as error:
        raise disk_failure(error, f"remove {path.name}") from error


def size(path: Path) -> int:
    """Bytes that removing a file or a folder gives back, about."""
    if path.is_symlink() or not path.is_dir():
        return _bytes(path)
    return sum(_bytes(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _bytes(file: Path) -> int:
    try:
        found = file.lstat()
    except OSError:
        return 0
    return found.st_size if found.st_nlink == 1 else 0


def idle(run: Run) -> float:
    """Seconds since a run last said where it stands."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (run.state_file, run.finished_file) if file.exists())
    except (OSError, ValueError):
        return 0.0


def changed_since(run: Run, before: Mapping[str, object]) -> bool:
    """Whether a run says something else of itself than before: it may go on, whatever was found then."""
    return run.state() != before


def _own_keep_every(run: Run) -> int:
    found = re.search(r"(?m)^  checkpoint:\n(?:    .*\n)*?    keep_every: (\d+)$", _config_text(run))
    return int(found[1]) if found else 0


def _init_from(run: Run) -> str | None:
    found = re.search(r"(?m)^train:\n(?:  .*\n)*?  init_from: (.+)$", _config_text(run))
    if not found or found[1] in ("null", "~"):
        return None
    import yaml

    value = yaml.safe_load(found[1])
    return value if isinstance(value, str) else None


def _config_text(run: Run) -> str:
    # A typed load of each of many configurations would take seconds.
    try:
        return run.config_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def total(pieces: Sequence[Piece]) -> int:
    return sum(piece.bytes for piece in pieces)
