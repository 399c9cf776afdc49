"""What devices, memory and disks show."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monitoring.detectors import advice
from monitoring.evidence import Evidence, Pulse
from monitoring.findings import Finding, Severity

IDLE = 0.1  # utilisation of a GPU, 0 to 1
IDLE_SECONDS = 600.0
HOT = 88.0  # degrees Celsius: A100 and H100 slow down at about 90
SAMPLES = 6  # of a device at least
GROWTH = 0.10  # of its memory that a rank has gained
BLOCKS = 8  # pieces of a curve that all have to grow
PART = 1000  # steps at least, of a part of a curve
WARM = 100  # first steps, in which caches fill
HOST_SECONDS = 3600.0  # for which a node's memory has to grow
HOST_GIB = 1.0  # by which it has to


def idle_gpu(evidence: Evidence) -> Iterator[Finding]:
    """A GPU that does next to nothing while its run is running."""
    if not evidence.live:
        return
    for pulse in evidence.pulses:
        times, used = _device(pulse, "gpu_util")
        recent = used[times > evidence.now - IDLE_SECONDS]
        if len(recent) >= SAMPLES and times[0] <= evidence.now - IDLE_SECONDS and recent.max() < IDLE:
            yield Finding(
                "idle_gpu",
                Severity.warning,
                f"the GPU of rank {pulse.rank} is idle",
                f"at most {recent.max():.0%} in use in {len(recent)} samples of {IDLE_SECONDS / 60:.0f} min",
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
        hot = len(degrees) >= SAMPLES and bool(np.median(degrees[-SAMPLES:]) >= HOT)
        throttled = len(slowed) >= SAMPLES and bool(slowed[-SAMPLES:].min() > 0)
        if evidence.live and (hot or throttled):
            said = f"{np.median(degrees[-SAMPLES:]):.0f} degrees" if len(degrees) else "no temperature told"
            yield Finding(
                "hot_gpu",
                Severity.warning,
                f"the GPU of rank {pulse.rank} is {'throttled' if throttled else 'hot'}",
                f"{said}, median of {SAMPLES} samples" + ("; its clock is held down" if throttled else ""),
                since=float(times[-SAMPLES]) if len(times) >= SAMPLES else evidence.now,
                node=pulse.node,
                rank=pulse.rank,
                do=f"tell the site, and leave the node out: {advice.without(evidence, pulse.node)}",
            )


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
    times, values = _device(pulse, "memory_gib")
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
    times, values = _device(pulse, name)
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


def _device(pulse: Pulse, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(times, values) of one field of a rank's device records."""
    found = [(float(r["t"]), float(r[name])) for r in pulse.devices if isinstance(r.get(name), int | float)]
    return np.array([t for t, _ in found]), np.array([value for _, value in found])
