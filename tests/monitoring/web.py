"""The page over generated runs, for its tests: without Slurm, without hpc."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from monitoring import layout
from monitoring.findings import Finding, Quiet
from monitoring.history import read_json
from monitoring.snapshot import JobState
from monitoring.tail import last_record
from monitoring.web.pages import QUIETEN, application
from monitoring.web.security import Guard
from monitoring.web.source import Member, Source, Sweep
from tests.monitoring.generate import Shape, Try, generate

TOKEN = "A-Token-of-the-Tests_0123456789abcdefghijkl"
RUN = "tiny/20251122-100000-1f2e"
DONE = "tiny/20251121-100000-aaaa"
SWEEP = "sweep/20251120-100000-bbbb"
HOSTILE = "<img src=x onerror=alert(1)>/20251119-100000-cccc"
SETTINGS = [
    {"optim.lr": 1e-4, "model": "a", "train.batch_tokens": 32768},
    {"optim.lr": 1e-3, "model": "b", "train.batch_tokens": 131072},
    {"optim.lr": 1e-2, "model": "a", "train.batch_tokens": 1048576},
]


@dataclass(frozen=True)
class Line:
    """A row of the list, from the run's own files."""

    state: str
    attempt: int | None
    step: int | None
    tokens: int | None
    loss: float | str | None
    reason: str = ""
    cluster: str = "noctua2"
    emulated: bool = True
    target_tokens: int | None = 500 * 4096
    tokens_per_s: float | None = None
    tags: tuple[str, ...] = ("good",)
    note: str = "</script><b>bold</b>"


@dataclass
class Called:
    """How often Slurm was asked."""

    jobs: list[int] = field(default_factory=list)


def tree(root: Path) -> Path:
    """Runs in every state: one that goes on, one that is done, a sweep, one with a hostile name."""
    generate(root / RUN, Shape(name="tiny", log=["<script>alert(2)</script> \x1b[31mred\x1b[0m \u202eback"]))
    generate(root / DONE, Shape((Try(0, 60, "finished"),), steps=60, name="tiny"))
    for number in range(2):
        generate(root / f"{SWEEP}.{number}", Shape((Try(0, 60 + number, "finished"),), steps=60 + number, layers=()))
    generate(root / HOSTILE, Shape((Try(0, 20, "finished"),), steps=20, layers=(), name="<img src=x onerror=alert(1)>"))
    return root


def source(root: Path, called: Called | None = None) -> Source:
    def runs() -> Sequence[Path]:
        return sorted((each.parent for each in root.glob("*/*/config.yaml")), key=lambda each: each.name, reverse=True)

    def row(folder: Path) -> Line:
        numbers = layout.attempt_numbers(folder)
        last: Mapping[str, Any] = (last_record(layout.attempt_folder(folder, numbers[-1])) if numbers else None) or {}
        state = (
            "finished" if (folder / layout.FINISHED).exists() else (read_json(folder / layout.STATE) or {}).get("state")
        )
        return Line(
            str(state), numbers[-1] if numbers else None, last.get("step"), last.get("tokens"), last.get("loss")
        )

    def jobs(folders: Sequence[Path], known: Mapping[Path, JobState]) -> Mapping[Path, JobState]:
        if called is not None:
            called.jobs.append(len(folders))
        return {folder: JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", emulated=True) for folder in folders}

    def quieten(folder: Path, finding: Finding, how: Quiet) -> None:
        seen = {"severity": finding.severity.value} if how == "acknowledge" else {}
        entry = {finding.key: {"until": None, **seen}} if how != "speak" else {}
        (folder / layout.SILENCED).write_text(json.dumps(entry))

    def members() -> list[Member]:
        return [Member(n, "sweep", root / f"{SWEEP}.{n}", each) for n, each in enumerate(SETTINGS)]

    return Source(
        runs=runs,
        rows=lambda folders, _: [row(folder) for folder in folders],
        jobs=jobs,
        sweeps=lambda: [Sweep(root / SWEEP, False, members())] if root.joinpath("sweep").exists() else [],
        quieten=quieten,
        configuration=lambda folder: {"name": folder.parent.name, "same": 1, "id": folder.name},
    )


def guarded(root: Path, called: Called | None = None) -> Guard:
    return Guard(application(source(root, called)), TOKEN, written=(QUIETEN,))


def browser(app: Guard) -> TestClient:
    return TestClient(app, base_url="http://localhost", follow_redirects=False)
