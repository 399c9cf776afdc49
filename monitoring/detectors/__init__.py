"""What may be wrong with a run: pure functions from evidence to findings; ``docs/findings.md`` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from monitoring.detectors import curve, evaluations, experts, gone, gpus, hardware, overfitting, ranks, run
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity, ordered

Detector = Callable[[Evidence], Iterator[Finding]]

UNJUDGED = "unjudged"  # the finding that a detector failed

DETECTORS: tuple[Detector, ...] = (
    curve.not_finite,
    curve.spike,
    curve.divergence,
    curve.plateau,
    evaluations.evaluation_out_of_line,
    evaluations.not_finite,
    overfitting.overfitting,
    ranks.stall,
    ranks.dead_rank,
    ranks.straggler,
    ranks.throughput_drop,
    experts.dead_expert,
    experts.routing_collapse,
    gpus.idle_gpu,
    gpus.hot_gpu,
    gpus.gpu_error,
    hardware.memory_growth,
    hardware.host_memory_growth,
    hardware.disk_nearly_full,
    gone.gone,
    run.held,
    run.low_goodput,
    run.requeue_storm,
    run.records_lost,
)


def detect(evidence: Evidence) -> list[Finding]:
    """All findings, the worst first."""
    return ordered(finding for detector in DETECTORS for finding in _guarded(detector, evidence))


def _guarded(detector: Detector, evidence: Evidence) -> Iterator[Finding]:
    """What a detector finds; a fault of its own must not hide what the others do, and is told."""
    try:
        yield from detector(evidence)
    except Exception as error:
        name = detector.__name__
        yield Finding(
            UNJUDGED,
            Severity.info,
            f"{name} could not be judged",
            f"{type(error).__name__}: {error}; all else is judged",
            since=evidence.now,
            about=name,
            do="tell those who look after hpc here, with the run's folder",
        )
