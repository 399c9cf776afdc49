"""Where the wall clock of a run went, from the moment it was asked for: every second in one bucket. Pure.

Buckets partition the time, so they add up to it. A clock that jumped, or one node's that differs from another's, is
bent until it fits: what an attempt recorded stays between its begin and its end, in the order in which it was made.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np

PATIENCE = 10.0  # seconds after its last step for which a running attempt is believed to be in the next one
STALL = 1.0  # seconds between two steps, beyond a step's own time, that nothing in the records explains


class Bucket(StrEnum):
    """What a second of a run was spent on."""

    queue = "queue"  # waiting for nodes
    hold = "hold"  # queued again, and not to start yet: Slurm's teardown of the job before
    startup = "start-up"  # imports, rendezvous, preflight, loading; compiling, as far as the first step took longer
    training = "training"  # steps that count
    evaluation = "evaluation"
    checkpoint = "checkpoint"  # while training waited for one
    repeated = "repeated"  # steps that were done again later, for no checkpoint held them; going back to one
    ending = "ending"  # after an attempt's last step and its checkpoint: a hang that was waited out, teardown
    stopped = "stopped"  # over, until a person asked for it again
    unknown = "unknown"


_CODES = list(Bucket)
_STARTUP, _TRAINING, _EVALUATION, _CHECKPOINT, _REPEATED, _UNKNOWN = (
    _CODES.index(bucket)
    for bucket in (
        Bucket.startup,
        Bucket.training,
        Bucket.evaluation,
        Bucket.checkpoint,
        Bucket.repeated,
        Bucket.unknown,
    )
)


class Span(NamedTuple):
    """A stretch of time in one bucket."""

    bucket: Bucket
    begin: float  # unix seconds
    end: float
    attempt: int | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Pause(NamedTuple):
    """Something behind the last step that lasted until unix time ``t``."""

    t: float
    bucket: Bucket


def _none() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True)
class Work:
    """What rank 0 recorded of an attempt's steps, in the order in which they were made; one value a step.

    Times are of each step's end; the seconds of evaluating, saving and going back are those just before it began.
    NaN stands for what was not recorded.
    """

    times: np.ndarray = field(default_factory=_none)  # unix seconds
    step_s: np.ndarray = field(default_factory=_none)  # seconds of the step itself
    evaluation_s: np.ndarray = field(default_factory=_none)
    checkpoint_s: np.ndarray = field(default_factory=_none)
    rewind_s: np.ndarray = field(default_factory=_none)
    kept: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # False: done again later
    after: Sequence[Pause] = ()  # what was recorded behind the last step


@dataclass(frozen=True)
class Past:
    """One attempt, ended or not."""

    number: int
    began: float  # unix seconds
    ended: float | None = None
    action: str | None = None  # what followed its end: end, restart, requeue, stop; None: not decided
    hold: float = 0.0  # seconds that a requeue after it is held, at most
    work: Work = field(default_factory=Work)


def spans(asked: Sequence[float], attempts: Sequence[Past], now: float, *, over: bool) -> list[Span]:
    """The time from the first moment of ``asked`` to ``now``, or to the end of a run that is over, without a gap.

    Args:
        asked: when a person submitted the run, and each time that they resumed it; unix seconds.
        attempts: by number.
        over: no attempt follows by itself.
    """
    begin = min([*asked, *(past.began for past in attempts[:1])], default=now)
    account = _Account(begin)
    before: Past | None = None
    for past, after in zip_longest(attempts, attempts[1:]):
        account.between(before, past.began, asked, past.number)
        ended = _ended(past, after, now, over=over)
        for bucket, end in within(past, max(past.began, account.at), max(ended, past.began, account.at)):
            account.until(end, bucket, past.number)
        if after is not None and past.ended is None:
            account.until(after.began, Bucket.unknown, past.number)
        before = past
    if not over and (before is None or before.ended is not None):
        account.between(before, now, asked, None)
    return account.spans


def _ended(past: Past, after: Past | None, now: float, *, over: bool) -> float:
    """The moment up to which an attempt's time is its own: there is one at a time, the newest."""
    ended = past.ended
    if ended is None:
        heard = [past.began, *past.work.times[-1:].tolist(), *(pause.t for pause in past.work.after)]
        # Where another followed, or the run is over, nobody will say it any more: as long as its records go.
        ended = now if after is None and not over else min(now, max(heard))
    # One that begins before it is of a node whose clock is behind, and tells nothing of this one's end.
    return min(ended, after.began) if after is not None and after.began > past.began else ended


class _Account:
    """Spans without gaps, each beginning where the one before ended; neighbours of one kind are one."""

    def __init__(self, begin: float) -> None:
        self.at = begin
        self.spans: list[Span] = []

    def until(self, end: float, bucket: Bucket, attempt: int | None = None) -> None:
        if end <= self.at:
            return
        last = self.spans[-1] if self.spans else None
        if last is not None and (last.bucket, last.attempt) == (bucket, attempt):
            self.spans[-1] = last._replace(end=end)
        else:
            self.spans.append(Span(bucket, self.at, end, attempt))
        self.at = end

    def between(self, before: Past | None, end: float, asked: Iterable[float], attempt: int | None) -> None:
        """The time from an attempt's end until the next one begins, or until now."""
        if before is None:
            self.until(end, Bucket.queue)
        elif before.action == "restart":
            self.until(end, Bucket.startup, attempt)
        elif before.action in ("end", "stop"):
            self.until(min((t for t in asked if self.at < t < end), default=self.at), Bucket.stopped)
            self.until(end, Bucket.queue)
        else:
            self.until(min(end, self.at + before.hold), Bucket.hold)
            self.until(end, Bucket.queue)


