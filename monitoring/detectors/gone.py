"""A run of which nothing more comes, and nobody was left to say so."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.job import NO_JOB
from monitoring.snapshot import GONE
from monitoring.words import duration

SILENT = 120.0  # seconds without a word of the run: what ends well says so a little after its job has left the queue


def gone(evidence: Evidence) -> Iterator[Finding]:
    """A run that has not ended by its own word, and whose job will not come back."""
    found = evidence.snapshot
    if found.state != GONE or found.job is None:
        return
    said = [found.updated, *(each.began for each in found.attempts), *(each.ended for each in found.attempts)]
    last = max((each for each in (*said, found.job.ended) if each is not None), default=None)
    if last is not None and evidence.now - last < SILENT:
        return
    slurm = "Slurm does not know it any more" if found.job.state == NO_JOB else f"Slurm says: {found.job.state}"
    word = f"; its last word was {duration(evidence.now - last)} ago" if last is not None else ""
    yield Finding(
        "gone",
        Severity.critical,
        f"{found.reason}, and the run has not ended",
        f"job {found.job.job_id}: {slurm}{word}",
        since=found.job.ended or last or evidence.now,
        do="hpc explain RUN; hpc resume RUN goes on from its newest checkpoint",
    )
