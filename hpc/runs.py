"""The run folder: its names, and the few ways to write into it so that nothing is ever half there.

Names that the monitor reads too are spelled in ``monitoring/layout.py``.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.errors import Failed, Refused
from monitoring import layout
from monitoring.disk import sync_folder
from monitoring.text import clean, printable

if TYPE_CHECKING:
    from hpc.config import Config

# Inside attempts/<k>/, beside the records.
ADDRESS = "address.json"  # where rank 0 listens
READY = "READY"  # all ranks joined and handle the stop signals
# Why no further attempt would do better, in words; the second for a mistake in the request.
DIVERGED, REFUSED = "DIVERGED", "REFUSED"
UNFIT = "UNFIT"  # which nodes were found unfit before training, and by what


def pair_passed(turn: int, node: int) -> str:
    """The marker of a node, by its index, that could exchange something with its partner of a turn."""
    return f"pair-{turn}-{node}.ok"


IMPORTED = "imported"  # what stands for the job in the configuration of a run that another program made

# A run's name becomes a folder, a job name and a part of log lines.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of a text."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with tmp.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of a JSON document."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON document, or None where there is none (yet) or it cannot be read as one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Run:
    """One effort in one folder, over as many Slurm jobs as it needs."""

    folder: Path

    @property
    def name(self) -> str:
        """Its folder's, safe to print: people move runs to folders of any name."""
        return clean(self.folder.parent.name)

    @property
    def id(self) -> str:
        """Likewise."""
        return clean(self.folder.name)

    @property
    def config_file(self) -> Path:
        return self.folder / layout.CONFIG

    @property
    def overrides_file(self) -> Path:
        return self.folder / "overrides.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def patch_file(self) -> Path:
        return self.folder / "dirty.patch"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def script(self) -> Path:
        return self.folder / "submit.sh"

    @property
    def pickle(self) -> Path:
        return self.folder / "entry.pkl"

    @property
    def log(self) -> Path:
        """What the supervisor printed, all attempts, appended."""
        return self.folder / layout.JOB_LOG

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def sample(self) -> Path:
        return self.folder / layout.SAMPLE

    @property
    def evaluations(self) -> Path:
        """What was measured of its checkpoints, by step."""
        return self.folder / layout.EVALUATIONS

    @property
    def state_file(self) -> Path:
        return self.folder / layout.STATE

    @property
    def finished_file(self) -> Path:
        return self.folder / layout.FINISHED

    @property
    def notes_file(self) -> Path:
        """Tags and a note that people wrote on the run."""
        return self.folder / "notes.json"

    @property
    def cancel_file(self) -> Path:
        return self.folder / "CANCEL"

    @property
    def finished(self) -> bool:
        """The work is done. Only this file says so, never Slurm's COMPLETED."""
        return self.finished_file.exists()

    @property
    def cancelled(self) -> bool:
        return self.cancel_file.exists()

    def state(self) -> dict[str, Any]:
        """What state.json says: state, reason, job_id, cluster, emulated, updated. Text where it belongs, printable."""
        found = read_json(self.state_file) or {}
        texts = {key: found.get(key) for key in ("state", "reason", "job_id", "cluster")}
        safe = {key: printable(value) for key, value in texts.items() if isinstance(value, str)}
        return {key: safe.get(key, value) for key, value in found.items() if key in safe or key not in texts}

    def set_state(self, state: str, **fields: Any) -> None:
        """Replace state.json; fields that are not given keep their values.

        Args:
            state: queued, running, requeued, finished, failed or cancelled.
        """
        old = self.state()
        write_json(self.state_file, {**old, **fields, "state": state, "updated": time.time()})

    @property
    def job_id(self) -> str | None:
        """The newest job: as the supervisor said, or before it ran, as the submitting command did."""
        return self.state().get("job_id") or self._submitted("job_id")

    @property
    def cluster(self) -> str:
        return self.state().get("cluster") or self._submitted("cluster") or ""

    @property
    def emulated(self) -> bool:
        """Whether the run was submitted to an emulated cluster."""
        return bool(self.state().get("emulated", (read_json(self.manifest_file) or {}).get("emulated")))

    @property
    def host(self) -> str:
        """The machine that it was submitted from; a run without Slurm lives there."""
        return self._submitted("host") or ""

    def _submitted(self, key: str) -> str | None:
        value = (read_json(self.manifest_file) or {}).get(key)
        return printable(value) if isinstance(value, str) else None

    def config(self) -> Config:
        """The resolved configuration that was submitted."""
        return load_config(self.folder)


