"""Values out of a run's files, in the types on which everything behind them relies.

Files may be damaged, of another version, or written by hand. Their types are settled once, where they are read, and
what is of another type is as if nobody had said it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LATEST = 1e11  # unix seconds, in the year 5138; a number beyond it is no time, or one of milliseconds
MOST_RANKS = 1 << 20
INT64 = range(-(1 << 63), 1 << 63)


def whole(value: Any) -> int | None:
    """An integer of 64 bits."""
    return value if type(value) is int and value in INT64 else None


def number(value: Any) -> float | None:
    """A number that is finite."""
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def seconds(value: Any) -> float | None:
    """Seconds, since 1970 or of a span."""
    found = number(value)
    return found if found is not None and 0 <= found < LATEST else None


def text(value: Any) -> str | None:
    """Text; a number, such as that of a job, as it is spelled."""
    if type(value) in (int, float):
        return str(value)
    return value if isinstance(value, str) else None


def part(value: Any, name: str) -> dict[str, Any]:
    """The part of that name of a document of mappings; empty where there is none."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, dict) else {}


def attempt(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the supervisor says of an attempt (attempt.json), or a rank in its header."""
    found = dict(said)
    for names, settled in _SETTLED:
        found |= {name: settled(found[name]) for name in names if name in found}
    return found


def _ranks(value: Any) -> int | None:
    found = whole(value)
    return found if found is not None and 0 < found < MOST_RANKS else None


def _nodes(value: Any) -> list[str]:
    given = value if isinstance(value, list) else [value]
    return [name for name in map(text, given) if name]


_SETTLED = (
    (("began", "ended", "start"), seconds),
    (("job_id", "cause", "evidence", "action"), text),
    (("resumed_from", "exit_code"), whole),
    (("world_size",), _ranks),
    (("nodes",), _nodes),
)
