"""One line about a run: what its own folder says, and Slurm where the run is still in its hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import notes, runs
from hpc.runs import Run
from hpc.trained import Saved, Source
from monitoring.job import NO_JOB, JobState

ENDED = ("finished", "failed", "cancelled")  # what a run says of itself when nothing more comes of it


@dataclass(frozen=True)
class Row:
    """A run and where it stands."""

    name: str
    id: str
    state: str
    reason: str
    job_id: str
    cluster: str
    emulated: bool
    attempt: int | None
    step: int | None
    tokens: int | None
    target_tokens: int | None
    folder: str
    loss: float | str | None = None  # "NaN" and the like as in the records
    tokens_per_s: float | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    checkpoint: Saved | None = None  # of one run alone, as is the next
    sources: tuple[Source, ...] = ()


def read(found: Sequence[Run], jobs: Mapping[Path, JobState] | None = None) -> list[Row]:
    """One row a run, with what Slurm says where the run is still in its hands.

    Args:
        jobs: what Slurm was heard to say, by run folder; None: it is asked.
    """
    if jobs is None:
        jobs = {}
        if any(run.state().get("state") not in ENDED for run in found):
            from hpc.queue import states

            jobs = states(found)
    return [row(run, jobs.get(run.folder)) for run in found]


def row(run: Run, job: JobState | None) -> Row:
    """A run by its folder and what Slurm says of its job."""
    from hpc.ledger import history
    from monitoring import fields
    from monitoring.tail import last_record

    state = run.state()
    attempts = history(run)
    done = runs.read_json(run.finished_file) or {}
    last = done
    for record in reversed(attempts):
        if not last:
            last = last_record(run.attempts / str(record.number)) or {}
    text = "finished" if run.finished else str(state.get("state", "unknown"))
    reason = str(state.get("reason") or "")
    if text in ("queued", "requeued", "running"):
        text, reason = _in_other_hands(run, job, text, reason)
    written = notes.read(run)
    return Row(
        name=run.name,
        id=run.id,
        state=text,
        reason=reason,
        job_id=str(run.job_id or ""),
        cluster=str(state.get("cluster", "")),
        emulated=bool(state.get("emulated")),
        attempt=attempts[-1].number if attempts else None,
        step=fields.whole(last.get("step")),
        tokens=fields.whole(last.get("tokens")),
        target_tokens=_target(run),
        folder=str(run.folder),
        loss=_metric(last.get("loss", done.get("loss_last"))),
        tokens_per_s=fields.number(last.get("tokens_per_s")),
        tags=written.tags,
        note=written.note,
    )


def _metric(value: Any) -> float | str | None:
    """What a record says of a metric, as it says it."""
    from monitoring.recorder import metric

    return value if metric(value) is not None else None


def _in_other_hands(run: Run, job: JobState | None, text: str, reason: str) -> tuple[str, str]:
    """State and reason of a run that has not ended by its own word, as Slurm or this machine see it."""
    if job is None:
        return text, reason
    if job.over:
        if job.job_id.startswith("local-"):
            return "gone", f"its supervisor was killed; see: hpc logs {run.id}"
        said = "Slurm no longer knows its job" if job.state == NO_JOB else f"its job is {job.state}"
        return "gone", f"{said}, and the run has not ended; to go on: hpc resume {run.id}"
    return job.state.lower(), job.reason if job.reason not in ("None", "") and job.state == "PENDING" else reason


def _target(run: Run) -> int | None:
    # A typed load of each of many configurations would take seconds; one line of the YAML is enough here.
    import re

    try:
        text = run.config_file.read_text(encoding="utf-8")
    except (OSError, ValueError):  # another user's, or removed just now
        return None
    if not re.search(r"(?m)^  _target_: jobs\.train\.Train$", text):
        return None  # of another program nobody knows it before
    found = re.search(r"(?m)^train:\n(?:  .*\n)*?  tokens: (\d+)$", text)
    return int(found.group(1)) if found else None
