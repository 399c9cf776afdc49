"""Runs as ``hpc watch`` lists them: a row each from the ends of their files, beside one squeue for all of them.

Nobody who looks waits for Slurm: it is asked by a thread of its own, and what it said last is told with its age. What
takes a whole history, such as goodput, is found by another one, a run after the other.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from hpc import findings, listing, queue, runs
from hpc.config import Launcher
from hpc.departed import Departed
from hpc.errors import Refused
from hpc.listing import ENDED, Row
from hpc.queue import Task
from hpc.runs import Run
from hpc.sweep import Sweep
from monitoring.findings import Finding, Quiet
from monitoring.job import JobState
from monitoring.reader import Reader
from monitoring.recorder import metric
from monitoring.snapshot import Snapshot
from monitoring.tail import recent_steps
from monitoring.terminal.plain import SILENT
from monitoring.terminal.source import Entry
from monitoring.words import duration

ASK_SLURM_EVERY = 5.0  # seconds between two squeues, whatever the refresh of the screen
LIST_EVERY = 5.0  # seconds between two looks at which runs there are, and at those that have ended
READ_EVERY = 1.0  # seconds between two looks at a run that goes on; more where a look at all of them takes long
UNREADABLE = "unreadable"  # state of a run in whose files something is wrong that nobody thought of
JUDGE_EVERY = 60.0  # seconds between two looks at the whole history of a run that goes on


class _Known(NamedTuple):
    """A row that was read, when the run last wrote its state, and from when on it is to be looked at again."""

    entry: Entry
    changed: int  # ns
    due: float  # monotonic seconds


class _Judged(NamedTuple):
    """What takes the whole history of a run."""

    at: float = 0.0  # monotonic seconds
    goodput: float | None = None
    severity: str = ""  # of the worst finding
    finding: str = ""


class Fleet:
    """Runs that are watched together; a ``monitoring.terminal.source.Source``.

    Args:
        title: what they are.
        found: which runs there are, the newest first.
        sweeps: folders of sweeps; their runs that have not begun are listed too.
    """

    def __init__(self, title: str, found: Callable[[], Sequence[Run]], sweeps: Sequence[Path] = ()) -> None:
        self.title = title
        self._find = found
        self._sweeps = sweeps
        self._listed = 0.0
        self._runs: Sequence[Run] = ()
        self._tasks: Sequence[tuple[Entry, Task | None]] = ()
        self._changes: dict[Path, str] = {}  # what tells a run of a sweep from the others
        self._rows: dict[Path, _Known] = {}
        self._read_every = READ_EVERY
        self._jobs: Mapping[Path, JobState] = {}
        self._judged: dict[Path, _Judged] = {}
        self._departed = Departed()
        self._stop = threading.Event()
        self._seen = 0.0  # monotonic; when the list was last asked for
        self._started = False
        self._lost = ""
        self._wanted: list[Run] = []

    # -- what the desk asks ------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """A row for each run."""
        self._seen = now = time.monotonic()
        if not self._listed or now - self._listed >= LIST_EVERY:
            self._listed = now
            try:
                self._runs = self._find()
                sweeps = [Sweep(folder) for folder in self._sweeps]
                self._tasks = [task for sweep in sweeps for task in _not_begun(sweep)]
                self._changes = {folder: text for sweep in sweeps for folder, text in _changes(sweep)}
                self._lost = ""
            except Refused as error:  # a sweep was removed; what was read of its runs stays
                self._lost = str(error)
        found = [self._entry(run) for run in self._runs]
        if (spent := time.monotonic() - now) > 0.05:  # many runs, or a slow file system
            self._read_every = max(READ_EVERY, 20 * spent)
        found += [self._waiting(entry) for entry, _ in self._tasks]
        quiet = (*ENDED, UNREADABLE)
        self._wanted = [run for run, entry in zip(self._runs, found, strict=False) if entry.state not in quiet]
        self._start()
        return found

    def job(self, folder: Path) -> JobState | None:
        """The last that Slurm said of a run's job."""
        if not self._started:
            self._wanted = [Run(folder)]
            self._start()
        return self._jobs.get(folder)

    def quieten(self, folder: Path, finding: Finding, how: Quiet) -> None:
        findings.quieten(Run(folder), finding, how)

    @property
    def trouble(self) -> str:
        """That Slurm is silent, or a sweep is gone."""
        if self._lost:
            return self._lost
        seen = [job.seen for job in list(self._jobs.values()) if job.seen is not None]
        if seen and time.time() - max(seen) > SILENT and self._wanted:
            return f"Slurm has not answered for {duration(time.time() - max(seen))}; states are of then"
        return ""

    def stop(self) -> None:
        self._stop.set()

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _entry(self, run: Run) -> Entry:
        known, now = self._rows.get(run.folder), time.monotonic()
        if known is None or now >= known.due:
            known = self._rows[run.folder] = self._known(run, known, now)
        found = self._judged.get(run.folder, _Judged())
        changes = self._changes.get(run.folder, "")
        return replace(
            known.entry, goodput=found.goodput, severity=found.severity, finding=found.finding, changes=changes
        )

    def _known(self, run: Run, before: _Known | None, now: float) -> _Known:
        """A run read anew, unless it has ended and nothing was written since."""
        changed = _changed(run)
        if before is not None and before.entry.state in ENDED and before.changed == changed:
            return before._replace(due=now + LIST_EVERY)
        try:
            entry = _read(run, self._jobs.get(run.folder))
        except Exception as error:  # whatever is wrong with one run, the others are shown
            why = error.strerror if isinstance(error, OSError) else None
            entry = Entry(run.folder, run.name, run.id, UNREADABLE, why or f"{type(error).__name__}: {error}")
        return _Known(entry, changed, now + (LIST_EVERY if entry.state in ENDED else self._read_every))

    def _waiting(self, entry: Entry) -> Entry:
        entry = replace(entry, changes=self._changes.get(entry.folder, ""))
        job = self._jobs.get(entry.folder)
        if job is None:
            return entry
        if job.over:
            return replace(entry, state="never began", reason="its job is gone")
        return replace(entry, state=job.state.lower(), reason="" if job.reason == "None" else job.reason)

    # -- threads -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for work in (self._ask, self._judge):
                threading.Thread(target=work, daemon=True, name=work.__name__).start()

    def _ask(self) -> None:
        """One squeue a cluster for all runs that go on, every few seconds."""
        while not self._stop.is_set():
            tasks = [task for _, task in self._tasks if task is not None]
            with contextlib.suppress(Exception):  # a folder went away while it was read; the next look may succeed
                self._jobs = queue.states(list(self._wanted), self._jobs, tasks, self._departed)
            self._stop.wait(ASK_SLURM_EVERY)

    def _judge(self) -> None:
        """The goodput and the worst finding of each run, of those that go on now and then again."""
        while not self._stop.wait(0.5):
            run = self._next() if time.monotonic() - self._seen < LIST_EVERY + 5 else None
            if run is None:  # or the list is not looked at, and the run that is has all that there is to be read
                continue
            began = time.monotonic()
            try:
                found = _judged(Reader(run.folder).read(self._jobs.get(run.folder)))
            except Exception:  # of this run nobody will know it
                found = _Judged()
            self._judged[run.folder] = found._replace(at=time.monotonic())
            self._stop.wait(time.monotonic() - began)  # half of the time is for others

    def _next(self) -> Run | None:
        """A run that was never judged, those that go on first; else one that was long ago."""
        live = list(self._wanted)
        for run in (*live, *self._runs):
            if run.folder not in self._judged:
                return run
        old = [run for run in live if time.monotonic() - self._judged[run.folder].at > JUDGE_EVERY]
        return min(old, key=lambda run: self._judged[run.folder].at, default=None)


