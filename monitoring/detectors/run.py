"""What a run's course shows."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.detectors import advice
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.goodput import Bucket
from monitoring.problems import NEWER
from monitoring.words import duration

LOW = 0.75  # share of the time on nodes that is training
JUDGED = 2 * 3600.0  # seconds on nodes before anything is said of it
STORM = 4  # attempts
STORM_SECONDS = 3600.0
# What Slurm gives as the reason of a job that nothing but a person will start, and what they type.
NEVER = {
    "launch failed requeued held": "scontrol release JOB",
    "job requeued in held state": "scontrol release JOB",
    "jobheldadmin": "ask the site why job JOB is held",
    "jobhelduser": "scontrol release JOB",
    "badconstraints": "hpc explain RUN; hpc cancel RUN; hpc resume RUN job.constraint=... as the site has it",
    "dependencyneversatisfied": "hpc cancel RUN; what it waits for has failed",
}
ADVICE = {
    Bucket.startup: ("fewer and longer slices", "job.time=..."),
    Bucket.checkpoint: ("fewer checkpoints", "train.checkpoint.every_steps=..."),
    Bucket.evaluation: ("evaluate less often", "train.evaluate.every_steps=..."),
    Bucket.repeated: ("more checkpoints", "train.checkpoint.every_steps=..."),
    Bucket.ending: ("find what ends late: hpc logs RUN --all", ""),
    Bucket.unknown: ("find what a step waits for: hpc profile RUN", ""),
}


def held(evidence: Evidence) -> Iterator[Finding]:
    """A job that waits for something that will not come by itself."""
    job = evidence.snapshot.job
    if job is None or job.state != "PENDING" or evidence.snapshot.done:
        return
    found = next((do for words, do in NEVER.items() if words in job.reason.lower().replace("_", " ")), None)
    if found is not None:
        yield Finding(
            "held",
            Severity.critical,
            f"job {job.job_id} will not start by itself",
            f"Slurm says: {job.reason}",
            since=job.submitted or evidence.now,
            do=found.replace("JOB", job.job_id),
        )


def low_goodput(evidence: Evidence) -> Iterator[Finding]:
    """Nodes that are the run's, and do not train."""
    found = evidence.snapshot.outlook
    share = found.ettr_on_nodes
    if not evidence.trains and not len(evidence.steps):  # it has no steps that training could be seen by
        return
    if evidence.snapshot.done or share is None or found.on_nodes < JUDGED or share >= LOW:
        return
    most = max(ADVICE, key=lambda bucket: found.seconds[bucket])
    wanted, change = ADVICE[most]
    rest = f"most of the rest, {duration(found.seconds[most])}, is {most.value}"
    if most is Bucket.repeated and found.best_interval is not None:
        rest += f"; best is a checkpoint every {duration(found.best_interval)}"
    yield Finding(
        "low_goodput",
        Severity.warning,
        f"{share:.0%} of the time on nodes is training",
        f"{duration(found.on_nodes)} on nodes; {rest}",
        since=found.spans[0].begin if found.spans else evidence.now,
        do=f"{wanted}: {advice.changed(evidence, change)}" if change else wanted,
    )


def requeue_storm(evidence: Evidence) -> Iterator[Finding]:
    """Attempt after attempt that hardly trains."""
    recent = [a for a in evidence.snapshot.attempts if a.began is not None and a.began > evidence.now - STORM_SECONDS]
    ended = [a for a in recent if a.ended is not None and a.cause not in ("finished", "cancelled")]
    if evidence.snapshot.done or len(ended) < STORM:
        return
    causes = [str(a.cause).replace("_", " ") for a in ended]
    most = max(set(causes), key=causes.count)
    yield Finding(
        "requeue_storm",
        Severity.critical,
        f"{len(ended)} attempts ended within an hour",
        f"{causes.count(most)} of them by {most}; the last: {ended[-1].evidence or most}",
        since=float(ended[0].began or evidence.now),
        do="hpc explain RUN; hpc cancel RUN stops it",
    )


def records_lost(evidence: Evidence) -> Iterator[Finding]:
    """Records that could not be written or read."""
    for problem in evidence.snapshot.problems:
        yield Finding(
            "records_lost",
            Severity.info,
            problem,
            "what else is shown may lack these records",
            since=evidence.now,
            about=problem,
            do="update hpc here: what wrote them is newer"
            if problem.endswith(NEWER)
            else "look at the disk: hpc doctor",
        )
