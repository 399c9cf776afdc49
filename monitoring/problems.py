"""What could not be read of a run's records or was not written, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from monitoring.recorder import PROTOCOL

if TYPE_CHECKING:
    from monitoring.history import Attempt

NEWER = f"this reads up to {PROTOCOL}"  # ends what is said of records of a newer version
_NAMED = 3  # ranks in one line; of more it is said how many there are


class Trouble(NamedTuple):
    """What is wrong with the records of a rank."""

    newer: int = 0  # their protocol, if it is too new to be read
    error: str = ""  # why they could not be read
    bad: int = 0  # damaged lines
    dropped: int = 0  # records that the rank could not write


def of(attempt: Attempt) -> Iterator[str]:
    """What is wrong with the records of an attempt, as far as somebody has read them."""
    for tail in (attempt.tail, attempt.experts_tail):
        if tail.newer:
            yield f"{tail.path.name} {_newer(tail.newer)}"
        if tail.error:
            yield f"{tail.path.name}: {tail.error}"
    yield from _skipped(attempt.tail.bad + attempt.experts_tail.bad + attempt.unread)
    yield from _unwritten(attempt.dropped)
    yield from _unwritten(attempt.dropped_experts, " of experts")
    yield from _of_ranks(attempt.troubles)


def _of_ranks(troubles: Mapping[int, Trouble]) -> Iterator[str]:
    """A line for all ranks of which it is true: there may be hundreds."""
    alike: dict[str, list[int]] = {}
    for rank, trouble in sorted(troubles.items()):
        if trouble.newer:
            alike.setdefault(f" {_newer(trouble.newer, many=True)}", []).append(rank)
        if trouble.error:
            alike.setdefault(f": {trouble.error}", []).append(rank)
    yield from (f"records{_of(ranks)}{what}" for what, ranks in alike.items())
    bad = {rank: trouble.bad for rank, trouble in sorted(troubles.items()) if trouble.bad}
    dropped = {rank: trouble.dropped for rank, trouble in sorted(troubles.items()) if trouble.dropped}
    yield from _skipped(sum(bad.values()), _of([*bad]))
    yield from _unwritten(sum(dropped.values()), _of([*dropped]))


def _newer(protocol: int, *, many: bool = False) -> str:
    return f"{'have' if many else 'has'} protocol {protocol}, {NEWER}"


def _skipped(count: int, of: str = "") -> Iterator[str]:
    if count:
        yield f"{count} damaged line{'s' * (count > 1)}{of} skipped"


def _unwritten(count: int, of: str = "") -> Iterator[str]:
    if count:
        yield f"{count} record{'s' * (count > 1)}{of} could not be written"


def _of(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f" of rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_NAMED]))}{more}"
