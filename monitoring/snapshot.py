"""One run at one moment, frozen: what its files say, joined with what Slurm says.

``Reader`` reads the files and keeps its place in them between two looks; what Slurm says is handed in.
Everything that shows or judges a run (terminal, page, detectors) is a function of a ``Snapshot``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import layout
from monitoring.findings import Finding
from monitoring.history import History, Series, attempt_row, read_json
from monitoring.outlook import Outlook, outlook
from monitoring.spent import account
from monitoring.tail import TextTail

TRAINING = "jobs.train.Train"  # the kind of job whose configuration says how long it trains
ENDED = ("finished", "failed", "cancelled")
OUTLOOK_EVERY = 5.0  # seconds between two looks at a whole history


@dataclass(frozen=True)
class JobState:
    """What Slurm says of the run's job; times are unix seconds, None where Slurm does not say.

    A job is only described by an answer of Slurm about it. Where Slurm did not answer, the last description
    is handed in again with its old ``seen``, or None if there never was one: silence is no state.
    """

    job_id: str
    state: str  # as squeue spells it: PENDING, RUNNING ...
    reason: str = ""  # why it waits, as squeue spells it
    nodes: str = ""  # in Slurm's notation
    submitted: float | None = None
    started: float | None = None  # of a pending job: when Slurm expects to start it
    ends: float | None = None  # when its time limit is reached
    emulated: bool = False
    seen: float | None = None  # when Slurm said so; None: just now


@dataclass(frozen=True)
class Attempt:
    """One start of all ranks."""

    number: int
    job_id: str | None = None
    nodes: tuple[str, ...] = ()
    world_size: int | None = None
    began: float | None = None
    ended: float | None = None
    cause: str | None = None  # how it ended: finished, time_limit, preemption, node_failure, crash ...
    evidence: str = ""
    resumed_from: int | None = None  # step of the checkpoint it went on from; 0: from the start
    first_step: int | None = None
    last_step: int | None = None
    lost_steps: int = 0  # steps of it that are done again by a later attempt


@dataclass(frozen=True)
class ExpertLoad:
    """Tokens that each expert of a layer was sent in one step."""

    layer: int
    step: int
    tokens: tuple[int, ...]

    @property
    def shares(self) -> np.ndarray:
        """Each expert's load over the fair one, which is 1."""
        total = sum(self.tokens)
        return np.array(self.tokens) * (len(self.tokens) / total) if total else np.zeros(len(self.tokens))


