"""Asking a running attempt for a profile, through files in its ``profile`` folder. Free of torch.

```
attempts/<k>/profile/
  <number>.request            written by whoever asks, removed by rank 0 when it takes it
  step-<n>-rank-<r>.json.gz   the trace, as Chrome and Perfetto read it
  <number>.json               written last: which steps, of which rank, and where the time went
```
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "profile"  # in that of the attempt
REQUEST = ".request"
MOST_STEPS = 100  # a trace grows by megabytes a step


class Request(NamedTuple):
    """Profile the next ``steps`` steps of ``rank``. Numbers, since it travels in the reduction of the metrics."""

    number: int  # tells requests apart; above 0
    steps: int
    rank: int


def ask(folder: Path, *, steps: int, rank: int) -> Request:
    """Write a request for the attempt whose profiles lie in ``folder``.

    Raises:
        FileExistsError: if one waits there already.
        OSError: if it cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for waiting in folder.glob(f"*{REQUEST}"):
        raise FileExistsError(f"{waiting} waits to be taken")
    request = Request(time.time_ns() // 1000, steps, rank)  # below 2^53, so that it survives as a float64
    _write(folder / f"{request.number}{REQUEST}", {"steps": steps, "rank": rank})
    return request


def take(folder: Path) -> Request | None:
    """The request that waits in ``folder``, which is removed by that; None without one or while none can be read."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith(REQUEST))
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            asked = json.loads((folder / name).read_bytes())
            request = Request(int(name.removesuffix(REQUEST)), int(asked["steps"]), int(asked["rank"]))
            (folder / name).unlink()
            if request.number > 0 and 0 < request.steps <= MOST_STEPS:
                return request
    return None


def withdraw(folder: Path, request: Request) -> bool:
    """Take a request back; False if it had been taken already."""
    try:
        (folder / f"{request.number}{REQUEST}").unlink()
    except FileNotFoundError:
        return False
    return True


def answer(folder: Path, request: Request, result: dict[str, Any]) -> None:
    """Say what a request led to: what was measured, or ``error``."""
    _write(folder / f"{request.number}.json", result)


def answered(folder: Path, request: Request) -> dict[str, Any] | None:
    """What ``answer`` wrote; None as long as there is nothing."""
    try:
        found = json.loads((folder / f"{request.number}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
