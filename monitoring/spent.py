"""Where the time of an attempt went, by rank 0's records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from monitoring import layout


@dataclass(frozen=True)
class Spent:
    """An attempt's time in seconds, without a gap from its begin to its end; and its first step."""

    starting: float  # until its first step began
    training: float  # steps, and evaluations between them
    saving: float  # while ranks waited for a checkpoint
    ending: float  # after the last step and its checkpoint
    first_step: int | None = None


def spent(attempt: Path, began: float, ended: float, ready: float | None = None) -> Spent:
    """Divide the time between two moments, in unix seconds.

    Args:
        ready: when all ranks had joined, for an attempt that recorded no steps: all after it is work.
    """
    first, last, saves = _milestones(attempt)
    if first is None or last is None:
        ready = ended if ready is None else min(max(ready, began), ended)
        return Spent(ready - began, ended - ready, 0.0, 0.0)
    # Clocks may jump, and those of nodes differ: what is told stays between the ends and in order.
    begun = min(max(first["t"] - _number(first, "step_s"), began), ended)
    stepped = min(max(last["t"], begun), ended)
    blocked = sum(_number(save, "blocked_s") for save in saves if save["t"] <= last["t"])
    blocked = min(max(blocked, 0.0), stepped - begun)
    saved = min(max([stepped, *(save["t"] for save in saves)]), ended)
    return Spent(
        starting=begun - began,
        training=stepped - begun - blocked,
        saving=blocked + saved - stepped,
        ending=ended - saved,
        first_step=first["step"],
    )


def _milestones(attempt: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[dict[str, Any]]]:
    """The first and the last step of rank 0, and its checkpoints."""
    first, last, saves = None, b"", []
    for line in _lines(layout.rank_records(attempt, 0)):
        if b'"kind":"step"' in line:
            first = _record(line) if first is None else first
            last = line if _record_like(line) else last
        elif b'"event":"checkpoint"' in line and (save := _record(line)) is not None:
            saves.append(save)
    return first, _record(last), saves


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:
        return


def _record_like(line: bytes) -> bool:
    return line.endswith(b"}\n") and b"\0" not in line


def _record(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        record = orjson.loads(line[line.rfind(b"\0") + 1 :])
        if isinstance(record, dict) and isinstance(record.get("t"), int | float) and type(record.get("step")) is int:
            return record
    return None


def _number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
