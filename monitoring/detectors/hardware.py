"""What memory and disks show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import Evidence, Pulse
from monitoring.findings import Finding, Severity

GROWTH = 0.10  # of its memory that a rank has gained
BLOCKS = 8  # pieces of a curve that all have to grow
PART = 1000  # steps at least, of a part of a curve
WARM = 100  # first steps, in which caches fill
HOST_SECONDS = 2400.0  # for which a node's memory has to grow
HOST_GIB = 1.0  # by which it has to


def memory_growth(evidence: Evidence) -> Iterator[Finding]:
    """Memory of rank 0's GPU, of which this attempt takes more and more: the figure is the most so far of a process."""
    memory = evidence.curve("peak_memory_gib")
    if not evidence.live or not len(memory.steps):
        return
    own = memory.steps > evidence.first_step + WARM
    steps, values = memory.steps[own], memory.values[own]
    found = _growing(values)
    if found is None:
        return
    count, blocks = found
    rate = (blocks[-1] - blocks[0]) / max(1, int(steps[-1] - steps[-count])) * 1000
    yield Finding(
        "memory_growth",
        Severity.warning,
        f"rank 0 takes more and more memory: {blocks[-1]:.2f} GiB",
        f"{blocks[0]:.2f} GiB at step {steps[-count]:,}, growing by {rate:.3g} GiB every 1,000 steps",
        since=evidence.when(float(steps[-count])),
        rank=0,
        do="hpc profile RUN shows what a step allocates; a requeue before it runs out loses nothing",
    )


def host_memory_growth(evidence: Evidence) -> Iterator[Finding]:
    """Memory of their nodes, of which ranks take more and more, as a leak in reading data does.

    What a process has mapped of files counts as its own and is given back when it is needed; so its node's memory in
    use has to grow with it.
    """
    if not evidence.live:
        return
    nodes = {pulse.node: gained for pulse in evidence.pulses if (gained := _gained(pulse, "host_memory_gib"))}
    grown = [
        (gained, pulse)
        for pulse in evidence.pulses
        if (gained := _gained(pulse, "memory_gib")) and nodes.get(pulse.node, 0.0) >= 0.5 * gained >= 0.5 * HOST_GIB
    ]
    if not grown:
        return
    gained, pulse = max(grown, key=lambda each: each[0])
    times, values = pulse.sampled("memory_gib")
    hours = (times[-1] - times[0]) / 3600
    yield Finding(
        "memory_growth",
        Severity.warning,
        f"rank {pulse.rank} takes more and more memory of its node"
        + (f", and so do {len(grown) - 1} others" if len(grown) > 1 else ""),
        f"{values[-1]:.1f} GiB, {gained:.1f} GiB more than {hours:.1f} h ago; of its node {nodes[pulse.node]:.1f} GiB",
        since=float(times[0]),
        about="host",
        do=f"look for what keeps what it has read; more of it: {advice.changed(evidence, 'job.memory_gb=...')}",
    )


def _growing(values: np.ndarray) -> tuple[int, np.ndarray] | None:
    """(how many values, medians of their eighths) of the longest last part that grows throughout; None if none does."""
    count = len(values)
    while count >= 10 * BLOCKS:
        count = count // BLOCKS * BLOCKS
        blocks = np.median(values[-count:].reshape(BLOCKS, -1), axis=1)
        if blocks[-1] - blocks[0] > GROWTH * blocks[0] and np.all(np.diff(blocks) > 0):
            return count, blocks
        count //= 2
        if count < PART:
            return None
    return None


def _gained(pulse: Pulse, name: str) -> float:
    """GiB by which something has grown throughout the samples; 0 where it has not, or they do not reach back far."""
    times, values = pulse.sampled(name)
    count = len(values) // BLOCKS * BLOCKS
    if not count or times[-1] - times[-count] < HOST_SECONDS:
        return 0.0
    blocks = np.median(values[-count:].reshape(BLOCKS, -1), axis=1)
    gained = float(blocks[-1] - blocks[0])
    return gained if gained > 0 and np.all(np.diff(blocks) > 0) else 0.0


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