@dataclass(frozen=True)
class Snapshot:
    """One run at one moment. None stands for what is not known."""

    folder: Path
    name: str
    id: str
    now: float  # unix seconds
    state: str = "unknown"  # of state.json: submitting, queued, running, requeued, finished, failed, cancelled
    reason: str = ""
    cluster: str = ""
    emulated: bool = False
    job: JobState | None = None
    job_id: str | None = None
    attempts: tuple[Attempt, ...] = ()
    step: int | None = None
    tokens: int | None = None
    target_tokens: int | None = None
    target_steps: int | None = None
    tokens_per_s: float | None = None  # median over the recent steps of the current attempt
    updated: float | None = None  # when the newest step was recorded
    loss: Series = field(default_factory=lambda: Series(np.empty(0, np.int64), np.empty(0)))
    metrics: Mapping[str, float] = field(default_factory=dict)  # the newest value of each
    experts: tuple[ExpertLoad, ...] = ()  # the newest of each layer, by layer
    outlook: Outlook = field(default_factory=Outlook)  # where the time went, and when the target may be reached
    findings: tuple[Finding, ...] = ()  # the worst first
    log: tuple[str, ...] = ()  # the last lines, safe to print
    log_name: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)  # what FINISHED says
    sample: str = ""  # what the model wrote at the end
    problems: tuple[str, ...] = ()  # what could not be read or was not written

    @property
    def done(self) -> bool:
        """No attempt will follow."""
        return self.state in ENDED

    @property
    def lost_steps(self) -> int:
        return sum(attempt.lost_steps for attempt in self.attempts)

    @property
    def share(self) -> float | None:
        """Tokens consumed over the target, 0 to 1; steps, where only those have one."""
        done, target = (self.tokens, self.target_tokens) if self.target_tokens else (self.step, self.target_steps)
        return min(1.0, (done or 0) / target) if target and target > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left to the token target at the present speed."""
        if self.done or self.target_tokens is None or not self.tokens_per_s:
            return None
        left = max(0.0, (self.target_tokens - (self.tokens or 0)) / self.tokens_per_s)
        return left if math.isfinite(left) else None


class Reader:
    """Makes snapshots of one run, reading only what its files gained since the last one.

    Raises:
        FileNotFoundError: from the constructor, if there is no such folder or it is no run.
    """

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        if not (self.run / layout.CONFIG).is_file():
            raise FileNotFoundError(f"{run} is no run folder: it has no {layout.CONFIG}")
        self._history = History(self.run)
        self._logs: dict[Path, TextTail] = {}
        self._config: dict[str, Any] | None = None
        self._outlook: tuple[tuple[Any, ...], float, Outlook] = ((), -math.inf, Outlook())

    @property
    def history(self) -> History:
        """The records as far as they were read."""
        return self._history

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration; empty where it cannot be read."""
        return self._configuration()

    def read(self, job: JobState | None = None, now: float | None = None) -> Snapshot:
        """The run as it is now.

        Args:
            job: what Slurm says of the run's job.
            now: unix seconds; None: this moment.
        """
        history = self._history
        history.refresh()
        config = self._configuration()
        state = read_json(self.run / layout.STATE) or {}
        summary = read_json(self.run / layout.FINISHED)
        target, target_steps = _target(config, history)
        last = history.last
        log_name, log = self._log()
        now = time.time() if now is None else now
        said = "finished" if summary is not None else str(state.get("state") or "unknown")
        return Snapshot(
            folder=self.run,
            name=str(config.get("name") or self.run.absolute().parent.name),
            id=self.run.absolute().name,
            now=now,
            state=said,
            reason=str(state.get("reason") or ""),
            cluster=str(state.get("cluster") or (config.get("cluster") or {}).get("name") or ""),
            emulated=bool(state.get("emulated") or (job is not None and job.emulated)),
            job=job,
            job_id=None if state.get("job_id") is None else str(state["job_id"]),
            attempts=_attempts(history, finished=summary is not None),
            step=last[0] if last else None,
            tokens=last[1] if last else None,
            target_tokens=target,
            target_steps=target_steps,
            tokens_per_s=history.tokens_per_s(),
            updated=history.updated,
            loss=history.series("loss"),
            metrics=history.latest(),
            experts=tuple(
                ExpertLoad(layer, step, tuple(load)) for layer, (step, load) in sorted(history.experts().items())
            ),
            outlook=self._look(job, said in ENDED, target, now),
            log=log,
            log_name=log_name,
            summary=summary or {},
            sample=_text(self.run / layout.SAMPLE) if summary is not None else "",
            problems=tuple(history.problems()),
        )

    def _look(self, job: JobState | None, over: bool, target: int | None, now: float) -> Outlook:
        """The outlook, which takes the whole history and is therefore made anew only now and then."""
        history = self._history
        key = (len(history.attempts), over, [attempt.info.get("action") for attempt in history.attempts])
        known, made, found = self._outlook
        if known == key and (over or now - made < OUTLOOK_EVERY):
            return found
        manifest = read_json(self.run / layout.MANIFEST) or {}
        asked = [manifest.get("submitted"), *(each.get("time") for each in manifest.get("resumed") or [])]
        hold = (self._configuration().get("cluster") or {}).get("requeue_hold")
        spans = account(
            history,
            [float(t) for t in asked if isinstance(t, int | float)],
            now,
            over=over,
            hold=float(hold) if isinstance(hold, int | float) else 0.0,
        )
        limit = job.ends - job.started if job and job.ends is not None and job.started is not None else math.inf
        left = None if target is None or over else target - (history.last[1] if history.last else 0)
        found = outlook(history, spans, tokens_left=left, slice_s=limit)
        self._outlook = (key, now, found)
        return found

    def _configuration(self) -> dict[str, Any]:
        """The resolved configuration; it never changes once it could be read."""
        if self._config is None:
            import yaml

            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            try:
                value = yaml.load((self.run / layout.CONFIG).read_bytes(), loader)
            except (OSError, yaml.YAMLError):
                return {}
            self._config = value if isinstance(value, dict) else {}
        return self._config

    def _log(self) -> tuple[str, tuple[str, ...]]:
        """(name, last lines) of the newest attempt's rank 0, or of the job where that printed nothing yet."""
        paths = [self.run / layout.JOB_LOG]
        if self._history.attempts:
            paths.insert(0, layout.rank_log(self._history.attempts[-1].folder, 0))
        self._logs = {path: self._logs.get(path) or TextTail(path) for path in paths}
        for path, tail in self._logs.items():
            if lines := tail.read():
                return path.name, lines
        return paths[-1].name, ()


def _attempts(history: History, finished: bool) -> tuple[Attempt, ...]:
    found = []
    for records in history.attempts:
        row = attempt_row(records)
        nodes = row["nodes"]
        row["nodes"] = tuple(str(node) for node in nodes) if isinstance(nodes, list) else (str(nodes),)
        row["job_id"] = None if row["job_id"] is None else str(row["job_id"])
        found.append(Attempt(**row))
    if found and finished and found[-1].cause is None:  # rank 0 says so before the supervisor does
        found[-1] = replace(found[-1], cause="finished")
    return tuple(found)


def _target(config: Mapping[str, Any], history: History) -> tuple[int | None, int | None]:
    """Tokens and steps at which the run is done, of a training as asked for, of another program as it says."""
    if (config.get("job") or {}).get("_target_", TRAINING) != TRAINING:
        events = (event for records in reversed(history.attempts) for event in reversed(records.events))
        said = next((event.get("steps") for event in events if event.get("event") == "target"), None)
        return None, _count(said)
    train = config.get("train") or {}
    target, batch = _count(train.get("tokens")), _count(train.get("batch_tokens"))
    return target, -(-target // batch) if target and batch else None


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _text(path: Path, limit: int = 1 << 14) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace").strip()
    except OSError:
        return ""
