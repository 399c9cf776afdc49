"""Where a run came from: code snapshot, git state, package versions, and what was typed."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpc import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hpc", "hydra_plugins", "conf", "jobs", "trainer", "monitoring")


def snapshot(target: Path) -> None:
    """Copy the packages that a job imports, so that editing the checkout never changes a queued run.

    Compiled files come along: times are kept, so they stay valid and ranks need not compile.
    """
    ignore = shutil.ignore_patterns("*.tmp", ".*")
    try:
        for package in PACKAGES:
            shutil.copytree(ROOT / package, target / package, ignore=ignore, copy_function=_copy)
    except _CopyFailed as failed:
        raise failed.error from failed


class _CopyFailed(Exception):
    """copytree goes on after an OSError and raises a list of all of them; the first is what a person can act on."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _copy(source: str, target: str) -> None:
    try:
        shutil.copy2(source, target)
    except OSError as error:
        error.filename = target
        raise _CopyFailed(error) from error


def manifest(typed: list[str], cluster: str, *, emulated: bool) -> dict[str, Any]:
    """What must be known to repeat the run: command, versions, git state of the code and of the working folder."""
    return {
        "hpc": __version__,
        "command": ["hpc", "submit", *typed],
        "cluster": cluster,
        "emulated": emulated,
        "submitted": time.time(),
        "user": user(),
        "host": socket.gethostname(),
        "working_folder": str(Path.cwd()),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": packages(),
        "git": git_state(ROOT),
    }


def user() -> str:
    """Who asks, by name or, in a container that knows none for this user, by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def packages() -> dict[str, str]:
    """Installed distributions and their versions."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        # Names of the metadata folders say it all; opening each file would cost a tenth of a second.
        if not Path(folder).is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, dot, kind = entry.name.rpartition(".")
                if dot and kind == "dist-info":
                    name, _, version = stem.rpartition("-")
                    found.setdefault(name.replace("_", "-").lower(), version)
    found.setdefault("hpc", importlib.metadata.version("hpc") if "hpc" in found else __version__)
    return dict(sorted(found.items()))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether files differ from it; None outside of a git checkout."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    status = _git(folder, "status", "--porcelain") or ""
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
    return {
        "commit": head.strip(),
        "branch": branch.strip(),
        "dirty": bool(status.strip()),
        "changed": status.splitlines(),
    }


def dirty_patch(folder: Path = ROOT) -> str:
    """What ``git apply`` needs to get from the commit to the files that were used; empty if they are equal."""
    return _git(folder, "diff", "--binary", "HEAD") or ""


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