def _judged(found: Snapshot) -> _Judged:
    worst = next((each for each in found.findings if not each.silenced and each.severity.rank), None)
    said = (worst.severity.value, worst.headline) if worst is not None else ("", "")
    return _Judged(0.0, found.outlook.ettr, *said)


def _changed(run: Run) -> int:
    """When the run's state was last written."""
    try:
        return run.state_file.stat().st_mtime_ns
    except OSError:
        return 0


def _read(run: Run, job: JobState | None) -> Entry:
    row = listing.row(run, job)
    entry = _of_row(run, row)
    if row.attempt is None:
        return entry
    steps = recent_steps(run.attempts / str(row.attempt))
    if not steps:
        return entry
    # A step may be several records, of which not each has the loss.
    entry = replace(entry, loss=next((metric(step["loss"]) for step in steps if "loss" in step), None))
    if row.state in ENDED:
        return entry
    speed = _speed(steps)
    eta = None
    if speed and row.target_tokens:
        eta = max(0.0, row.target_tokens - (row.tokens or 0)) / speed
    return replace(entry, tokens_per_s=speed, eta_s=eta, age=time.time() - steps[0]["t"])


def _of_row(run: Run, row: Row) -> Entry:
    share = min(1.0, (row.tokens or 0) / row.target_tokens) if row.target_tokens else None
    if row.state == "finished":
        share = 1.0
    return Entry(
        folder=run.folder,
        name=row.name,
        id=row.id,
        state=row.state,
        reason=row.reason,
        cluster=row.cluster,
        attempt=row.attempt,
        step=row.step,
        share=share,
    )