def within(past: Past, began: float, ended: float) -> Iterator[tuple[Bucket, float]]:
    """An attempt's own time, ``ended`` being now where it runs: each bucket, and the moment until which it lasted."""
    work = past.work
    if not len(work.times):
        yield Bucket.startup, ended
        return
    usual = _usual(work)
    stepped = _ascending(np.clip(work.times, began, ended))
    first = stepped[0] - min(usual, _or(work.step_s, usual)[0])
    first = float(min(max(first, began), stepped[0]))
    yield Bucket.startup, first
    yield from _steps(work, np.concatenate([[first], stepped]), usual)
    at = float(stepped[-1])
    for pause in work.after:
        at = min(max(at, pause.t), ended)
        yield pause.bucket, at
    if past.ended is None:
        yield Bucket.training, min(ended, at + max(PATIENCE, 3 * usual))
        yield Bucket.unknown, ended
    else:
        yield Bucket.ending, ended


def _ascending(times: np.ndarray) -> np.ndarray:
    """Times in the order in which they were made, as few as possible of them bent.

    What is out of the longest ascending sequence lies evenly between its neighbours in that: were each as late as any
    before it, a single one of a clock far ahead would leave no time for all steps that follow.
    """
    if not (np.diff(times) < 0).any():
        return times
    ends: list[float] = []  # the lowest time at which a sequence of so many can end
    rows: list[int] = []  # its row
    before: list[int] = []  # of each row the one before it in its sequence
    for row, time in enumerate(times.tolist()):
        place = bisect.bisect_right(ends, time)
        before.append(rows[place - 1] if place else -1)
        if place == len(ends):
            ends.append(time)
            rows.append(row)
        else:
            ends[place], rows[place] = time, row
    kept, row = [], rows[-1]
    while row >= 0:
        kept.append(row)
        row = before[row]
    kept.reverse()
    return np.interp(np.arange(len(times)), kept, times[kept])


def _steps(work: Work, edges: np.ndarray, usual: float) -> Iterator[tuple[Bucket, float]]:
    """The time from the first step's begin to the last one's end: before each step what was waited for, then it."""
    left = np.diff(edges)
    columns, codes = [], []
    for seconds, code in (
        (work.evaluation_s, _EVALUATION),
        (work.checkpoint_s, _CHECKPOINT),
        (work.rewind_s, _REPEATED),
    ):
        # What came before the first step belongs to starting: its interval begins with the step itself.
        part = np.clip(np.concatenate([[0.0], _or(seconds, 0.0)[1:]]), 0.0, left)
        left = left - part
        columns.append(part)
        codes.append(np.full(len(part), code))
    took = np.clip(_or(work.step_s, usual), 0.0, left)
    idle = left - took
    idle = np.where(idle > STALL + took, idle, 0.0)
    columns += [idle, left - idle]
    codes += [np.full(len(left), _UNKNOWN), np.where(work.kept, _TRAINING, _REPEATED)]
    seconds, kinds = np.stack(columns, axis=1).ravel(), np.stack(codes, axis=1).ravel()
    kinds, seconds = kinds[seconds > 0], seconds[seconds > 0]
    if not len(kinds):
        return
    ends = edges[0] + np.cumsum(seconds)
    last = np.append(np.flatnonzero(np.diff(kinds)), len(kinds) - 1)
    for row in last:
        yield _CODES[kinds[row]], float(ends[row])


def _usual(work: Work) -> float:
    """Seconds that a step usually takes: as recorded, else from one to the next; 0 where neither is known."""
    known = work.step_s[np.isfinite(work.step_s)]
    if not len(known):
        known = np.diff(work.times)
    return max(0.0, float(np.median(known))) if len(known) else 0.0


def _or(values: np.ndarray, default: float) -> np.ndarray:
    return np.where(np.isfinite(values), values, default)


def totals(found: Iterable[Span]) -> dict[Bucket, float]:
    """Seconds of every bucket."""
    seconds = dict.fromkeys(Bucket, 0.0)
    for span in found:
        seconds[span.bucket] += span.seconds
    return seconds


def drawn(found: Sequence[Span], most: int = 600) -> list[Span]:
    """The spans as a bar shows them that tells ``most`` parts apart: of more spans, what each part mostly was."""
    if len(found) <= most:
        return list(found)
    begins = np.array([span.begin for span in found])
    edges = np.linspace(found[0].begin, found[-1].end, most + 1)
    account = _Account(found[0].begin)
    for low, high in pairwise(edges.tolist()):
        first = max(0, int(np.searchsorted(begins, low, "right")) - 1)
        shares: dict[tuple[Bucket, int | None], float] = {}
        for span in found[first : max(first + 1, int(np.searchsorted(begins, high, "left")))]:
            kind = (span.bucket, span.attempt)
            shares[kind] = shares.get(kind, 0.0) + min(span.end, high) - max(span.begin, low)
        account.until(high, *max(shares, key=shares.__getitem__))
    return account.spans
