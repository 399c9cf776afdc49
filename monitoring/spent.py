"""Where the time of runs went, by what their files say; ``monitoring/goodput.py`` says what counts as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.goodput import Bucket, Past, Pause, Span, Work, spans, within
from monitoring.history import Attempt, History, Stretch

_AFTER = {"validation": Bucket.evaluation, "checkpoint": Bucket.checkpoint, "rewound": Bucket.repeated}
_COLUMNS = ("step_s", "evaluation_s", "checkpoint_s", "rewind_s")
SLURMS_HOLD = 121.0  # seconds before a job that Slurm itself put back may start


@dataclass(frozen=True)
class Spent:
    """An attempt's time in seconds, without a gap from its begin to its end."""

    starting: float  # until its first step began
    training: float  # steps, and evaluations between them
    saving: float  # while ranks waited for a checkpoint
    ending: float  # after the last step and its checkpoint
    first_step: int | None = None


def spent(attempt: Path, began: float, ended: float, ready: float | None = None) -> Spent:
    """Divide the time of the attempt in a folder between two moments, in unix seconds.

    Args:
        ready: when all ranks had joined, for an attempt that recorded no steps: all after it is work.
    """
    records = Attempt(attempt.parent.parent, int(attempt.name))
    records.refresh()
    steps = [stretch.steps[0] for stretch in records.stretches if stretch.steps]
    if not steps:
        ready = ended if ready is None else min(max(ready, began), ended)
        return Spent(ready - began, ended - ready, 0.0, 0.0)
    seconds, at = dict.fromkeys(Bucket, 0.0), began
    for bucket, end in within(Past(records.number, began, ended, work=_work(records)), began, ended):
        seconds[bucket] += end - at
        at = end
    starting, saving, ending = (seconds.pop(each) for each in (Bucket.startup, Bucket.checkpoint, Bucket.ending))
    return Spent(starting, sum(seconds.values()), saving, ending, first_step=steps[0])


def account(history: History, asked: Sequence[float], now: float, *, over: bool, hold: float) -> list[Span]:
    """Where the wall clock of a run went.

    Args:
        asked: when a person submitted the run, and each time that they resumed it; unix seconds.
        over: no attempt follows by itself.
        hold: seconds for which the run's own requeues are held.
    """
    return spans(asked, [_past(each, hold) for each in history.attempts if _began(each)], now, over=over)


def _began(attempt: Attempt) -> float | None:
    return attempt.info.get("began") or attempt.header.get("start")


def _past(attempt: Attempt, hold: float) -> Past:
    began, ended, action = _began(attempt), attempt.info.get("ended"), attempt.info.get("action")
    assert began is not None
    # Where its supervisor did not live to give an exit status, Slurm itself put the job back.
    unaided = action == "requeue" and attempt.info.get("exit_code") is None
    return Past(
        number=attempt.number,
        began=began,
        ended=ended,
        action=action,
        hold=SLURMS_HOLD if unaided else hold,
        work=_work(attempt),
    )


def _work(attempt: Attempt) -> Work:
    stretches = [stretch for stretch in attempt.stretches if stretch.steps]
    if not stretches:
        return Work()
    columns = {name: np.concatenate([each.column(name) for each in stretches]) for name in _COLUMNS}
    columns["step_s"] = np.concatenate([seconds_of_steps(each) for each in stretches])
    last = stretches[-1].times[-1]
    return Work(
        times=np.concatenate([np.array(each.times) for each in stretches]),
        kept=np.concatenate([np.arange(len(each.steps)) < each.kept for each in stretches]),
        after=[Pause(event["t"], _AFTER[event["event"]]) for event in attempt.events if _follows(event, last)],
        **columns,
    )


def seconds_of_steps(stretch: Stretch) -> np.ndarray:
    """Seconds of the steps up to each record, NaN where nobody said them: some programs record every fifth only."""
    start = stretch.start
    steps = np.array(stretch.steps, float)  # before the lowest integer there is none
    return stretch.column("step_s") * np.diff(steps, prepend=0.0 if start is None else float(start))


def _follows(event: dict[str, Any], last: float) -> bool:
    return event["event"] in _AFTER and event["t"] > last
