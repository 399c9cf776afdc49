"""A supervisor has what its run recorded compacted, without waiting for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc import compacting, ledger
from hpc.compacting import Compacting
from hpc.runs import Run
from monitoring import compact, layout
from tests.monitoring.generate import Shape, generate


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(compacting, "AFTER", 0.0)
    monkeypatch.setattr(compacting, "WORTH", 1)
    folder = generate(tmp_path / "run", Shape(layers=(), world_size=1))
    for number in layout.attempt_numbers(folder):
        path = layout.attempt_info(layout.attempt_folder(folder, number))
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "n1", "pid": 1}))
    return Run(folder)


def names(run: Run) -> list[bool]:
    return [(ledger.folder(run, number) / layout.STEPS_COMPACTED).exists() for number in ledger.numbers(run)]


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until() and time.monotonic() < end:
        time.sleep(0.05)


def test_attempts_that_have_ended_are_compacted_beside_training(run: Run) -> None:
    found = Compacting(run, print)
    begin = time.monotonic()
    found.look()
    assert time.monotonic() - begin < 1
    wait(lambda: names(run) == [True, True, False])
    assert names(run) == [True, True, False]
    assert found._process is not None and found._process.wait(30) == 0
    found.look()
    assert found._process is None and not found._due()


def test_what_was_killed_between_two_files_is_due_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = generate(tmp_path / "moe", Shape())  # with loads of experts and summaries of ranks
    made = []

    def killed(*args: Any) -> bool:
        if made:
            raise KeyboardInterrupt
        made.append(write(*args))
        return made[-1]

    write = compact._write
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(compact, "_write", killed)
        compact.compact(folder, 0)
    assert made == [True]
    assert 0 in Compacting(Run(folder), print)._due()
    compact.compact(folder, 0)
    assert 0 not in Compacting(Run(folder), print)._due()


def test_few_records_and_an_attempt_that_failed_before_start_no_process(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "WORTH", 1 << 30)
    found = Compacting(run, print)
    found.look()
    assert found._process is None
    found.finish(lambda: False)
    assert names(run) == [False] * 3


def test_at_the_end_it_is_waited_for_unless_asked_to_leave(run: Run) -> None:
    Compacting(run, print).finish(lambda: True)
    assert names(run) == [False] * 3
    Compacting(run, print).finish(lambda: False)
    assert names(run) == [True, True, False]


def test_a_process_that_hangs_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "LAST", 0.3)
    monkeypatch.setattr(compacting.sys, "executable", "/bin/sh")  # which does not understand -m and waits for nothing
    Compacting(run, print).finish(lambda: False)
    monkeypatch.setattr(compacting, "PATIENCE", -1.0)
    found = Compacting(run, print)
    found._start([0], time.monotonic() - 1)
    process = found._process
    assert process is not None
    found.look()
    assert process.wait(10) != 0
