"""What GPUs show of themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import Evidence, Pulse
from monitoring.findings import Finding, Severity

IDLE = 0.1  # utilisation of a GPU, 0 to 1
IDLE_SECONDS = 600.0
HOT = 88.0  # degrees Celsius: A100 and H100 slow down at about 90
MOSTLY = 0.5  # share of that time
FRESH = 300.0  # seconds since the newest record
RECORDS = 6  # of a device at least: one is of about a minute
# Errors by which the driver says that the hardware is at fault, as NVIDIA's list of Xids has them.
BROKEN = {
    48: "memory that could not be corrected",
    63: "a row of memory was taken out of use",
    64: "a row of memory could not be taken out of use",
    74: "NVLink",
    79: "the GPU has fallen off the bus",
    94: "memory that could not be corrected, in one program",
    95: "memory that could not be corrected, in any program",
}
# Those that a program's own faults lead to most of the time.
PROGRAM = {13: "an exception in a kernel", 31: "an address that is not mapped", 43: "a kernel stopped", 45: "ended"}


def idle_gpu(evidence: Evidence) -> Iterator[Finding]:
    """A GPU that does next to nothing while its run is running."""
    if not evidence.live:
        return
    for pulse in evidence.pulses:
        times, used = pulse.sampled("gpu_util")
        recent = used[times > evidence.now - IDLE_SECONDS]
        if len(recent) >= RECORDS and times[0] <= evidence.now - IDLE_SECONDS and recent.max() < IDLE:
            yield Finding(
                "idle_gpu",
                Severity.warning,
                f"the GPU of rank {pulse.rank} is idle",
                f"at most {recent.max():.0%} in use in {len(recent)} records of {IDLE_SECONDS / 60:.0f} min",
                since=float(times[used >= IDLE][-1]) if (used >= IDLE).any() else float(times[0]),
                node=pulse.node,
                rank=pulse.rank,
                do=f"hpc logs RUN --rank {pulse.rank}; hpc profile RUN shows what a step waits for",
            )


def hot_gpu(evidence: Evidence) -> Iterator[Finding]:
    """A GPU so hot that it slows down, or that says it does."""
    for pulse in evidence.pulses:
        times, degrees = pulse.sampled("temperature_c")
        told, slowed = pulse.sampled("throttled")
        if max([*times[-1:], *told[-1:]], default=0.0) < evidence.now - FRESH:
            continue
        hot = len(degrees) >= RECORDS and bool(np.median(degrees[-RECORDS:]) >= HOT)
        throttled = len(slowed) >= RECORDS and bool(slowed[-RECORDS:].mean() > MOSTLY)
        if evidence.live and (hot or throttled):
            said = f"{np.median(degrees[-RECORDS:]):.0f} degrees" if len(degrees) else "no temperature told"
            yield Finding(
                "hot_gpu",
                Severity.warning,
                f"the GPU of rank {pulse.rank} is {'throttled' if throttled else 'hot'}",
                f"{said}, median of {RECORDS} records"
                + (f"; its clock was held down {slowed[-RECORDS:].mean():.0%} of the time" if throttled else ""),
                since=float(times[-RECORDS]) if len(times) >= RECORDS else evidence.now,
                node=pulse.node,
                rank=pulse.rank,
                do=f"tell the site, and leave the node out: {advice.without(evidence, pulse.node)}",
            )


def gpu_error(evidence: Evidence) -> Iterator[Finding]:
    """Errors that the driver tells of: Xids, and memory errors that could not be corrected."""
    for pulse in evidence.pulses:
        times, xids = pulse.sampled("xid")
        for xid in np.unique(xids[xids > 0]).astype(int):
            what = BROKEN.get(xid) or PROGRAM.get(xid)
            yield _error(
                evidence,
                pulse,
                f"Xid {xid}" + (f" ({what})" if what else ""),
                "the driver says so; NVIDIA lists what each Xid stands for",
                since=float(times[xids == xid][0]),
                broken=xid in BROKEN,
                about=f"xid-{xid}",
            )
        times, errors = pulse.sampled("ecc_errors")
        grown = np.flatnonzero(np.diff(errors) > 0)
        if len(grown):
            yield _error(
                evidence,
                pulse,
                "memory errors that could not be corrected",
                f"{errors[-1]:.0f} since the driver was loaded, {errors[grown[0]]:.0f} before",
                since=float(times[grown[0] + 1]),
                broken=True,
                about="ecc",
            )


def _error(
    evidence: Evidence, pulse: Pulse, what: str, shown: str, *, since: float, broken: bool, about: str
) -> Finding:
    logs = f"hpc logs RUN --rank {pulse.rank}"
    return Finding(
        "gpu_error",
        Severity.critical if broken else Severity.warning,
        f"the GPU of rank {pulse.rank} had an error: {what}",
        shown,
        since=since,
        node=pulse.node,
        rank=pulse.rank,
        about=about,
        do=f"tell the site, and leave the node out: {advice.without(evidence, pulse.node)}"
        if broken
        else f"often the program's own fault: {logs}",
    )
