"""What other programs print: their own lines, in their formats, as steps and metrics."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import monitoring
from hpc import attempt, config
from monitoring import layout, load, program
from monitoring.follow import Follower
from monitoring.history import History
from monitoring.patterns import SHIPPED, Found, readers
from monitoring.recorder import Recorder
from monitoring.tail import LineTail

ROOT = Path(__file__).resolve().parents[2]


def told(names: Sequence[str], *lines: str) -> list[Found]:
    made = readers(names)
    return [found for line in lines for reader in made if (found := reader(line)) is not None]


def test_megatron_deepspeed() -> None:
    line = (
        " iteration       20/     100 | consumed samples:          320 | consumed tokens:       655360 |"
        " elapsed time per iteration (ms): 1234.5 | learning rate: 1.500E-04 | global batch size:    16 |"
        " lm loss: 1.012345E+01 | moe loss: 2.000000E-02 | loss scale: 65536.0 | grad norm: 1.234 |"
        " actual seqlen:  2048 | number of skipped iterations:   0 | number of nan iterations:   0 |"
        " samples per second: 12.960 | tokens per gpu per second (tgs): 6635.520 | TFLOPs: 47.11 |"
    )
    (found,) = told(["megatron"], line)
    assert (found.step, found.steps, found.tokens) == (20, 100, 655360)
    assert found.metrics["loss"] == 10.12345
    assert found.metrics["lr"] == 1.5e-4
    assert found.metrics["step_s"] == 1.2345
    assert found.metrics["grad_norm"] == 1.234
    assert found.metrics["moe_loss"] == 0.02
    assert found.metrics["number_of_nan_iterations"] == 0


def test_megatron_lm_and_its_validation() -> None:
    line = (
        " [2026-08-22 15:22:22.123456] iteration       10/     500 | consumed samples:         2560 |"
        " elapsed time per iteration (ms): 812.3 | throughput per GPU (TFLOP/s/GPU): 401.2 |"
        " learning rate: 3.000000E-05 | global batch size:   256 | lm loss: nan | loss scale: 1.0 |"
        " number of skipped iterations:   0 | number of nan iterations:   1 |"
    )
    after = " validation loss at iteration 10 on validation set | lm loss value: 7.5E+00 | lm loss PPL: 1.8E+03 | "
    first, second = told(["megatron"], line, after)
    assert first.tokens is None
    assert math.isnan(first.metrics["loss"])
    assert first.metrics["tflops"] == 401.2
    assert second == Found(10, metrics={"validation_loss": 7.5, "validation_perplexity": 1800})


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_any_more_is_told_as_such(loss: float) -> None:
    line = f" iteration       10/     100 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: {loss:.3f} |"
    (found,) = told(["megatron"], line)
    assert repr(found.metrics["loss"]) == repr(found.metrics["grad_norm"]) == repr(loss)
    (found,) = told(["megatron"], f" validation loss at iteration 4 | lm loss value: {loss:.6E} | lm loss PPL: INF | ")
    assert repr(found.metrics["validation_loss"]) == repr(loss)
    assert found.metrics["validation_perplexity"] == math.inf


def test_of_a_line_that_is_torn_and_the_one_right_behind_it_only_that_one_counts() -> None:
    lines = [f" iteration {step}/ 100 | consumed samples: {step * 64} | lm loss: {step}.5E+00 |" for step in (3, 4)]
    validation = " validation loss at iteration 2 on test set | lm loss value: 1.5E+00 | lm loss PPL: 4.5E+00 |"
    metrics = {"consumed_samples": 256, "loss": 4.5}
    for torn in (lines[0], validation):
        for cut in range(len(torn)):
            told_of = told(["megatron"], torn[:cut] + lines[1])
            assert told_of == [Found(4, steps=100, metrics=metrics)], torn[:cut]
    (found,) = told(["megatron"], lines[0][:40] + validation)
    assert found == Found(2, metrics={"validation_loss": 1.5, "validation_perplexity": 4.5})


def test_a_word_that_begins_like_a_number_is_none() -> None:
    (found,) = told(["torchtitan"], "step: 3  loss: 2.5  state: information  kind: Nanotron")
    assert found.metrics == {"loss": 2.5}


def test_hugging_face_trainer_takes_the_step_from_the_bar_that_is_drawn_after_it() -> None:
    lines = (
        "Map: 100%|##########| 1000/1000 [00:00<00:00, 9.9kit/s]",
        "  0%|          | 0/12 [00:00<?, ?it/s]",
        "{'loss': '3.915', 'grad_norm': '0.773', 'learning_rate': '5e-05', 'epoch': '0.1875', "
        "'num_input_tokens_seen': 192, 'train_runtime': '0.0433', 'train_tokens_per_second': '4434'}",
        " 25%|##5       | 3/12 [00:00<00:00, 76.39it/s]",
        "  0%|          | 0/8 [00:00<?, ?it/s]",
        "{'eval_loss': '3.913', 'eval_runtime': '0.0236', 'epoch': '0.375', 'num_input_tokens_seen': 384}",
        " 38%|###       | 3/8 [00:00<00:00, 487.28it/s]",
        " 50%|#####     | 6/12 [00:00<00:00, 65.19it/s]",
        "{'train_runtime': '0.1541', 'train_loss': '3.913', 'epoch': '0.75'}",
        "100%|##########| 12/12 [00:00<00:00, 76.83it/s]",
    )
    first, second = told(["huggingface"], *lines)
    assert (first.step, first.steps, first.tokens) == (3, 12, 192)
    assert first.metrics["loss"] == 3.915
    assert first.metrics["lr"] == 5e-5
    assert first.metrics["tokens_per_s"] == 4434
    assert (second.step, second.metrics["validation_loss"]) == (6, 3.913)


def test_hugging_face_trainer_before_version_5_printed_plain_numbers() -> None:
    lines = (
        "  1%|          | 5/500 [00:05<08:15,  1.00s/it]",
        "[rank0]: {'loss': 2.3, 'learning_rate': 4e-05, 'grad_norm': nan, 'epoch': 0.02}",
        "  2%|2         | 10/500 [00:10<08:10,  1.00s/it]",
    )
    (found,) = told(["huggingface"], *lines)
    assert (found.step, found.metrics["loss"], found.metrics["lr"]) == (10, 2.3, 4e-5)
    assert math.isnan(found.metrics["grad_norm"])


@pytest.mark.parametrize(
    "line",
    [
        "Epoch 1 | iter 8 step 2 | loss train: 10.123, val: n/a | iter time: 9.14 ms (step) remaining time: 0:01:02",
        "Epoch 3 | iter 8 step 2 | loss train: 10.123, val: 9.871 | iter time: 9.14 ms",
        "iter 8 | step 2: loss 10.1230, iter time: 9.14 ms (optimizer.step), remaining time: 0.02 days",
        "iter 8 step 2: loss 10.1230, iter time: 9.14ms (optimizer.step) remaining time: 1.00 hours. ",
    ],
)
def test_litgpt_lit_gpt_and_tinyllama(line: str) -> None:
    (found,) = told(["litgpt"], line)
    assert (found.step, found.metrics["loss"]) == (2, 10.123)
    assert found.metrics["iter_s"] == pytest.approx(0.00914)


def test_a_validation_of_litgpt_counts_for_the_newest_step() -> None:
    (found,) = told(["litgpt"], "iter 800: val loss 9.8765, val time: 1234.56 ms")
    assert found == Found(None, metrics={"validation_loss": 9.8765})


def test_torchtitan() -> None:
    lines = (
        "[rank0]:[titan] 2026-08-21 21:30:21,123 - root - INFO - step: 10  loss:  7.12345  grad_norm:  0.9876  "
        "memory: 12.34GiB(15.60%)  tps: 12,345  tflops: 123.45  mfu: 39.57%",
        "[titan] 2026-08-21 21:30:22,123 - root - INFO - validate step: 10  loss:  7.0011  memory:  1.00GiB(1.2%)",
    )
    first, second = told(["torchtitan"], *lines)
    assert first.step == 10
    assert first.metrics == {
        "loss": 7.12345,
        "grad_norm": 0.9876,
        "memory_gib": 12.34,
        "tokens_per_s_per_gpu": 12345,
        "tflops": 123.45,
        "mfu": 39.57,
    }
    assert second == Found(10, metrics={"validation_loss": 7.0011})


def test_a_regular_expression_of_ones_own() -> None:
    (found,) = told(
        [r"update (?P<step>\d+).* xent (?P<loss>\S+) seen (?P<tokens>[\d,]+)"], "update 7: xent 1.5 seen 1,000"
    )
    assert found == Found(7, 1000, metrics={"loss": 1.5})


@pytest.mark.parametrize("expression", ["(", "no groups", "step (\\d+)"])
def test_an_expression_that_tells_nothing_is_refused(expression: str) -> None:
    with pytest.raises(ValueError):
        readers([expression])


@given(st.text(max_size=300))
def test_no_line_is_too_strange(line: str) -> None:
    for reader in readers([*SHIPPED, r"(?P<step>\d*)(?P<loss>.*)"]):
        reader(line)


@given(st.sampled_from(["megatron", "litgpt", "torchtitan"]), st.integers(0, 10**9), st.floats(1e-5, 1e5))
def test_steps_and_losses_come_back_as_they_were_printed(name: str, step: int, loss: float) -> None:
    line = {
        "megatron": f" iteration {step:8d}/{10**9:8d} | lm loss: {loss:.6E} |",
        "litgpt": f"Epoch 1 | iter 9 step {step} | loss train: {loss:.3f}, val: n/a | iter time: 1.00 ms (step)",
        "torchtitan": f"step: {step:2}  loss: {loss:8.5f}  tps: {7:,}",
    }[name]
    (found,) = told(list(SHIPPED), line)
    assert found.step == step
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-3, abs=1e-3)


def test_names_are_spelled_alike_everywhere() -> None:
    assert config.CommandJob().metrics == list(SHIPPED)
    assert (program.RUN, program.ATTEMPT) == (attempt.RUN, attempt.ATTEMPT)


# -- following a log -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run" / "attempts" / "0"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def follower(folder: Path) -> Iterator[Follower]:
    made = Follower(folder, 2, list(SHIPPED), lambda: Recorder(folder, 0, 2, "run", 0))
    yield made
    made.close()


def say(folder: Path, rank: int, text: str) -> None:
    with layout.rank_log(folder, rank).open("a") as log:
        log.write(text)


def recorded(folder: Path) -> list[tuple[int, float]]:
    frame = load(folder.parent.parent).history
    return list(zip(frame["step"], frame["loss"], strict=True)) if len(frame) else []


def iteration(step: int) -> str:
    return f" iteration {step}/9 | lm loss: {10 - step}.0 |\n"


def test_each_state_of_a_progress_bar_is_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a\rb\x1b[31m\r\nto")
    tail = LineTail(log)
    assert list(tail.read()) == ["a", "b"]
    with log.open("ab") as file:
        file.write(b"rn\nend")
    assert list(tail.read()) == ["torn"]
    assert list(tail.read(rest=True)) == ["end"]


def test_steps_are_recorded_whichever_rank_prints_them(folder: Path, follower: Follower) -> None:
    say(folder, 1, iteration(1) + iteration(2)[:9])
    follower.look()
    say(folder, 1, iteration(2)[9:])
    follower.close()
    assert recorded(folder) == [(1, 9.0), (2, 8.0)]


def test_what_several_ranks_print_is_recorded_once(folder: Path, follower: Follower) -> None:
    say(folder, 0, iteration(1) + iteration(2))
    say(folder, 1, iteration(1) + iteration(2))
    follower.close()
    assert recorded(folder) == [(1, 9.0), (2, 8.0)]
    assert layout.rank_records(folder, 0).read_text().count('"kind":"step"') == 2


def test_tokens_of_a_program_that_prints_none(folder: Path) -> None:
    follower = Follower(folder, 1, ["megatron"], lambda: Recorder(folder, 0, 1, "run", 0), tokens_per_step=100)
    say(folder, 0, iteration(3))
    follower.close()
    assert list(load(folder.parent.parent).history["tokens"]) == [300]


def test_nothing_is_recorded_of_a_program_that_prints_nothing_known(folder: Path, follower: Follower) -> None:
    say(folder, 0, "hello\n")
    follower.close()
    assert not layout.rank_records(folder, 0).exists()


# -- two lines in the program --------------------------------------------------------------------------------------

TWO_LINES = "import monitoring, sys\nmonitoring.record(step=int(sys.argv[1]), tokens=100, loss=0.5)\n"


def run(code: str, *words: str, flags: Sequence[str] = (), **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *words],
        env={"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_records_by_two_lines(folder: Path) -> None:
    place = {"HPC_RUN": str(folder.parent.parent), "HPC_ATTEMPT": "0"}
    run(TWO_LINES, "3", RANK="0", WORLD_SIZE="2", **place)
    run(TWO_LINES, "4", RANK="1", WORLD_SIZE="2", **place)  # of which nothing is recorded
    assert recorded(folder) == [(3, 0.5)]


class Refuses:
    """As a tensor whose device has failed."""

    def __float__(self) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    __int__ = __float__


def test_nothing_that_a_program_hands_over_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ((program.RUN, folder.parent.parent), (program.ATTEMPT, 0), ("RANK", 0)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(program, "_this", None)
    bad: Any = Refuses()
    monitoring.record(step=1, tokens=10, loss=0.5, a=bad, b=10**400, c="text", d=None, self=1.0)
    monitoring.record(step=2, tokens=bad, loss=0.25)
    monitoring.record(step=bad, loss=0.125)
    program._leave()
    history = History(folder.parent.parent)
    history.refresh()
    frame = history.frame()
    assert (list(frame["step"]), list(frame["tokens"]), list(frame["loss"])) == ([1, 2], [10, 10], [0.5, 0.25])
    assert set(frame) == {"step", "tokens", "attempt", "t", "loss", "self"}
    assert history.problems() == ["attempt 0: 1 record could not be written"]


def test_a_file_system_that_is_stale_at_the_first_record_costs_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((program.RUN, folder.parent.parent), (program.ATTEMPT, 0), ("RANK", 0)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(program, "_this", None)
    monkeypatch.setattr(program, "PATIENCE", 0.1)
    with monkeypatch.context() as stale:
        stale.setattr(os, "stat", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
        monitoring.record(step=1, loss=0.5)
    program._leave()
    assert recorded(folder) == [(1, 0.5)]


def test_outside_of_a_run_the_two_lines_do_nothing(tmp_path: Path) -> None:
    assert run(TWO_LINES + "monitoring.finish(loss=1)", "3") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_program_needs_none_of_our_dependencies(folder: Path) -> None:
    place = {"HPC_RUN": str(folder.parent.parent), "HPC_ATTEMPT": "0"}
    heavy = "print([m for m in ('numpy', 'pandas', 'orjson', 'psutil', 'omegaconf') if m in sys.modules])"
    assert run(TWO_LINES + heavy, "3", flags=["-S"], **place) == "[]\n"
    assert recorded(folder) == [(3, 0.5)]


def test_of_two_processes_that_take_themselves_for_rank_0_one_records(folder: Path) -> None:
    place = {"HPC_RUN": str(folder.parent.parent), "HPC_ATTEMPT": "0"}
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TWO_LINES!r}, '9'], check=True)"
    run(TWO_LINES + inner, "3", **place)
    assert recorded(folder) == [(3, 0.5)]


def test_a_program_that_records_by_itself_takes_over_from_what_reads_its_output(
    folder: Path, follower: Follower
) -> None:
    say(folder, 0, iteration(1))
    follower.look()
    place = {"HPC_RUN": str(folder.parent.parent), "HPC_ATTEMPT": "0"}
    program = threading.Thread(target=run, args=(TWO_LINES, "2"), kwargs=place)
    program.start()
    end = time.monotonic() + 30
    while program.is_alive() and time.monotonic() < end:
        follower.look()
        time.sleep(0.05)
    program.join()
    say(folder, 0, iteration(3))
    follower.close()
    assert recorded(folder) == [(1, 9.0), (2, 0.5)]


def test_finish_says_that_the_run_is_finished(folder: Path) -> None:
    place = {"HPC_RUN": str(folder.parent.parent), "HPC_ATTEMPT": "0"}
    run("import monitoring; monitoring.finish(loss=0.25)", **place)
    assert '"loss": 0.25' in (folder.parent.parent / layout.FINISHED).read_text()
