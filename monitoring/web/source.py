"""What the pages are made from, handed in by the command: the page itself knows neither Slurm nor configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monitoring.findings import Finding, Quiet
from monitoring.job import JobState

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
class Unreadable:
    """The row of a run whose files make no sense, or may not be read."""

    reason: str
    state: str = "unknown"
    cluster: str = ""
    emulated: bool = False
    attempt: int | None = None
    step: int | None = None
    tokens: int | None = None
    target_tokens: int | None = None
    loss: float | str | None = None
    tokens_per_s: float | None = None
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its folder, there or not yet, and its value of all that any of them changes."""

    number: int
    name: str
    folder: Path
    settings: Mapping[str, Any]


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
    configuration: Callable[[Path], Mapping[str, Any]]  # of a run, by full path; ValueError: why it cannot be read
    quieten: Callable[[Path, Finding, Quiet], None]  # say no more of a finding of a run, or say it again


def rows(source: Source, folders: Sequence[Path], jobs: Jobs) -> Sequence[Row]:
    """A row for each run, whatever is wrong with some of them."""
    try:
        return source.rows(folders, jobs)
    except Exception:  # of one of them: which, is found out by asking for each
        return [_row(source, folder, jobs) for folder in folders]


def _row(source: Source, folder: Path, jobs: Jobs) -> Row:
    try:
        return source.rows([folder], jobs)[0]
    except Exception as error:
        return Unreadable(f"its files cannot be read: {type(error).__name__}: {error}")


def key(folder: Path) -> str:
    """What a run or a sweep is called in an address. It is looked up among those that there are, never opened."""
    from monitoring.web.encode import text

    return text(f"{folder.parent.name}/{folder.name}")
