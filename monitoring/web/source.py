"""What the pages are made from, handed in by the command: the page itself knows neither Slurm nor configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monitoring.snapshot import JobState

Jobs = Mapping[Path, JobState]


class Row(Protocol):
    """A run and where it stands, from the ends of its files alone."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def cluster(self) -> str: ...
    @property
    def emulated(self) -> bool: ...
    @property
    def attempt(self) -> int | None: ...
    @property
    def step(self) -> int | None: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def target_tokens(self) -> int | None: ...
    @property
    def loss(self) -> float | str | None: ...
    @property
    def tokens_per_s(self) -> float | None: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its folder, there or not yet, and what it changes."""

    number: int
    name: str
    folder: Path
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    folder: Path
    cancelled: bool
    members: Sequence[Member]


@dataclass(frozen=True)
class Source:
    """All of these may block, and are called in threads, one at a time."""

    runs: Callable[[], Sequence[Path]]  # folders, newest first
    rows: Callable[[Sequence[Path], Jobs], Sequence[Row]]
    jobs: Callable[[Sequence[Path], Jobs], Jobs]  # asks Slurm, once for all; the second is what it said before
    sweeps: Callable[[], Sequence[Sweep]]
    configuration: Callable[[Path], Mapping[str, Any]]  # of a run, by full path
    silence: Callable[
        [Path, str, bool], None
    ]  # a finding of a run, by its key, or have it told again; ValueError: why not


def key(folder: Path) -> str:
    """What a run or a sweep is called in an address. It is looked up among those that there are, never opened."""
    from monitoring.web.encode import text

    return text(f"{folder.parent.name}/{folder.name}")
