"""What all viewers of the page share: the list of runs, what Slurm last said, one reader for each run looked at.

Nothing is read while nobody looks. Its methods block and are called in threads.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monitoring import request
from monitoring.findings import Quiet
from monitoring.snapshot import ENDED, Snapshot
from monitoring.tail import last_value
from monitoring.web import views
from monitoring.web.source import Jobs, Row, Source, Sweep, key
from monitoring.web.source import rows as read_rows
from monitoring.web.watched import Gone, Watched

JOBS_EVERY = 5.0  # seconds between two squeues, whoever looks at what
LIST_EVERY = 2.0  # seconds for which the list of folders is new enough
SWEEPS_EVERY = 10.0  # seconds between two looks for sweeps
ENDED_EVERY = 60.0  # seconds between two looks at a run that has ended
KEPT = 300.0  # seconds for which a run that nobody looks at any more stays open
MOST = 24  # runs open at once
LIVE = 16  # runs that have not ended, the newest, that are read closely though nobody opened their page
CLOSELY = 50  # runs that have ended of which the overview shows more than the ends of their files say
PATIENCE = 5.0  # seconds that somebody who collects figures waits
SPARE = 0.4  # seconds of one refresh of the overview that go into that


class Unknown(Exception):
    """There is no run or sweep of that name in the list."""


# Where a run stood when more of it was read: of one that has ended and stands there still nothing new can be said.
_Mark = tuple[str, int | None, int | None]  # state, attempt, step


def _mark(row: Row) -> _Mark:
    return row.state, row.attempt, row.step


class _Details(NamedTuple):
    at: float = 0.0  # of a monotonic clock, seconds
    mark: _Mark | None = None
    found: Mapping[str, Any] = {}


class Hub:
    def __init__(self, source: Source) -> None:
        self.source = source
        self._lock = threading.Lock()  # of all that follows; never held while a run's records are read
        self._folders: dict[str, Path] = {}
        self._listed = self._asked = -1e9
        self._jobs: Jobs = {}
        self._asking = threading.Lock()
        self._watched: dict[Path, Watched] = {}
        self._rows: dict[Path, tuple[float, Row]] = {}
        self._details: dict[Path, _Details] = {}
        self._known_sweeps: Sequence[Sweep] = ()
        self._swept = -1e9
        self._lasts: dict[Path, tuple[_Mark, dict[str, float | None]]] = {}
        self._counting = threading.Lock()

    # -- which runs there are --

    def folder(self, name: str) -> Path:
        """The run's folder, by its name in the list.

        Raises:
            Unknown: if it is in no list. Nothing that was typed is ever joined to a path.
        """
        if (found := self._list().get(name)) is None and (found := self._list(fresh=True).get(name)) is None:
            raise Unknown(name)
        return found

    def _list(self, *, fresh: bool = False) -> dict[str, Path]:
        with self._lock:
            now = time.monotonic()
            if now - self._listed > (0.5 if fresh else LIST_EVERY):
                self._folders = {key(folder): folder for folder in self.source.runs()}
                self._listed = time.monotonic()
            return self._folders

    def watched(self, name: str) -> Watched:
        """The one reader of a run.

        Raises:
            Unknown: see ``folder``.
            Gone: if it cannot be read.
        """
        return self._open(self.folder(name))

    def _open(self, folder: Path) -> Watched:
        with self._lock:
            now = time.monotonic()
            for old in [path for path, each in self._watched.items() if now - each.used > KEPT]:
                del self._watched[old]
            if folder not in self._watched:
                if len(self._watched) >= MOST:
                    del self._watched[min(self._watched, key=lambda path: self._watched[path].used)]
                self._watched[folder] = Watched(folder)
            return self._watched[folder]

    def forget(self, folder: Path) -> None:
        """A run that is gone; should it come back, it is read anew."""
        with self._lock:
            self._watched.pop(folder, None)
            self._rows.pop(folder, None)
            self._details.pop(folder, None)
            self._listed = -1e9

    # -- what Slurm says --

    def jobs(self) -> Jobs:
        """The jobs of all runs that have not ended, asked for at most every few seconds and once for all of them.

        While one thread asks, the others go on with what was said before.
        """
        if self._asking.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked >= JOBS_EVERY:
                    live = [folder for folder in self._list().values() if not self._over(folder)]
                    self._jobs = self.source.jobs(live, self._jobs) if live else {}
                    self._asked = time.monotonic()
            finally:
                self._asking.release()
        return self._jobs

    def _over(self, folder: Path) -> bool:
        """Whether the run had ended when its row was read, which is not long ago: a person may resume it."""
        at, row = self._rows.get(folder, (-math.inf, None))
        return row is not None and row.state in ENDED and time.monotonic() - at <= ENDED_EVERY

    # -- pages --

    def overview(self) -> dict[str, Any]:
        """A section for each run, and one for the sweeps; ``order`` has the runs, newest first."""
        with self._counting:
            runs = self._list()
            rows = self._read_rows(list(runs.values()))
            self._look_closer(rows)
            sweeps = {key(each.folder): each for each in self._sweeps()}
            sections: dict[str, Any] = {"order": [name for name, folder in runs.items() if folder in rows]}
            sections["sweeps"] = [views.sweep_line(name, each, rows) for name, each in sweeps.items()]
            for name, folder in runs.items():
                if (row := rows.get(folder)) is not None:
                    sections[f"run:{name}"] = views.line(name, row, self._details.get(folder, _Details()).found)
            return sections

    def _read_rows(self, folders: Sequence[Path]) -> dict[Path, Row]:
        now, jobs = time.monotonic(), self.jobs()
        old = [folder for folder in folders if not self._over(folder)]
        fresh = {folder: (now, row) for folder, row in zip(old, read_rows(self.source, old, jobs), strict=True)}
        with self._lock:
            known = self._rows | fresh
            self._rows = {folder: known[folder] for folder in folders if folder in known}  # one may be gone by now
            return {folder: row for folder, (_, row) in self._rows.items()}

    def _look_closer(self, rows: Mapping[Path, Row]) -> None:
        """More about some of the runs than the ends of their files say, as far as a part of a second allows."""
        self._details = {folder: each for folder, each in self._details.items() if folder in rows}
        known = {folder: self._details.get(folder, _Details()) for folder in rows}
        live = [folder for folder, row in rows.items() if row.state not in ENDED][:LIVE]
        ended = [folder for folder, row in rows.items() if row.state in ENDED and known[folder].mark != _mark(row)]
        ended = ended[:CLOSELY]
        until = time.monotonic() + SPARE
        # The newest ended ones are read once; of those that live the one whose turn was longest ago comes first.
        for folder in [*sorted(live, key=lambda each: known[each].at), *ended]:
            if time.monotonic() > until:
                return
            try:
                # One reader that others share may have read it a moment ago, before its end.
                watched = Watched(folder) if folder in ended else self._open(folder)
                found = views.details(watched.snapshot(self._jobs.get(folder)))
            except Exception:  # of a run whose files make no sense the overview shows what its row says
                found = {}
            self._details[folder] = _Details(time.monotonic(), _mark(rows[folder]), found)

    def run(self, name: str) -> dict[str, Any]:
        """The sections of one run's page.

        Raises:
            Unknown, Gone: as ``watched``.
        """
        folder = self.folder(name)
        try:
            watched = self._open(folder)
            jobs = self.jobs()
            snapshot = watched.snapshot(jobs.get(folder))
            (row,) = read_rows(self.source, [folder], jobs)
            with self._lock:
                self._rows[folder] = (time.monotonic(), row)
            return views.run(name, snapshot, row, watched.metrics(), self._sweep_of(folder))
        except (Gone, FileNotFoundError) as error:
            self.forget(folder)
            raise Gone(str(error)) from error

    def quieten(self, name: str, key: str, how: Quiet) -> None:
        """Say no more of a finding that there is now, or say it again.

        Raises:
            Unknown: if there is no such run or finding.
            Gone, OSError: if the run cannot be read, or written.
        """
        watched = self.watched(name)
        finding = next((each for each in watched.snapshot().findings if each.key == key), None)
        if finding is None:
            raise Unknown(key)
        self.source.quieten(watched.folder, finding, how)

    def snapshots(self) -> list[Snapshot]:
        """The newest runs that have not ended, for whoever keeps their figures: those that could be read in time."""
        with self._counting:
            rows = self._read_rows(list(self._list().values()))
            live = [folder for folder, row in rows.items() if row.state not in ENDED]
            found, until = list[Snapshot](), time.monotonic() + PATIENCE
            for folder in live[:LIVE]:
                if time.monotonic() < until:
                    with contextlib.suppress(Exception):  # as above
                        found.append(self._open(folder).snapshot(self._jobs.get(folder)))
            return found

    def _sweeps(self) -> Sequence[Sweep]:
        now = time.monotonic()
        if now - self._swept > SWEEPS_EVERY:
            self._known_sweeps, self._swept = self.source.sweeps(), now
        return self._known_sweeps

    def _sweep_of(self, folder: Path) -> str | None:
        stem, dot, number = folder.name.rpartition(".")
        if not (dot and number.isdecimal()):
            return None
        return next((key(each.folder) for each in self._sweeps() if each.folder.name == stem), None)

    def sweep(self, name: str) -> dict[str, Any]:
        """A table of a sweep's runs: what each changes, and what came of it.

        Raises:
            Unknown: if there is none of that name.
        """
        sweep = next((each for each in self._sweeps() if key(each.folder) == name), None)
        if sweep is None:
            raise Unknown(name)
        with self._counting:
            begun = [member.folder for member in sweep.members if member.folder in set(self._list().values())]
            rows = dict(zip(begun, read_rows(self.source, begun, self.jobs()), strict=True))
            members = []
            for member in sweep.members:
                row = rows.get(member.folder)
                last = self._last(member.folder, row) if row else {}
                members.append(views.member(member, row, last, cancelled=sweep.cancelled))
            return {"name": name, "cancelled": sweep.cancelled, "members": members}

    def _last(self, folder: Path, row: Row) -> dict[str, float | None]:
        """The newest losses that a run recorded; one that has ended is read once."""
        mark, found = self._lasts.get(folder, (None, {}))
        if mark != _mark(row) or row.state not in ENDED:
            found = {name: last_value(folder, name) for name in ("loss", "validation_loss")}
            self._lasts[folder] = _mark(row), found
        return found

    def request(self, name: str) -> dict[str, Any]:
        """What was typed, with which code and versions, and every setting by full path.

        Raises:
            Unknown: see ``folder``.
            ValueError: if the configuration cannot be read, in words.
        """
        folder = self.folder(name)
        return {"told": request.told(folder), "settings": self.source.configuration(folder)}

    def differences(self, names: Sequence[str]) -> dict[str, Any]:
        """In which settings the configurations of runs differ: a value for each of ``runs``, None where it has none.

        Runs that are in no list, and those whose configuration cannot be read, are in ``unknown``.

        Raises:
            Unknown: if none of them is in a list.
        """
        found, unknown, there = dict[str, Mapping[str, Any]](), list[str](), False
        for name in names:
            try:
                folder = self.folder(name)
                there = True
                found[name] = self.source.configuration(folder)
            except (Unknown, OSError, ValueError):
                unknown.append(name)
        if not there:
            raise Unknown(unknown[0])
        paths = dict.fromkeys(path for each in found.values() for path in each)
        table = [{"path": path, "values": [each.get(path) for each in found.values()]} for path in paths]
        differing = [row for row in table if any(value != row["values"][0] for value in row["values"])]
        return {"runs": list(found), "unknown": unknown, "differences": differing}
