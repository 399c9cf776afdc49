"""One live attempt per run, through crashes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from hpc import ledger
from hpc.ledger import Held, Record
from hpc.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def record(job: str):
    return lambda number: Record(number=number, job_id=job)


def lives(past: Record) -> bool:
    return True


def gone(past: Record) -> bool:
    return False


def test_numbers_count_up_over_jobs(run: Run) -> None:
    assert ledger.take(run, record("1"), lives).number == 0
    assert ledger.take(run, record("1"), lives).number == 1  # requeued: the same job is its own owner
    assert ledger.take(run, record("2"), gone).number == 2
    assert [r.job_id for r in ledger.history(run)] == ["1", "1", "2"]


def test_a_second_job_is_refused_while_the_owner_lives(run: Run) -> None:
    ledger.take(run, record("1"), lives)
    with pytest.raises(Held, match="job 1"):
        ledger.take(run, record("2"), lives)
    assert len(ledger.history(run)) == 1


def test_a_crash_while_taking_leaves_nothing_that_blocks(run: Run) -> None:
    run.attempts.mkdir()
    half = run.attempts / ".0.abcd.tmp"
    half.mkdir()
    (half / "attempt.json").write_text("{")
    assert ledger.take(run, record("1"), gone).number == 0


def test_an_update_keeps_the_rest(run: Run) -> None:
    ledger.take(run, record("1"), gone)
    ledger.update(run, 0, cause="crash", step=7)
    assert ledger.history(run) == [Record(number=0, job_id="1", cause="crash", step=7)]


def test_keys_of_a_newer_version_are_ignored(run: Run) -> None:
    ledger.take(run, record("1"), gone)
    path = ledger.folder(run, 0) / "attempt.json"
    path.write_text('{"number": 0, "job_id": "1", "mood": "good"}')
    assert ledger.history(run) == [Record(number=0, job_id="1")]


def _contend(folder: str, job: str, results: multiprocessing.Queue) -> None:
    try:
        taken = ledger.take(Run(Path(folder)), record(job), lives)
        results.put((job, taken.number))
    except Held:
        results.put((job, None))


def test_of_many_contenders_exactly_one_gets_the_run(run: Run) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    contenders = [context.Process(target=_contend, args=(str(run.folder), str(i), results)) for i in range(12)]
    for process in contenders:
        process.start()
    outcomes = [results.get(timeout=30) for _ in contenders]
    for process in contenders:
        process.join(30)
    assert sorted(number for _, number in outcomes if number is not None) == [0]
    assert not list(run.attempts.glob(".*.tmp"))


def test_a_record_that_was_lost_does_not_give_its_number_again(run: Run) -> None:
    ledger.take(run, record("1"), gone)
    (ledger.folder(run, 0) / "attempt.json").write_text("")
    assert ledger.history(run) == []
    assert ledger.take(run, record("2"), gone).number == 1
