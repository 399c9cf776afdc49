"""What may be wrong with a run: pure functions from evidence to findings; ``docs/findings.md`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from monitoring.detectors import curve, experts, gone, hardware, ranks, run
from monitoring.evidence import Evidence
from monitoring.findings import Finding, ordered

Detector = Callable[[Evidence], Iterator[Finding]]

DETECTORS: tuple[Detector, ...] = (
    curve.not_finite,
    curve.spike,
    curve.divergence,
    curve.plateau,
    curve.evaluation_out_of_line,
    ranks.stall,
    ranks.dead_rank,
    ranks.straggler,
    ranks.throughput_drop,
    experts.dead_expert,
    experts.routing_collapse,
    hardware.idle_gpu,
    hardware.hot_gpu,
    hardware.memory_growth,
    hardware.disk_nearly_full,
    gone.gone,
    run.held,
    run.low_goodput,
    run.requeue_storm,
    run.records_lost,
)


def detect(evidence: Evidence) -> list[Finding]:
    """All findings, the worst first."""
    return ordered(finding for detector in DETECTORS for finding in detector(evidence))
