"""Runs in the formats of other programs, one module a format. Nothing here changes a run."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

from monitoring.export.increments import Cursor, Increment
from monitoring.history import History

FORMATS = ("tensorboard", "wandb", "parquet", "csv")  # of a run's curve; openmetrics is of its present state


class Missing(Exception):
    """A format needs a package that is not installed; says what to type."""


@dataclass(frozen=True)
class About:
    """What an export says of a run beside its records."""

    name: str
    id: str
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved
    changed: Mapping[str, Any] = field(default_factory=dict)  # what tells it from others: overrides, a sweep's values
    tags: tuple[str, ...] = ()
    note: str = ""
    group: str = ""  # the sweep it belongs to


class Format(Protocol):
    """One run in one format."""

    appends_only: bool  # what was exported cannot be taken back: ``restart`` begins anew

    def take(self, found: Increment, history: History) -> None:
        """Append what is new, take back what was lost."""
        ...

    def restart(self) -> None:
        """Forget everything exported so far."""
        ...

    def close(self, history: History, state: str) -> None:
        """Write what is written last. ``state``: of the run, such as finished or running."""
        ...


class Export:
    """One run exported into a folder; ``look`` as often as wanted, then ``close``.

    Raises:
        Missing: from the constructor, if the format needs a package that is not there.
    """

    def __init__(self, to: str, folder: Path, run: Path, about: About, *, lost: bool = False) -> None:
        make: Callable[..., Format] = import_module(f"monitoring.export.{to}").make
        self.history = History(run)
        self.format = make(folder, about, lost)
        self._cursor = Cursor()

    @property
    def steps(self) -> int:
        """On the exported curve by now."""
        return self._cursor.rows

    def look(self, *, over: bool) -> int:
        """Export what was recorded since the last look. Returns the number of steps.

        Args:
            over: the run has ended, nothing more will be recorded.
        """
        self.history.refresh()
        if not self.history.run.is_dir():
            return 0  # deleted, and perhaps while it was read: what was exported stays
        found = self._cursor.take(self.history, over=over)
        if found.back_to is not None and self.format.appends_only:
            self.format.restart()
            self._cursor = Cursor()
            found = self._cursor.take(self.history, over=over)
        if found:
            self.format.take(found, self.history)
        return sum(len(each.steps) for each in found.chunks)

    def close(self, state: str) -> None:
        self.format.close(self.history, state)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file written under another name, which takes its name when it is whole. It may be left open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{secrets.token_hex(6)}.tmp")  # without the word by which TensorBoard finds its files
    file = tmp.open("w+b")
    try:
        yield file
        if not file.closed:
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
    except BaseException:
        file.close()
        tmp.unlink(missing_ok=True)
        raise


def needs(package: str, extra: str) -> Any:
    """A package that not everybody has.

    Raises:
        Missing: if it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise Missing(f"the package {package} is needed and not installed. Type: pip install 'hpc[{extra}]'") from error
