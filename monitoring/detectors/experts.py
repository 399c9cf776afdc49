"""What the loads of experts show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.snapshot import ExpertLoad

WARM = 200  # first steps, in which routers still look for their way
LOADS = 5  # newest loads that have to agree
STARVED = 0.05  # of the fair share
COLLAPSED = 0.25  # of the experts that do the work, by the perplexity of their loads


def dead_expert(evidence: Evidence) -> Iterator[Finding]:
    """Experts that get nothing, or next to nothing, load after load."""
    for layer, shares, step, first in _recent(evidence):
        highest = shares.max(axis=0)
        dead, starved = np.flatnonzero(highest == 0), np.flatnonzero((highest > 0) & (highest < STARVED))
        for experts, word in ((dead, "dead"), (starved, "starved")):
            if len(experts):
                named = ", ".join(str(each) for each in experts[:6]) + (" ..." if len(experts) > 6 else "")
                yield Finding(
                    f"{word}_expert",
                    Severity.warning,
                    f"layer {layer}: {len(experts)} of {shares.shape[1]} experts {word} ({named})",
                    f"at most {highest[experts].max():.1%} of the fair share in {LOADS} loads up to step {step:,}",
                    since=first,
                    about=f"layer-{layer}",
                    do="raise model.moe.balance_loss, or let model.moe.bias_update balance",
                )


def routing_collapse(evidence: Evidence) -> Iterator[Finding]:
    """A layer whose router sends nearly everything to a few experts."""
    for layer, shares, step, first in _recent(evidence):
        at_work = _at_work(shares)
        if at_work.max() < COLLAPSED * shares.shape[1]:
            yield Finding(
                "routing_collapse",
                Severity.critical,
                f"layer {layer}: the router uses {at_work[-1]:.1f} of {shares.shape[1]} experts",
                f"perplexity of the loads at step {step:,}; the busiest gets {shares[-1].max():.1f} times a fair share",
                since=first,
                about=f"layer-{layer}",
                do=advice.back(evidence, advice.balanced(evidence), _began(evidence.loads[layer]) - 1),
            )


def _at_work(shares: np.ndarray) -> np.ndarray:
    """How many experts do the work in each load, by its perplexity."""
    part = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    logs = np.log(part, out=np.zeros_like(part), where=part > 0)
    return np.exp(-(part * logs).sum(axis=1))


def _began(loads: Sequence[ExpertLoad]) -> int:
    """The step of the first of the newest loads without a break that few experts do the work of."""
    begun = loads[-1].step
    for load in reversed(loads):
        if _at_work(load.shares[None])[0] >= COLLAPSED * len(load.tokens):
            break
        begun = load.step
    return begun


def _recent(evidence: Evidence) -> Iterator[tuple[int, np.ndarray, int, float]]:
    """(layer, shares of the newest loads where 1 is fair, the last one's step, unix time of the first)."""
    for layer, loads in sorted(evidence.loads.items()):
        newest = [load for load in loads if load.step > WARM][-LOADS:]
        sizes = {len(load.tokens) for load in newest}
        if len(newest) < LOADS or len(sizes) != 1 or not all(sum(load.tokens) for load in newest):
            continue
        yield layer, np.stack([load.shares for load in newest]), newest[-1].step, evidence.when(newest[0].step)
