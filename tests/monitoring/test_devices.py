"""Samples of devices: real ones of this process and host; of GPUs by a stand-in for NVML, which needs a card."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import layout
from monitoring.columns import Samples
from monitoring.devices import Gpu, Sampler, summary
from monitoring.energy import co2_kg, kwh, of_run
from monitoring.recorder import Recorder
from monitoring.tail import RecordTail


def test_samples_reach_the_records_of_the_rank(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 1, "run", 0)
    with Sampler(recorder.device, host=True, every=0.02):
        end = time.monotonic() + 10
        while time.monotonic() < end and len(recorder._records.made) + recorder._records.seq < 4:
            time.sleep(0.02)
    recorder.close()
    (found,) = RecordTail(layout.rank_records(tmp_path, 0)).read()
    samples = [record for record in found.items if record["kind"] == "device"]
    assert samples
    assert samples[0].keys() >= {"cpu_cores", "memory_gib", "host_cpu_util", "host_memory_gib", "host_memory_total_gib"}
    assert 0 < samples[0]["memory_gib"] < samples[0]["host_memory_total_gib"]


def test_a_source_that_breaks_takes_nothing_else_along() -> None:
    found: list[dict[str, float]] = []
    with Sampler(lambda **fields: found.append(fields), gpu="no such card", every=0.01) as sampler:
        sampler._sources.insert(0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        end = time.monotonic() + 10
        while time.monotonic() < end and not found:
            time.sleep(0.01)
    assert found[0].keys() == {"cpu_cores", "memory_gib"}


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What NVML answers for a card that has no ECC counters."""
    module = ModuleType("pynvml")

    def refuse(*given: object) -> None:
        raise NVMLError

    module.__dict__.update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlEventSetCreate=refuse,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1410,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=30 << 30, total=40 << 30),
        nvmlDeviceGetTemperature=lambda handle, kind: 61,
        nvmlDeviceGetPowerUsage=lambda handle: 298_500,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 7_200_000,
        nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlClocksThrottleReasonHwThermalSlowdown=64,
        nvmlClocksThrottleReasonSwThermalSlowdown=32,
        nvmlClocksThrottleReasonHwPowerBrakeSlowdown=128,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 64 | 4,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlDeviceGetTotalEccErrors=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_what_a_card_tells_and_what_it_does_not(nvml: ModuleType) -> None:
    gpu = Gpu("0c3a")
    assert gpu._handle == "GPU-0c3a"
    assert gpu() == {
        "gpu_util": 0.87,
        "clock_mhz": 1410,
        "gpu_memory_gib": 30.0,
        "gpu_memory_total_gib": 40.0,
        "temperature_c": 61,
        "power_w": 298.5,
        "energy_j": 7200.0,
        "throttled": 1.0,
    }


def test_a_record_says_of_its_samples_what_matters() -> None:
    samples = [
        {"gpu_util": 0.8, "temperature_c": 61, "throttled": 1.0, "energy_j": 123456789.3, "gpu_memory_gib": 30.123456},
        {"gpu_util": 1.0, "temperature_c": 88, "throttled": 0.0, "energy_j": 123459789.3, "gpu_memory_gib": 31.0},
        {"gpu_util": 0.9, "temperature_c": 70, "throttled": 0.0, "energy_j": 123462789.9, "xid": 79},
        {"power_w": 298.54321, "host_memory_total_gib": 503.25},
    ]
    assert summary(samples) == {
        **{"gpu_util": 0.9, "temperature_c": 88.0, "throttled": 0.3333, "energy_j": 123462790.0},
        **{"gpu_memory_gib": 31.0, "xid": 79.0, "power_w": 298.5, "host_memory_total_gib": 503.2},
    }
    assert summary([{}]) == {}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [1, 1, 2]), (13, [1, 1, 2, 6, 3])])
def test_a_run_begins_with_short_records_and_its_last_samples_are_recorded(count: int, sizes: list[int]) -> None:
    made: list[int] = []
    numbers = itertools.count(1)
    sampler = Sampler(lambda **fields: made.append(int(fields["energy_j"])), every=0.0)

    def source() -> dict[str, float]:
        if (number := next(numbers)) == count:
            sampler._left.set()
        return {"energy_j": float(number)}

    sampler._sources[:] = [source]
    sampler._work()
    assert made == list(itertools.accumulate(sizes))


def samples(power: float, count: int, every: float = 10.0) -> list[dict[str, float]]:
    return [{"t": 1000 + every * n, "power_w": power} for n in range(count)]


def of(records: list[dict[str, float]]) -> Samples:
    found = Samples()
    found.extend(records)
    return found


def test_energy_is_power_times_time_of_all_ranks() -> None:
    assert kwh([of(samples(300, 361)), of(samples(100, 361))]) == pytest.approx(0.4)
    assert kwh([of([{"t": 1.0, "cpu_cores": 2.0}])]) is None
    assert co2_kg(100.0, 380.0) == pytest.approx(38.0)


def test_energy_of_a_run_is_that_of_all_its_attempts(tmp_path: Path) -> None:
    for attempt in (0, 1):
        folder = layout.attempt_folder(tmp_path, attempt)
        folder.mkdir(parents=True)
        lines = [
            json.dumps({"seq": n, "kind": "device", **each}, separators=(",", ":"))
            for n, each in enumerate(samples(360, 11))
        ]
        layout.rank_records(folder, 0).write_text("\n".join([*lines, '{"seq":99,"kind":"device","t":5']))
    assert of_run(tmp_path) == pytest.approx(0.02)
    assert of_run(tmp_path / "none") is None


def test_the_drivers_own_counter_wins_and_gaps_in_what_was_sampled_are_left_out() -> None:
    for every in (10.0, 3000.0):  # the counter goes on, whoever reads it
        counted = [{"t": every * n, "power_w": 1.0, "energy_j": 3600.0 * n} for n in range(11)]
        assert kwh([of(counted)]) == pytest.approx(0.01)
    assert kwh([of(samples(300, 3, every=500.0))]) is None


@given(st.lists(st.fixed_dictionaries({"t": st.floats(0, 1e6), "power_w": st.floats(0, 1e3)}), max_size=20))
def test_energy_is_never_negative(records: list[dict[str, float]]) -> None:
    assert (kwh([of(records)]) or 0.0) >= 0.0
