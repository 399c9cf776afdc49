"""Reads the files of a run, and keeps its place in them between two looks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monitoring import fields, layout
from monitoring.detectors import detect
from monitoring.evidence import TRAINING, Gathering
from monitoring.findings import Finding, silenced
from monitoring.history import History, attempt_row, read_json
from monitoring.job import NO_JOB, JobState
from monitoring.outlook import Outlook, outlook
from monitoring.snapshot import ENDED, GONE, Attempt, ExpertLoad, Snapshot
from monitoring.spent import account
from monitoring.tail import TextTail

OUTLOOK_EVERY = 5.0  # seconds between two looks at a whole history
JUDGE_EVERY = 10.0  # seconds between two judgements


class Reader:
    """Makes snapshots of one run, reading only what its files gained since the last one.

    Raises:
        FileNotFoundError: from the constructor, if there is no such folder or it is no run.
    """

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        if not (self.run / layout.CONFIG).is_file():
            raise FileNotFoundError(f"{run} is no run folder: it has no {layout.CONFIG}")
        self.history = History(self.run)
        self._logs: dict[Path, TextTail] = {}
        self._config: dict[str, Any] | None = None
        self._outlook: tuple[tuple[Any, ...], float, Outlook] = ((), -math.inf, Outlook())
        self._gathering = Gathering(self.run)
        self._judged: tuple[tuple[str, str | None] | None, float] = None, -math.inf  # the states judged, and when
        self._findings: tuple[Finding, ...] = ()

    def read(self, job: JobState | None = None, now: float | None = None) -> Snapshot:
        """The run as it is now.

        Args:
            job: what Slurm says of the run's job.
            now: unix seconds; None: this moment.
        """
        history = self.history
        history.refresh()
        config = self.config
        state = read_json(self.run / layout.STATE) or {}
        summary = read_json(self.run / layout.FINISHED)
        target, target_steps = _target(config, history)
        last = history.last
        log_name, log = self._log()
        now = time.time() if now is None else now
        said, reason = _said(state, job, finished=summary is not None)
        found = Snapshot(
            folder=self.run,
            name=str(config.get("name") or self.run.absolute().parent.name),
            id=self.run.absolute().name,
            now=now,
            state=said,
            reason=reason,
            cluster=str(state.get("cluster") or fields.part(config, "cluster").get("name") or ""),
            emulated=bool(state.get("emulated") or (job is not None and job.emulated)),
            job=job,
            job_id=fields.text(state.get("job_id")),
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
            outlook=self._look(job, said in (*ENDED, GONE), target, now),
            log=log,
            log_name=log_name,
            summary=summary or {},
            sample=_text(self.run / layout.SAMPLE) if summary is not None else "",
            problems=tuple(history.problems()),
        )
        return replace(found, findings=self._judge(found))

    def _judge(self, snapshot: Snapshot) -> tuple[Finding, ...]:
        """The findings, which take every curve and every rank's newest words: made anew only now and then.

        And at once when the run or its job changes its state: much of what is wrong with one that runs is not then.
        """
        states = snapshot.state, snapshot.job.state if snapshot.job is not None else None
        if states != self._judged[0] or not 0 <= snapshot.now - self._judged[1] < JUDGE_EVERY:
            evidence = self._gathering.gather(snapshot, self.history, self.config)
            self._findings, self._judged = tuple(detect(evidence)), (states, snapshot.now)
        known = read_json(self.run / layout.SILENCED) or {}
        return tuple(silenced(self._findings, known, snapshot.now))

    def _look(self, job: JobState | None, over: bool, target: int | None, now: float) -> Outlook:
        """The outlook, which takes the whole history and is therefore made anew only now and then."""
        history = self.history
        key = (len(history.attempts), over, [attempt.info.get("action") for attempt in history.attempts])
        known, made, found = self._outlook
        if known == key and (over or now - made < OUTLOOK_EVERY):
            return found
        manifest = read_json(self.run / layout.MANIFEST) or {}
        asked = [manifest.get("submitted"), *_times(manifest.get("resumed"))]
        hold = fields.seconds(fields.part(self.config, "cluster").get("requeue_hold"))
        spans = account(
            history,
            [t for t in map(fields.seconds, asked) if t is not None],
            now,
            over=over,
            hold=hold or 0.0,
        )
        limit = job.ends - job.started if job and job.ends is not None and job.started is not None else math.inf
        left = None if target is None or over else target - (history.last[1] if history.last else 0)
        found = outlook(history, spans, tokens_left=left, slice_s=limit)
        self._outlook = (key, now, found)
        return found

    @property
    def config(self) -> dict[str, Any]:
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
        if self.history.attempts:
            paths.insert(0, layout.rank_log(self.history.attempts[-1].folder, 0))
        self._logs = {path: self._logs.get(path) or TextTail(path) for path in paths}
        for path, tail in self._logs.items():
            if lines := tail.read():
                return path.name, lines
        return paths[-1].name, ()


def _said(state: Mapping[str, Any], job: JobState | None, *, finished: bool) -> tuple[str, str]:
    """State and reason of a run: its own word, unless that is of a job that will not come back."""
    said, reason = str(state.get("state") or "unknown"), str(state.get("reason") or "")
    if finished:
        return "finished", reason
    known = fields.text(state.get("job_id"))
    if said in ENDED or job is None or not job.over or known not in (None, job.job_id):
        return said, reason
    if job.job_id.startswith("local-"):
        return GONE, "its supervisor was killed"
    return GONE, "its job left the queue" if job.state == NO_JOB else f"its job ended as {job.state}"


def _times(resumed: Any) -> list[Any]:
    """When a person resumed the run, by its manifest."""
    return [each.get("time") for each in resumed if isinstance(each, dict)] if isinstance(resumed, list) else []


def _attempts(history: History, finished: bool) -> tuple[Attempt, ...]:
    found = []
    for records in history.attempts:
        row = attempt_row(records)
        found.append(Attempt(**{**row, "nodes": tuple(row["nodes"])}))
    if found and finished and found[-1].cause is None:  # rank 0 says so before the supervisor does
        found[-1] = replace(found[-1], cause="finished")
    return tuple(found)


def _target(config: Mapping[str, Any], history: History) -> tuple[int | None, int | None]:
    """Tokens and steps at which the run is done, of a training as asked for, of another program as it says."""
    if fields.part(config, "job").get("_target_", TRAINING) != TRAINING:
        events = (event for records in reversed(history.attempts) for event in reversed(records.events))
        said = next((event.get("steps") for event in events if event.get("event") == "target"), None)
        return None, fields.whole(said)
    train = fields.part(config, "train")
    target, batch = fields.whole(train.get("tokens")), fields.whole(train.get("batch_tokens"))
    return target, -(-target // batch) if target and batch else None


def _text(path: Path, limit: int = 1 << 14) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace").strip()
    except OSError:
        return ""
