"""Runs that come from another one: the same request once more, or a new run from a checkpoint.

A fork goes on exactly where nothing of what decides samples and weights has changed: it begins with the checkpoint
itself, so that optimizer, random state and place in the data go on. Otherwise it begins with the weights alone. Where
it came from stands in the manifest (`retry_of`, `forked_from`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc import resume
from hpc.config import Config
from hpc.errors import Failed, Refused
from hpc.resume import Origin
from hpc.runs import Run, read_json, sync_folder
from trainer import checkpoint_folder as checkpoints
from trainer.problems import Problem


@dataclass(frozen=True)
class Fork:
    """From where a run begins."""

    run: str  # name/id
    folder: str  # where it was then
    step: int
    exact: bool  # with everything, and not with the weights alone


def same_places(config: Config, run: Run, new: list[str]) -> None:
    """A new run beside the old one, reading what it read; a name or folders that are typed anew count."""
    typed = {resume.key(word) for word in new}
    name, folder = config.name, config.cluster.runs
    resume.keep_places(config, run, new)
    if "name" in typed:
        config.name = name
    if "cluster.runs" in typed:
        config.cluster.runs = folder


def retried(run: Run) -> dict[str, Any]:
    """What the manifest of a run says that does the same as ``run`` once more."""
    forked = (read_json(run.manifest_file) or {}).get("forked_from")
    again = {"forked_from": forked} if isinstance(forked, dict) else {}
    return {"retry_of": {"run": stem(run), "folder": str(run.folder)}, **again}


def began_from(run: Run, root: Path) -> tuple[Run, int] | None:
    """The checkpoint that a run was begun with, where it was; None for one that was begun without.

    Raises:
        Refused: if it is there no more.
    """
    forked = (read_json(run.manifest_file) or {}).get("forked_from")
    if not isinstance(forked, dict) or not forked.get("exact"):
        return None
    name, _, id = str(forked["run"]).partition("/")
    step = int(forked["step"])
    for place in (run, Run(Path(forked["folder"])), Run(root / name / id)):
        if checkpoints.read_marker(place.checkpoints, step) is not None:
            return place, step
    raise Refused(
        f"{stem(run)} began from step {step} of {forked['run']}, which is there no more. "
        f"To begin from another checkpoint: hpc fork RUN --step N"
    )


def origin(run: Run, step: int | None) -> Origin:
    """The complete checkpoint of a step, or the newest one.

    Raises:
        Refused: if there is none.
    """
    try:
        steps = checkpoints.complete_steps(run.checkpoints)
    except OSError:
        steps = []
    known = f"It has those of steps {', '.join(map(str, steps))}" if steps else "It has none"
    if step is None:
        found = resume.origin(run)
        if found is None:
            raise Refused(f"{stem(run)} has no complete checkpoint. To run the same from the start: hpc retry {run.id}")
        return found
    marker = checkpoints.read_marker(run.checkpoints, step) if step in steps else None
    if marker is None:
        raise Refused(f"--step {step}: {stem(run)} has no complete checkpoint of that step. {known}")
    return Origin(step, marker)


def settle(config: Config, run: Run, saved: Origin, *, exact: bool | None) -> list[Problem]:
    """Have a composed configuration begin from a checkpoint of ``run``. Returns why only its weights can be taken.

    Args:
        exact: go on exactly (True), or with the weights alone (False); None: exactly where that can be.

    Raises:
        Refused: if that cannot be, or there would be nothing left to do.
    """
    problems = resume.others(run, config, saved)
    if exact and problems:
        raise Refused("\n".join(map(str, problems)))
    if exact is False or problems:
        config.train.init_from = str(checkpoints.step_folder(run.checkpoints, saved.step))
        return problems
    config.train.init_from = None
    done = saved.marker["progress"]["tokens"]
    if done >= config.train.tokens:
        allowed = f"step {saved.step} has seen {done} already"
        raise Refused(str(Problem("train.tokens", str(config.train.tokens), allowed, f"train.tokens={2 * done}")))
    return []


def words(typed: list[str], config: Config) -> list[str]:
    """What is typed for a fork alone, so that its own resumption begins where it began."""
    rest = [word for word in typed if resume.key(word) != "train.init_from"]
    path = config.train.init_from
    return rest if path is None else [*rest, f"train.init_from={_quoted(path)}"]


def _quoted(text: str) -> str:
    """A value as Hydra's grammar takes it."""
    return text if re.fullmatch(r"[\w/.+-]+", text, re.ASCII) else "'" + text.replace("'", "\\'") + "'"


def manifest(fork: Fork) -> Mapping[str, Any]:
    return {"forked_from": asdict(fork)}


def take(source: Run, step: int, target: Run) -> None:
    """Have a new run begin with a checkpoint of another: its files by a second name where the file system can.

    No file of a complete checkpoint is ever written to again, so that neither run sees what the other does.

    Raises:
        Failed: if the checkpoint goes away meanwhile.
        OSError: if it cannot be written.
    """
    folder = checkpoints.step_folder(target.checkpoints, step)
    folder.mkdir(parents=True)
    try:
        for file in checkpoints.step_folder(source.checkpoints, step).iterdir():
            _link(file, folder / file.name)
    except FileNotFoundError as error:
        raise _went_away(source, step) from error
    sync_folder(folder)
    sync_folder(target.checkpoints)
    if checkpoints.read_marker(target.checkpoints, step) is None:
        raise _went_away(source, step)


def _went_away(source: Run, step: int) -> Failed:
    return Failed(f"the checkpoint of step {step} of {stem(source)} was removed meanwhile. Try once more")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        shutil.copy2(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def stem(run: Run) -> str:
    return f"{run.name}/{run.id}"
