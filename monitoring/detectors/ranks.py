"""What the ranks show of each other: who is silent, who is slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import LATE, Evidence, Pulse
from monitoring.findings import Finding, Severity
from monitoring.ranks import ALONE

STARTING = 1800.0  # seconds for which a first step is waited: a compiler, the first use of every communicator
SAVING = 3600.0  # seconds for which a checkpoint is waited
# What may take that long, by the last event that tells of it.
LONG = {
    "sources": "a checkpoint that waits for the one before",
    "checkpoint_begin": "a checkpoint that is being written",
    "stop": "a run that stops",
    "spike": "a run that goes back to a checkpoint",
    "profile": "a profile that is being written",
    "finished": "a run that ends",
    "stopped": "a run that ends",
}
SLACK = 30.0  # seconds by which the monitor waits longer than the ranks' own watchdog
SLOW = 1.3  # times the median of the ranks that a straggler takes
DEAR = 0.05  # share of a step that its slowness costs the others at least
OFTEN = 0.75  # share of its recent summaries in which it is slow
SUMMARIES = 6  # summaries at least, before anybody is called slow
DROP = 0.8  # of the usual speed
WINDOW = 50  # steps whose median is the speed now


def stall(evidence: Evidence) -> Iterator[Finding]:
    """No step for longer than anything that the trainer has said it is doing may take.

    Only of trainings whose ranks watch over themselves: what else may be silent for how long, nobody has said.
    """
    if not evidence.live or not evidence.trains or evidence.watch("hang_factor") <= 0:
        return
    if 0 in evidence.unreadable:  # it may say a lot
        return
    began = evidence.began or evidence.now
    times = evidence.times[evidence.times >= began][-64:]
    quiet = evidence.now - _heard(evidence, times, began)
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    what, patience = _promised(evidence, usual, stepped=bool(len(times)))
    if quiet > patience:
        yield Finding(
            "stall",
            Severity.critical,
            f"nothing for {_span(quiet)} from {what}",
            f"a step usually takes {usual:.3g} s; silence beyond {_span(patience)} is not to be expected here",
            since=evidence.now - quiet,
            do="hpc explain RUN; hpc logs RUN --all; to have it start again: hpc cancel RUN --now; hpc resume RUN",
        )


def _heard(evidence: Evidence, times: np.ndarray, began: float) -> float:
    """When the newest word came: unix seconds.

    Of events and of steps the last one counts, not the latest, for a clock may have been ahead for a moment. Where
    that of the last step is ahead, it still is, and nobody knows.
    """
    said = [float(event["t"]) for event in evidence.events[-1:]]
    if len(times):
        said = [float(times[-1])] + [t for t in said if t <= evidence.now + LATE]
    return max(said, default=began)


def _promised(evidence: Evidence, usual: float, *, stepped: bool) -> tuple[str, float]:
    """(what the ranks are in, seconds for which silence means nothing)."""
    hang = evidence.watch("hang_seconds")
    patience = max(hang, evidence.watch("hang_factor") * usual) + SLACK
    last = evidence.events[-1].get("event") if evidence.events else None
    newest = float(evidence.times[-1]) if len(evidence.times) else 0.0
    behind = bool(evidence.events) and float(evidence.events[-1]["t"]) > newest
    if not stepped:
        return "a run that is starting", STARTING + SLACK
    if behind and last in LONG:
        return LONG[last], SAVING + SLACK
    if behind and last == "evaluation_begin":
        known = evidence.curve("evaluation_s").values
        return "an evaluation", max(patience, (3 * float(np.max(known)) if len(known) else SAVING) + SLACK)
    return "the training", patience


def dead_rank(evidence: Evidence) -> Iterator[Finding]:
    """A rank that has said nothing for many of the others' summaries; other programs may have fewer that tell."""
    told = [pulse for pulse in evidence.pulses if len(pulse.times) and pulse.rank not in evidence.unreadable]
    if not evidence.live or not evidence.trains or len(told) < 2:
        return
    yield from _never_told(evidence, told)
    newest = max(pulse.steps[-1] for pulse in told)
    every = float(np.median([np.median(np.diff(p.steps)) for p in told if len(p.steps) > 1] or [np.inf]))
    ages = np.array([evidence.now - pulse.times[-1] for pulse in told])
    for pulse, age in zip(told, ages, strict=True):
        behind = (newest - pulse.steps[-1]) / every if every else 0.0
        if behind >= 5 and age > np.median(ages) + 60:
            yield Finding(
                "dead_rank",
                Severity.critical,
                f"rank {pulse.rank} has said nothing since step {pulse.steps[-1]:,}",
                f"the others are at step {newest:,}; its last word is {_span(age)} old",
                since=float(pulse.times[-1]),
                node=pulse.node,
                rank=pulse.rank,
                do=f"hpc logs RUN --rank {pulse.rank}",
            )


