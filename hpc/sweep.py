"""A sweep's folder: one request and what its runs change in it. Each run's folder is written where the run starts.

```
runs/<name>/<sweep>/
  sweep.json        what was typed, each run's changes, the arrays that were submitted
  base.yaml         the resolved configuration that the changes are made in
  code/  entry.pkl  the code of all runs
  submit-<a>.sh     the script of array a
  logs/             what a task of an array printed before it had a run folder
  CANCEL            no run that has not begun shall begin
runs/<name of a run>/<sweep>.<number>/   a run's folder, as any other's
```
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hpc.config import Config, Launcher
from hpc.errors import Refused
from hpc.runs import Run, read_json, sync_folder, typed_config, write_json, write_text
from monitoring.text import clean

FILE = "sweep.json"
FORMAT = 1


@dataclass(frozen=True)
class Member:
    """One run of a sweep: what it is called, what is typed to have it alone, what it changes in the base."""

    name: str
    overrides: list[str]
    changes: dict[str, Any]


@dataclass(frozen=True)
class Array:
    """Some of the runs as a Slurm array, each task of which is so many of them; without Slurm a process takes them in
    turn."""

    runs: list[int]
    script: str
    job_id: str | None = None
    per_task: int = 1

    @property
    def tasks(self) -> int:
        return -(-len(self.runs) // self.per_task)

    def of_task(self, task: int) -> list[int]:
        """The runs that a task has."""
        return self.runs[task * self.per_task : (task + 1) * self.per_task]

    def jobs(self) -> dict[int, str]:
        """The job of each run, by number of the run, as Slurm's programs take it."""
        return {number: f"{self.job_id}_{place // self.per_task}" for place, number in enumerate(self.runs)}


@dataclass(frozen=True)
class Submitter:
    """A process that hands the arrays of a sweep to the cluster. It is written down for as long as that takes."""

    host: str
    pid: int
    began: float  # unix time

    @classmethod
    def me(cls) -> Submitter:
        return cls(socket.gethostname(), os.getpid(), time.time())

    def lives(self) -> bool:
        """Whether it goes on; on another machine it is given ten minutes."""
        from hpc.processes import process_lives

        if self.host != socket.gethostname():
            return time.time() < self.began + 600
        return self.pid != os.getpid() and process_lives(self.pid, self.began)


@dataclass(frozen=True)
class Sweep:
    """A sweep, by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        return clean(self.folder.parent.name)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def base_file(self) -> Path:
        return self.folder / "base.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def pickle(self) -> Path:
        """What submitit's entry on the ranks of every run reads."""
        return self.folder / "entry.pkl"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def cancel_file(self) -> Path:
        return self.folder / "CANCEL"

    @property
    def cancelled(self) -> bool:
        return self.cancel_file.exists()

    @cached_property
    def _written(self) -> dict[str, Any]:
        found = read_json(self.folder / FILE)
        if found is None:
            raise Refused(f"{self.folder} is no folder of a sweep: its {FILE} cannot be read. Try: hpc sweep status")
        if found.get("format") != FORMAT:
            raise Refused(f"{self.folder / FILE} has format {found.get('format')}; this version of hpc reads {FORMAT}")
        return found

    @property
    def typed(self) -> list[str]:
        return self._written["typed"]

    @property
    def cluster(self) -> str:
        return self._written["cluster"]

    @property
    def launcher(self) -> Launcher:
        return Launcher[self._written["launcher"]]

    @property
    def emulated(self) -> bool:
        return self._written["emulated"]

    @property
    def host(self) -> str:
        """The machine that it was submitted from; without Slurm, it is there."""
        return self._written["host"]

    @property
    def submitter(self) -> Submitter | None:
        """Who is handing runs to the cluster, or was when it died."""
        found = self._written.get("submitter")
        return Submitter(**found) if found else None

    @property
    def search(self) -> dict[str, Any] | None:
        """What ``hpc.search.Space`` is of, where the values are proposed by Optuna."""
        return self._written.get("search")

    @property
    def trials(self) -> list[int]:
        """Optuna's trial of each run of a search."""
        return self._written["trials"]

    @cached_property
    def members(self) -> list[Member]:
        return [Member(**each) for each in self._written["members"]]

    @cached_property
    def arrays(self) -> list[Array]:
        return [Array(**each) for each in self._written["arrays"]]

    def write(self, **changed: Any) -> Sweep:
        """The sweep with other contents of its file; ``Member``, ``Array`` and ``Submitter`` go in as they are."""
        plain = {
            key: [asdict(each) for each in value] if key in ("members", "arrays") else value
            for key, value in changed.items()
        }
        if isinstance(who := changed.get("submitter"), Submitter):
            plain["submitter"] = asdict(who)
        write_json(self.folder / FILE, {**(read_json(self.folder / FILE) or {"format": FORMAT}), **plain})
        return Sweep(self.folder)

    def run(self, number: int) -> Run:
        """The run of that number, whether it has begun or not."""
        width = self._written.get("width") or len(str(len(self.members) - 1))
        return Run(self.folder.parent.parent / self.members[number].name / f"{self.id}.{number:0{width}}")

    def base(self) -> Config:
        """The configuration that the runs change."""
        from omegaconf import OmegaConf

        return typed_config(OmegaConf.load(self.base_file), self.base_file)

    def config(self, number: int) -> Config:
        """The configuration of a run."""
        return typed_config(self._tree(number), self.base_file)

    def _tree(self, number: int) -> Any:
        from omegaconf import OmegaConf

        tree = OmegaConf.load(self.base_file)
        for path, value in self.members[number].changes.items():
            OmegaConf.update(tree, path, value, merge=False, force_add=True)
        return tree

    def settings(self, number: int) -> dict[str, Any]:
        """What tells a run from the others: its value of all that any of them changes, the base's where it changes
        nothing. The run's name is left out, which is told wherever the run is.

        Raises:
            Refused: if the base cannot be read.
        """
        changed, base = self.members[number].changes, _read_base(self.base_file)
        return {path: _value(changed, base, path) for path in self._changed}

    @cached_property
    def _changed(self) -> list[str]:
        return list(dict.fromkeys(path for member in self.members for path in member.changes if path != "name"))

    def begin(self, number: int, job_id: str | None) -> tuple[Run, Config]:
        """Write a run's folder, whole or not at all, where it is not there yet.

        Raises:
            OSError: if it cannot be written.
        """
        run = self.run(number)
        if run.config_file.exists():
            return run, run.config()
        parent = run.folder.parent
        tmp = parent / f".{run.id}.{secrets.token_hex(4)}.tmp"
        try:
            tmp.mkdir(parents=True)
            config = self._fill(Run(tmp), run.folder, number, job_id)
            tmp.rename(run.folder)
            sync_folder(parent)
        except OSError:
            shutil.rmtree(tmp, ignore_errors=True)
            if not run.config_file.exists():
                raise
            return run, run.config()  # another node's task of the same number was faster
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        return run, config

    def _fill(self, tmp: Run, folder: Path, number: int, job_id: str | None) -> Config:
        from omegaconf import OmegaConf

        from hpc import script
        from hpc.request import resolve

        member, tree = self.members[number], self._tree(number)
        config = typed_config(tree, self.base_file)
        write_text(tmp.overrides_file, OmegaConf.to_yaml(OmegaConf.create(member.overrides)))
        manifest = read_json(self.manifest_file) or {}
        place = {"sweep": str(self.folder), "number": number} | ({"job_id": job_id} if job_id else {})
        write_json(tmp.manifest_file, {**manifest, "command": ["hpc", "submit", *member.overrides], **place})
        tmp.code.symlink_to(os.path.relpath(self.code, folder))
        tmp.attempts.mkdir()
        tmp.checkpoints.mkdir()
        write_text(tmp.script, script.render(config, resolve(config), folder, emulated=self.emulated))
        shutil.copyfile(self.pickle, tmp.pickle)
        tmp.set_state("queued", cluster=self.cluster, emulated=self.emulated, reason="")
        write_text(tmp.config_file, OmegaConf.to_yaml(tree))
        return config


