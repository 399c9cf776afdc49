"""What a rank's GPU and host do, sampled beside training. Whatever cannot be read is left out; nothing here raises.

GPUs by NVML (``nvidia-ml-py``, where it and a driver are there), found by their UUID: what torch calls device 0 may be
any of a node's GPUs. The host by psutil.

A record is what several samples have in common, about one a minute: in weeks of training many ranks would otherwise
write gigabytes of them.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

EVERY = 10.0  # seconds between two samples
FIRST = (1, 1, 2)  # samples of the first records, so that a short run shows something too
LATER = 6  # samples of each record after these
GIB = 2**30
DIGITS = 4  # significant ones that a measured value has
# What a record says of its samples, where it is not their mean.
COUNTERS = ("energy_j", "ecc_errors", "xid")  # the newest, and all its digits before the point
TOTALS = ("gpu_memory_total_gib", "host_memory_total_gib")  # the newest
PEAKS = ("temperature_c", "gpu_memory_gib", "memory_gib", "host_memory_gib")  # the highest, which is what hurts


class Sampler:
    """A thread that takes a sample each ``every`` seconds and hands records of them over. A context manager: what was
    sampled is recorded when it ends.

    Args:
        record: takes the fields of a record as keyword arguments, such as ``Recorder.device``.
        gpu: UUID of this rank's GPU; None: it has none.
        host: whether this rank tells of its whole node too; one rank of a node is enough.
    """

    def __init__(
        self, record: Callable[..., None], *, gpu: str | None = None, host: bool = False, every: float = EVERY
    ) -> None:
        self._record = record
        self._sources: list[Callable[[], dict[str, float]]] = [_Process()]
        if host:
            self._sources.append(_host)
        self._gpu = gpu
        self._every = every
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="devices", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._left.set()
        self._thread.join(2.0)

    def _work(self) -> None:
        if self._gpu is not None:
            with contextlib.suppress(Exception):  # no library, no driver, a GPU that is lost
                self._sources.append(Gpu(self._gpu))
        for count in itertools.chain(FIRST, itertools.repeat(LATER)):
            samples: list[dict[str, float]] = []
            while len(samples) < count and not self._left.wait(self._every):
                samples.append(self._sample())
            if samples:
                self._record(**summary(samples))
            if self._left.is_set():
                return

    def _sample(self) -> dict[str, float]:
        fields: dict[str, float] = {}
        for source in self._sources:
            with contextlib.suppress(Exception):
                fields |= source()
        return fields


def summary(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What one record says of consecutive samples: of each metric the mean, but for those that are named above."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: _one(name, [sample[name] for sample in samples if name in sample]) for name in names}


def _one(name: str, values: Sequence[float]) -> float:
    if name in COUNTERS:
        return float(round(values[-1]))
    found = values[-1] if name in TOTALS else max(values) if name in PEAKS else sum(values) / len(values)
    return float(f"{found:.{DIGITS}g}")


class _Process:
    """This rank's own process: ``cpu_cores`` that it keeps busy, ``memory_gib`` resident."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the beginning

    def __call__(self) -> dict[str, float]:
        return {
            "cpu_cores": self._process.cpu_percent() / 100,
            "memory_gib": self._process.memory_info().rss / GIB,
        }


def _host() -> dict[str, float]:
    """Its node: ``host_cpu_util`` (0 to 1), ``host_memory_gib`` in use, ``host_memory_total_gib``."""
    memory = psutil.virtual_memory()
    return {
        "host_cpu_util": psutil.cpu_percent() / 100,
        "host_memory_gib": (memory.total - memory.available) / GIB,
        "host_memory_total_gib": memory.total / GIB,
    }


class Gpu:
    """One GPU.

    - ``gpu_util`` (0 to 1), ``gpu_memory_gib`` of ``gpu_memory_total_gib``, ``clock_mhz``, ``temperature_c``
    - ``power_w``, and ``energy_j`` since the driver was loaded, of which differences count
    - ``throttled``: 1 while heat or power hold its clock down, else 0; of a record the share of the time
    - ``ecc_errors`` that could not be corrected since the driver was loaded; ``xid``: the newest Xid error seen here

    Raises:
        Exception: from the constructor, of ``pynvml`` or for want of it.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        self._events = self._watch_xids()

    def _watch_xids(self) -> Any:
        with contextlib.suppress(self._nvml.NVMLError):  # not on every card, and not inside every container
            events = self._nvml.nvmlEventSetCreate()
            self._nvml.nvmlDeviceRegisterEvents(self._handle, self._nvml.nvmlEventTypeXidCriticalError, events)
            return events
        return None

    def __call__(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for read in (
            self._use,
            self._memory,
            self._heat,
            self._power,
            self._energy,
            self._slowed,
            self._ecc,
            self._xid,
        ):
            with contextlib.suppress(Exception):  # each card lacks something
                found |= read()
        return found

    def _use(self) -> dict[str, float]:
        clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
        return {"gpu_util": self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100, "clock_mhz": clock}

    def _memory(self) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {"gpu_memory_gib": memory.used / GIB, "gpu_memory_total_gib": memory.total / GIB}

    def _heat(self) -> dict[str, float]:
        return {"temperature_c": self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)}

    def _power(self) -> dict[str, float]:
        return {"power_w": self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3}

    def _energy(self) -> dict[str, float]:
        return {"energy_j": self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3}

    def _slowed(self) -> dict[str, float]:
        nvml = self._nvml
        held = (
            nvml.nvmlClocksThrottleReasonHwSlowdown
            | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        return {"throttled": float(bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle) & held))}

    def _ecc(self) -> dict[str, float]:
        nvml = self._nvml
        errors = nvml.nvmlDeviceGetTotalEccErrors(
            self._handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        return {"ecc_errors": errors}

    def _xid(self) -> dict[str, float]:
        if self._events is None:
            return {}
        # Raises where nothing happened since the last look.
        return {"xid": self._nvml.nvmlEventSetWait_v2(self._events, 0).eventData}
