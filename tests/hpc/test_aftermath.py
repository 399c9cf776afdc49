"""Signs that an attempt's ranks are alive, and what is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hpc.aftermath import Silence
from monitoring.recorder import Recorder


def after(silence: Silence, seconds: float, meanwhile: Callable[[], object]) -> str | None:
    """What is said of the silence in the end, if something goes on meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        if said := silence.broken():
            return said
        time.sleep(0.02)
    return None


def test_ranks_that_record_steps_are_not_silent_and_those_that_sample_devices_are(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 1, "run", 0)
    silence, steps = Silence(tmp_path, 0.5), iter(range(1, 1000))

    def step() -> None:
        recorder.step(step=next(steps), tokens=1, loss=2.0)
        recorder.sync()

    def sample() -> None:
        recorder.device(gpu_util=0.0)
        recorder.sync()

    assert after(silence, 1.0, step) is None
    said = after(silence, 5.0, sample)
    recorder.close()
    assert said is not None and said.startswith("no rank printed or recorded anything for")


def test_a_log_that_grows_is_a_word_and_no_limit_is_never_broken(tmp_path: Path) -> None:
    log = (tmp_path / "rank-1.log").open("a")
    with log:
        assert after(Silence(tmp_path, 0.3), 0.8, lambda: (log.write("."), log.flush())) is None
    assert after(Silence(tmp_path, None), 0.2, lambda: None) is None
