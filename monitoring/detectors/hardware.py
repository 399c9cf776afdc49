"""What devices, memory and disks show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.evidence import Evidence, Pulse
from monitoring.findings import Finding, Severity

IDLE = 0.1  # utilisation of a GPU, 0 to 1
IDLE_SECONDS = 600.0
HOT = 88.0  # degrees Celsius: A100 and H100 slow down at about 90
RECORDS = 6  # of a device at least: one is of about a minute
MOSTLY = 0.5  # share of that time
GROWTH = 0.10  # of its memory that a rank has gained
BLOCKS = 8  # pieces of a curve that all have to grow
WARM = 100  # first steps, in which caches fill


def idle_gpu(evidence: Evidence) -> Iterator[Finding]:
    """A GPU that does next to nothing while its run is running."""
    if not evidence.live:
        return
    for pulse in evidence.pulses:
        times, used = _device(pulse, "gpu_util")
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
        times, degrees = _device(pulse, "temperature_c")
        _, slowed = _device(pulse, "throttled")
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
                do="tell the site, and leave the node out: hpc resume RUN job.exclude=" + (pulse.node or "NODE"),
            )


def memory_growth(evidence: Evidence) -> Iterator[Finding]:
    """Memory that a rank takes more and more of."""
    if not evidence.live:
        return
    memory = evidence.curve("peak_memory_gib")
    values = memory.values[memory.steps > WARM]
    if len(values) < 10 * BLOCKS:
        return
    count = len(values) // BLOCKS * BLOCKS
    blocks = np.median(values[-count:].reshape(BLOCKS, -1), axis=1)
    gained = blocks[-1] - blocks[0]
    if gained > GROWTH * blocks[0] and np.all(np.diff(blocks) > 0):
        steps = memory.steps[memory.steps > WARM][-count:]
        rate = gained / max(1, int(steps[-1] - steps[0])) * 1000
        yield Finding(
            "memory_growth",
            Severity.warning,
            f"rank 0 takes more and more memory: {blocks[-1]:.2f} GiB",
            f"{blocks[0]:.2f} GiB at step {steps[0]:,}, growing by {rate:.3g} GiB every 1,000 steps",
            since=evidence.when(steps[0]),
            rank=0,
            do="hpc profile RUN shows what a step allocates; a requeue before it runs out loses nothing",
        )


def disk_nearly_full(evidence: Evidence) -> Iterator[Finding]:
    """A file system that will not take another checkpoint, or hardly anything."""
    disk = evidence.disk
    if disk is None or disk.total <= 0:
        return
    share = disk.free / disk.total
    checkpoints = disk.free / disk.checkpoint if disk.checkpoint else np.inf
    if checkpoints >= 3 and share >= 0.02:
        return
    room = f", room for {checkpoints:.1f} checkpoints" if disk.checkpoint else ""
    yield Finding(
        "disk_nearly_full",
        Severity.critical if checkpoints < 1 or share < 0.002 else Severity.warning,
        f"{disk.free / 2**30:.1f} GiB left on the run's file system{room}",
        f"{share:.1%} of {disk.total / 2**30:,.0f} GiB; the newest checkpoint has {disk.checkpoint / 2**30:.2f} GiB",
        since=evidence.now,
        do="hpc gc lists what may go; train.checkpoint.keep_latest keeps fewer",
    )


def _device(pulse: Pulse, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(times, values) of one field of a rank's device records."""
    found = [(float(r["t"]), float(r[name])) for r in pulse.devices if isinstance(r.get(name), int | float)]
    return np.array([t for t, _ in found]), np.array([value for _, value in found])
