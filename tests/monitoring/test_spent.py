"""Where the time of an attempt went: never more and never less than it took."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.layout import attempt_folder, rank_records
from monitoring.spent import Spent, spent


def write(run: Path, records: list[dict[str, object]]) -> Path:
    attempt = attempt_folder(run, 0)
    attempt.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps({"seq": n, **record}) + b"\n" for n, record in enumerate(records)]
    rank_records(attempt, 0).write_bytes(b"".join(lines))
    return attempt


def step(number: int, t: float, took: float = 1.0, saved: float = 0.0) -> dict[str, object]:
    more = {"checkpoint_s": saved} if saved else {}
    return {"t": t, "kind": "step", "step": number, "tokens": number, "step_s": took, **more}


def checkpoint(number: int, t: float) -> dict[str, object]:
    return {"t": t, "kind": "event", "event": "checkpoint", "step": number}


def test_an_attempt_that_saved_at_its_end(tmp_path: Path) -> None:
    records = [step(5, 111.0), checkpoint(5, 112.0), step(6, 120.0, saved=0.5), checkpoint(6, 123.0)]
    assert spent(write(tmp_path, records), 100.0, 125.0) == Spent(10.0, 9.5, 3.5, 2.0, first_step=5)


def test_without_steps_all_after_the_joining_is_work(tmp_path: Path) -> None:
    attempt = write(tmp_path, [])
    assert spent(attempt, 100.0, 125.0, ready=103.0) == Spent(3.0, 22.0, 0.0, 0.0)
    assert spent(attempt, 100.0, 125.0) == Spent(25.0, 0.0, 0.0, 0.0)


times = st.floats(-1e4, 1e4, allow_nan=False)


@given(
    st.lists(st.one_of(st.builds(step, st.integers(0, 9), times, times), st.builds(checkpoint, st.just(1), times))),
    st.floats(0, 1e4),
    st.none() | times,
    st.binary(max_size=40),
)
def test_whatever_clocks_say_it_adds_up(
    records: list[dict[str, object]], took: float, ready: float | None, torn: bytes
) -> None:
    with TemporaryDirectory() as name:
        folder = write(Path(name), records)
        with rank_records(folder, 0).open("ab") as file:
            file.write(torn)
        found = spent(folder, 50.0, 50.0 + took, ready)
        parts = [value for key, value in asdict(found).items() if key != "first_step"]
        assert sum(parts) == pytest.approx(took, abs=1e-6)
        assert all(part >= -1e-9 for part in parts)