@lru_cache(maxsize=256)  # it is written once, and is asked for again and again by whoever watches sweeps
def _read_base(file: Path) -> Any:
    import yaml

    try:
        return yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused(f"{file} cannot be read: {error}. Without it nobody knows what the runs change") from error


def _value(changed: Mapping[str, Any], base: Any, path: str) -> Any:
    """The value of a run; one that changes a whole part has all that is in that part from there."""
    above = [each for each in changed if each == path or path.startswith(f"{each}.")]
    if above:
        nearest = max(above, key=len)
        base, path = changed[nearest], path[len(nearest) + 1 :]
    for key in path.split(".") if path else ():
        base = base.get(key) if isinstance(base, Mapping) else None
    return base


def changes(base: Any, other: Any, prefix: str = "") -> dict[str, Any]:
    """What turns one configuration into another: values by path, as they stand in YAML.

    Parts that are the same object are not looked into, which makes thousands of combinations cheap.
    """
    if base is other:
        return {}
    if is_dataclass(base) and type(base) is type(other):
        found: dict[str, Any] = {}
        for field in fields(base):
            path = f"{prefix}.{field.name}" if prefix else field.name
            found.update(changes(getattr(base, field.name), getattr(other, field.name), path))
        return found
    return {} if type(base) is type(other) and base == other else {prefix: _plain(other)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def every(root: Path) -> Sequence[Sweep]:
    """All sweeps under ``root``, newest first."""
    found = [Sweep(file.parent) for file in root.glob(f"*/*/{FILE}") if not file.parent.name.startswith(".")]
    return sorted(found, key=lambda sweep: sweep.id, reverse=True)


def find(root: Path, text: str) -> Sweep:
    """The sweep that a person means: its folder, its id or the beginning of it, its name (the newest), or "last".

    Raises:
        Refused: if there is none, or several.
    """
    if (Path(text) / FILE).is_file():
        return Sweep(Path(text).resolve())
    sweeps = every(root)
    if text in ("last", "latest") and sweeps:
        return sweeps[0]
    named = [s for s in sweeps if s.name == text][:1]
    found = named or [s for s in sweeps if s.id.startswith(text) or f"{s.name}/{s.id}".startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(f"{text!r} begins the ids of {len(found)} sweeps: {', '.join(s.id for s in found[:5])}")
    known = ", ".join(f"{s.name}/{s.id}" for s in sweeps[:5]) or "none; start one with: hpc submit -m KEY=1,2"
    raise Refused(f"no sweep {text!r} under {root.resolve()}. There are: {known}")


def of_run(run: Run) -> Path | None:
    """The folder of the sweep that a run belongs to, also where both were moved together."""
    found = (read_json(run.manifest_file) or {}).get("sweep")
    if not isinstance(found, str):
        return None
    beside = run.folder.parent.parent / Path(found).parent.name / Path(found).name
    return beside if (beside / FILE).is_file() else Path(found)
