"""A private place for runs, and the command as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpc.runs import Run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder and home of a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., Run]]:
    """Submit to this machine; whatever still runs at the end of the test is ended by pid."""
    started: list[Run] = []

    def submit(*overrides: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "hpc", "submit", "--json", *overrides],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
            timeout=60,
        )
        started.append(Run(Path(json.loads(done.stdout)["folder"])))
        return started[-1]

    yield submit
    for run in started:
        for process in processes(run):
            process.kill()


def processes(run: Run) -> list[psutil.Process]:
    """The supervisor and the ranks of a run that still live."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(run.folder) in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
