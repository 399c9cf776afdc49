"""What is written down about an emulated cluster: ``<HPC_HOME>/emulated/<name>/emulation.json``.

The directory appears with this file in it, by one rename, before any process is started, and goes away by one
rename after all have ended. What is in it tells ``down`` what to end; what it does not tell yet (``up`` died
between starting a daemon and noting it) is found by the marks that ``processes`` knows.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.emulate.processes import Process, alive, boot_id
from hpc.runs import read_json, sync_folder, write_json

FILE = "emulation.json"
MUNGED, MARIADBD, SLURMDBD, SLURMCTLD = "munged", "mariadbd", "slurmdbd", "slurmctld"
_OF_NO_NODE = (MUNGED, MARIADBD, SLURMDBD, SLURMCTLD)


def root() -> Path:
    """Where emulated clusters live: one directory each, of one user on one machine."""
    return (Path(os.environ.get("HPC_HOME") or "~/.hpc").expanduser() / "emulated").resolve()


@dataclass
class State:
    """The content of emulation.json."""

    cluster: str  # its name
    nodes: list[str]
    options: dict[str, Any]  # of slurm_conf.Options
    node_types: dict[str, dict[str, Any]]  # name -> count and names, as emulated
    preemptible: str | None = None  # the partition that --preemptible added
    up: bool = False  # False until every node was seen idle once
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=boot_id)
    began: float = field(default_factory=time.time)
    controller_port: int = 0
    node_port: int = 0
    accounting_port: int = 0  # of slurmdbd; 0 without accounting
    daemons: dict[str, Process] = field(default_factory=dict)  # by program; slurmd by its node's name

    @property
    def here(self) -> bool:
        """Whether this is the machine, in the boot, that it was started on: only then do its pids mean anything."""
        return self.host == socket.gethostname() and self.boot == boot_id()

    @property
    def elsewhere(self) -> bool:
        """Whether it may be alive on another machine, which shares this directory by a network file system."""
        return self.host != socket.gethostname()

    def noted(self) -> list[tuple[Process, str | None]]:
        """The daemons that were started in this boot, each with its node."""
        if not self.here:
            return []
        return [(process, None if role in _OF_NO_NODE else role) for role, process in self.daemons.items()]

    def controller_alive(self) -> bool:
        """Whether the controller that was noted runs."""
        process = self.daemons.get(SLURMCTLD)
        return self.here and process is not None and alive(process)


def read(directory: Path) -> State | None:
    """The state in a directory; None where there is none, or one of another version of this file."""
    value = read_json(directory / FILE)
    try:
        state = State(**(value or {}))
        state.daemons = {role: Process(*pair) for role, pair in state.daemons.items()}
    except (TypeError, AttributeError):
        return None
    return state


def write(directory: Path, state: State) -> None:
    """Replace the state."""
    write_json(directory / FILE, dataclasses.asdict(state))


def create(directory: Path, state: State) -> None:
    """Make the directory with the state in it, at once.

    Raises:
        OSError: where it cannot be written.
    """
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir(mode=0o700)
        write(fresh, state)
        fresh.rename(directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(directory.parent)


def remove(directory: Path) -> None:
    """Take the directory away, at once; what a crash leaves of it goes with the next removal."""
    if directory.exists():
        directory.rename(directory.with_name(f".{directory.name}.{secrets.token_hex(4)}"))
    for rest in directory.parent.glob(f".{directory.name}.*"):
        shutil.rmtree(rest, ignore_errors=True)


def directories() -> list[Path]:
    """Every emulation's directory, alive or dead."""
    try:
        return sorted(d for d in root().iterdir() if d.is_dir() and not d.name.startswith(".") and (d / FILE).exists())
    except OSError:
        return []
