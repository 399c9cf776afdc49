"""Programs that download, and folders that are filled once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from trainer.data.files import DataError, lock
from trainer.disk import sync_folder


class FetchError(DataError):
    """A program that gets text did not; at another time, or on another machine, it may."""


def run(argv: list[str], cwd: Path | None = None, timeout: float = 300) -> str:
    """Run a program without a shell and return its stdout.

    Args:
        argv: the program and its arguments.
        cwd: where it runs.
        timeout: seconds after which it is ended.

    Raises:
        FetchError: if there is no such program, it fails or takes too long; with the end of what it said.
    """
    # Messages are shown to a person and some are read here: not in whatever language the machine speaks.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    shown = " ".join(argv)
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError:
        raise FetchError(f"there is no program {argv[0]} on this machine (wanted for: {shown})") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"gave up after {timeout:.0f} s: {shown}. Is there a network here?") from None
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise FetchError(f"failed with status {done.returncode}: {shown}: {said}")
    return done.stdout


def once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``fill`` unless it is there already; it appears whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.parent / ".lock", wait=True):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            fill(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)
    return folder