def _speed(steps: Sequence[Mapping]) -> float | None:
    """Tokens per second by the median over the newest steps, the newest first."""
    known = [each for each in steps if isinstance(each.get("tokens"), int) and isinstance(each.get("t"), int | float)]
    # A step may be several records, which lie no time apart: its first one stands for it.
    known = [[*records][-1] for _, records in groupby(known, itemgetter("step"))]
    speeds = [
        (late["tokens"] - early["tokens"]) / (late["t"] - early["t"])
        for late, early in pairwise(known)
        if late["t"] > early["t"] and late["tokens"] >= early["tokens"]
    ]
    return statistics.median(speeds) if speeds else None


def _not_begun(sweep: Sweep) -> list[tuple[Entry, Task | None]]:
    """The runs of a sweep that have no folder yet, each with the task that will begin it."""
    jobs = {number: job for array in sweep.arrays if array.job_id for number, job in array.jobs().items()}
    by_slurm = sweep.launcher is Launcher.slurm
    found: list[tuple[Entry, Task | None]] = []
    for number in range(len(sweep.members)):
        run = sweep.run(number)
        if run.config_file.exists():
            continue
        state, reason = ("cancelled", "before it began") if sweep.cancelled else ("pending", "")
        entry = Entry(run.folder, run.name, run.id, state, reason, sweep.cluster, begun=False)
        task = Task(run, jobs[number], sweep) if by_slurm and number in jobs and not sweep.cancelled else None
        found.append((entry, task))
    return found


def _changes(sweep: Sweep) -> Iterator[tuple[Path, str]]:
    """What tells each run of a sweep from the others, in words."""
    for number, member in enumerate(sweep.members):
        try:
            settings = sweep.settings(number)
        except Refused:  # its base cannot be read
            settings = member.changes
        yield sweep.run(number).folder, " ".join(f"{path}={value}" for path, value in settings.items())


def everything(root: Path) -> Fleet:
    """All runs under ``root``."""
    return Fleet(f"in {root}", lambda: list(runs.every(root)))


def some(found: Sequence[Run | Sweep]) -> Fleet:
    """These runs, and those of these sweeps."""
    sweeps = [each.folder for each in found if isinstance(each, Sweep)]
    alone = [each for each in found if isinstance(each, Run)]

    def begun() -> list[Run]:
        of_sweeps = [run for folder in sweeps for run in _runs_of(Sweep(folder)) if run.config_file.exists()]
        return [*alone, *of_sweeps]

    title = f"{found[0].name}/{found[0].id}" if len(found) == 1 else f"{len(found)} runs and sweeps"
    return Fleet(title, begun, sweeps)


def _runs_of(sweep: Sweep) -> list[Run]:
    return [sweep.run(number) for number in range(len(sweep.members))]