def _never_told(evidence: Evidence, told: list[Pulse]) -> Iterator[Finding]:
    """Ranks that the attempt has, and that have told nothing of a step while most of the others did."""
    attempt = evidence.snapshot.attempts[-1]
    begun = {pulse.rank for pulse in evidence.pulses}
    size = max(attempt.world_size or 0, len(begun))
    heard = {pulse.rank for pulse in told} | {*evidence.unreadable}
    if np.any(evidence.times >= (evidence.began or 0.0)):  # the curve is rank 0's
        heard.add(0)
    silent = sorted(({*range(attempt.world_size or 0)} | begun) - heard)
    if 2 * len(told) <= size or min(len(pulse.times) for pulse in told) < 5:
        return
    first = min(float(pulse.times[0]) for pulse in told)
    for rank in silent[:8]:
        yield Finding(
            "dead_rank",
            Severity.critical,
            f"rank {rank} has never said anything" + (" but that it began" if rank in begun else ""),
            f"{len(told)} of {size} ranks have, since {_span(evidence.now - first)}",
            since=first,
            node=attempt.node(rank),
            rank=rank,
            do=f"hpc logs RUN --rank {rank}",
        )


def straggler(evidence: Evidence) -> Iterator[Finding]:
    """A rank that the others wait for: all steps take the same time, but it is slow where it waits for nobody."""
    told = [pulse for pulse in evidence.pulses if len(pulse.times) >= SUMMARIES]
    if not evidence.live or len(told) < 2:
        return
    step_s = float(np.median(np.concatenate([_column(pulse, "step_s") for pulse in told])))
    for part in ALONE:
        own = {pulse.rank: _column(pulse, part)[-SUMMARIES * 2 :] for pulse in told}
        middle = float(np.median([np.median(values) for values in own.values()]))
        for pulse in told:
            values = own[pulse.rank]
            lost = float(np.median(values)) - middle
            slow = np.mean(values > max(SLOW * middle, middle + DEAR * step_s))
            if slow >= OFTEN and lost > DEAR * step_s:
                yield _slow(evidence, pulse, part, values, middle, step_s)


def _slow(evidence: Evidence, pulse: Pulse, part: str, values: np.ndarray, middle: float, step_s: float) -> Finding:
    name = {"data_s": "reading its data", "optimizer_s": "updating its parameters"}[part]
    usual = float(np.median(values))
    times = f"{usual / middle:.1f} times" if middle > 0 else "far more than"
    return Finding(
        "straggler",
        Severity.warning,
        f"rank {pulse.rank} keeps the others waiting" + (f": node {pulse.node}" if pulse.node else ""),
        f"{name} takes it {usual:.3g} s of a step of {step_s:.3g} s, {times} the median of all ranks",
        since=float(pulse.times[-len(values)]),
        node=pulse.node,
        rank=pulse.rank,
        about=part.removesuffix("_s"),
        do=f"leave the node out: {advice.without(evidence, pulse.node)}" if pulse.node else "look at its node",
    )


def throughput_drop(evidence: Evidence) -> Iterator[Finding]:
    """Fewer tokens per second than this attempt, or the run, used to have."""
    speed = evidence.curve("tokens_per_s")
    if not evidence.live or len(speed.values) < 6 * WINDOW:
        return
    now, before = speed.values[-WINDOW:], speed.values[-40 * WINDOW : -WINDOW]
    usual, present = float(np.nanmedian(before)), float(np.nanmedian(now))
    if present < DROP * usual and np.mean(now < DROP * usual) >= OFTEN:
        yield Finding(
            "throughput_drop",
            Severity.warning,
            f"{present:,.0f} tokens a second, {1 - present / usual:.0%} fewer than usual",
            f"median of the last {WINDOW} steps; {usual:,.0f} over the {len(before):,} before"
            + _blame(evidence.series, WINDOW),
            since=evidence.when(speed.steps[-WINDOW]),
            do="look for a straggler, and for what else runs on its nodes, in the tab ranks: hpc watch RUN",
        )


def _blame(series: Mapping[str, object], window: int) -> str:
    """Which part of a step has grown most."""
    grown = {}
    for name in ("data_s", "forward_s", "backward_s", "communication_s", "optimizer_s"):
        values = getattr(series.get(name), "values", np.empty(0))
        if len(values) > 2 * window:
            grown[name] = float(np.nanmedian(values[-window:]) - np.nanmedian(values[-40 * window : -window]))
    most = max(grown, key=grown.__getitem__, default=None)
    return f"; most of it in {most} (+{grown[most]:.3g} s a step)" if most and grown[most] > 0 else ""


def _column(pulse: Pulse, name: str) -> np.ndarray:
    found = pulse.metrics.get(name, np.full(len(pulse.times), np.nan))
    return np.nan_to_num(found, nan=0.0)


def _span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
