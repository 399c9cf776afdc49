"""One run at one moment, frozen: what its files say, joined with what Slurm says.

``reader.py`` makes it from the files; what Slurm says is handed in.
Everything that shows or judges a run (terminal, page, detectors) is a function of a ``Snapshot``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.findings import Finding
from monitoring.history import Series
from monitoring.job import JobState
from monitoring.outlook import Outlook

ENDED = ("finished", "failed", "cancelled")
GONE = "gone"  # state of a run that has not ended by its own word, and whose job will not come back


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

    def node(self, rank: int) -> str:
        """Where a rank runs: each node has as many as the others, and they are counted node by node."""
        each = (self.world_size or 0) // len(self.nodes) if self.nodes else 0
        return self.nodes[rank // each] if each and rank // each < len(self.nodes) else ""


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
    state: str = "unknown"  # of state.json: submitting, queued, running, requeued, finished, failed, cancelled; GONE
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
        if self.done or self.state == GONE or self.target_tokens is None or not self.tokens_per_s:
            return None
        left = max(0.0, (self.target_tokens - (self.tokens or 0)) / self.tokens_per_s)
        return left if math.isfinite(left) else None
