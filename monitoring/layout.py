"""The names inside a run folder that the monitor reads. Those inside an attempt are spelled here only.

```
runs/<name>/<id>/
  config.yaml  manifest.json  state.json  FINISHED  job.log  sample.txt
  attempts/<k>/
    attempt.json     who runs this attempt, when it began and how it ended
    rank-<r>.jsonl   records of a rank (monitoring/recorder.py is the protocol)
    experts.jsonl    tokens per expert, written by rank 0
    steps.parquet  ranks.parquet  devices.parquet  experts.parquet   the same, compacted (monitoring/compacted.py)
    rank-<r>.log     stdout and stderr of a rank
  evaluations/step-<n>.json   what was measured of a checkpoint
  checkpoints/step-<n>/COMPLETE   marks a checkpoint that is whole
```
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
MANIFEST = "manifest.json"  # what was typed, and when
STATE = "state.json"
FINISHED = "FINISHED"
JOB_LOG = "job.log"
SAMPLE = "sample.txt"
SILENCED = "silenced.json"  # findings of which people want to hear no more, and until when

EVALUATIONS = "evaluations"
CHECKPOINTS, COMPLETE = "checkpoints", "COMPLETE"
ATTEMPTS = "attempts"
ATTEMPT_INFO = "attempt.json"
PROVENANCE = "provenance.json"  # with which code, packages and driver the attempt ran
EXPERTS = "experts.jsonl"
STEPS_COMPACTED, RANKS_COMPACTED, EXPERTS_COMPACTED = "steps.parquet", "ranks.parquet", "experts.parquet"
DEVICES_COMPACTED = "devices.parquet"
# Who writes the records of a program that hpc did not write: itself; or meanwhile, whoever reads what it prints.
OWN_RECORDS, FOLLOWED = "own-records", "followed"

_RECORDS = re.compile(r"rank-(\d+)\.jsonl")
_LOGS = re.compile(r"rank-(\d+)\.log")
_CHECKPOINT = re.compile(r"step-(\d+)", re.ASCII)
_MEASURED = re.compile(r"step-(\d+)\.json", re.ASCII)


def attempt_folder(run: Path, number: int) -> Path:
    """Where attempt ``number`` of the run in folder ``run`` keeps its files."""
    return run / ATTEMPTS / str(number)


def attempt_numbers(run: Path) -> list[int]:
    """The attempts that have a folder, ascending; empty where there is none yet or none can be listed."""
    try:
        names = [entry.name for entry in (run / ATTEMPTS).iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def attempt_info(attempt: Path) -> Path:
    """The JSON in which the supervisor says who runs the attempt and how it ended."""
    return attempt / ATTEMPT_INFO


def rank_records(attempt: Path, rank: int) -> Path:
    """The records of one rank."""
    return attempt / f"rank-{rank}.jsonl"


def rank_log(attempt: Path, rank: int) -> Path:
    """What one rank printed."""
    return attempt / f"rank-{rank}.log"


def logged_ranks(attempt: Path) -> list[int]:
    """The ranks that have a log, ascending."""
    return _numbered(attempt, _LOGS)


def experts_records(attempt: Path) -> Path:
    """Tokens per expert, written by rank 0."""
    return attempt / EXPERTS


def evaluation(run: Path, step: int) -> Path:
    """What was measured of the checkpoint of a step."""
    return run / EVALUATIONS / f"step-{step}.json"


def evaluated_steps(run: Path) -> list[int]:
    """The steps of which there is such a file, ascending."""
    return _numbered(run / EVALUATIONS, _MEASURED)


def checkpoint(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"step-{step}"


def complete_checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints that are whole, ascending."""
    steps = _numbered(run / CHECKPOINTS, _CHECKPOINT)
    return [step for step in steps if (checkpoint(run, step) / COMPLETE).exists()]


def recorded_ranks(attempt: Path) -> list[int]:
    """The ranks that have a records file, ascending."""
    return _numbered(attempt, _RECORDS)


def _numbered(folder: Path, name: re.Pattern[str]) -> list[int]:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    return sorted(int(match[1]) for each in names if (match := name.fullmatch(each)))