def load_config(folder: Path) -> Config:
    """The resolved configuration of the run in ``folder``, as typed dataclasses.

    Raises:
        Refused: if ``folder`` is no run folder, or was written by another version.
    """
    file = Run(folder).config_file
    try:
        status = file.stat()
    except OSError:
        raise Refused(f"{folder} is no run folder: it has no config.yaml. Runs are listed by: hpc status") from None
    # A rank asks in several places, and each reading takes as long as starting Python.
    return copy.deepcopy(_load_config(file, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=4)
def _load_config(file: Path, *version: int) -> Config:
    from omegaconf import OmegaConf

    try:
        given = OmegaConf.load(file)
    except ValueError as error:
        raise Refused(f"{file} is not a configuration of this version of hpc: {error}") from error
    return typed_config(given, file)


def typed_config(given: Any, file: Path) -> Config:
    """A resolved configuration as it was read from ``file``, as typed dataclasses.

    Raises:
        Refused: if it was written by another version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from hpc.config import Config, job_schema

    if OmegaConf.select(given, "job._target_") == IMPORTED:
        raise Refused(
            f"{file.parent.name} was imported: it can be looked at, compared and exported, and not be started"
        )
    try:
        schema = OmegaConf.structured(Config)
        schema.job = OmegaConf.structured(job_schema(str(OmegaConf.select(given, "job._target_"))))
        config = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except (OmegaConfBaseException, ValueError) as error:
        raise Refused(f"{file} is not a configuration of this version of hpc: {error}") from error
    assert isinstance(config, Config)
    return config


def mark_finished(folder: Path, **summary: Any) -> None:
    """Write the marker that ends the run; ``summary`` is kept in it (step, tokens, losses ...)."""
    write_json(Run(folder).finished_file, {**summary, "finished": time.time()})


def new_id(now: float | None = None) -> str:
    """A run id that sorts by time and does not collide: 20260131-235959-1f2e."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + "-" + secrets.token_hex(2)


def submitted(run: Run) -> float:
    """When a run was submitted, as its id says: unix time. Of a folder of another name, when it was written."""
    try:
        return time.mktime(time.strptime(run.id[:15], "%Y%m%d-%H%M%S"))
    except (ValueError, OverflowError):
        try:
            return run.config_file.stat().st_mtime
        except OSError:  # removed just now
            return 0.0


def every(root: Path) -> Iterator[Run]:
    """All runs under ``root``, newest first."""
    found = [Run(file.parent) for file in root.glob("*/*/config.yaml") if not file.parent.name.startswith(".")]
    yield from sorted(found, key=lambda run: run.id, reverse=True)


def find(root: Path, text: str) -> Run:
    """The run that a person means by ``text``: a folder, an id or its beginning, a name (its newest), or "last".

    Raises:
        Refused: if there is none, or several ids begin with ``text``.
    """
    path = Path(text)
    if Run(path).config_file.is_file():
        return Run(path.resolve())
    runs = list(every(root))
    if text in ("last", "latest") and runs:
        return runs[0]
    by_id = [run for run in runs if run.id.startswith(text) or f"{run.name}/{run.id}".startswith(text)]
    exact = [run for run in runs if text in (run.id, f"{run.name}/{run.id}")]
    by_name = [run for run in runs if run.name == text]
    if exact or by_name:
        return (exact or by_name)[0]
    if len(by_id) == 1:
        return by_id[0]
    if by_id and all(run.id.startswith(f"{text.rpartition('/')[2]}.") for run in by_id):
        raise Refused(
            f"{text} is a sweep of {len(by_id)} runs so far. Look: hpc sweep status {by_id[0].id.split('.')[0]}"
        )
    if by_id:
        several = ", ".join(run.id for run in by_id[:5])
        raise Refused(f"{text!r} begins the ids of {len(by_id)} runs: {several}. Type more of the id.")
    import difflib

    known = [run.id for run in runs] + sorted({run.name for run in runs})
    near = difflib.get_close_matches(text, known, 1, 0.5)
    hint = f"Nearest: {near[0]}." if near else "Runs are listed by: hpc status"
    raise Refused(f"no run {text!r} under {root.resolve()}. {hint}")


def root() -> Path:
    """Where runs are looked for when only a name or an id is given: $HPC_RUNS, or ./runs."""
    return Path(os.environ.get("HPC_RUNS", "runs"))


def count(text: str) -> int:
    """A number of things as typed; ValueError if it is none (for argparse)."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def duration(text: str) -> float:
    """A length of time as typed, such as 90m, 12h, 2d or 3w, in seconds; ValueError if it is none (for argparse)."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]


def disk_failure(error: OSError, doing: str) -> Failed:
    """An OSError as something a person can act on."""
    import errno

    why = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission is denied",
    }.get(error.errno or 0, error.strerror or str(error))
    where = f" at {error.filename}" if error.filename else ""
    return Failed(
        f"could not {doing}{where}: {why}. Make room, or choose another place with cluster.runs=DIR or $HPC_RUNS."
    )
