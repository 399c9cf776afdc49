"""``job=command``: a program of one's own on this machine, asked to stop, killed, started again, and read."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hpc import check_command, ledger, program
from hpc.cli import main
from hpc.compose import compose
from hpc.diagnose import diagnose
from hpc.errors import Refused
from hpc.exits import Exit
from hpc.request import resolve
from hpc.requeue import Cause
from hpc.runs import READY, Run
from hpc.waiting import wait
from monitoring.reader import Reader
from monitoring.terminal.plain import plain
from tests.hpc.conftest import processes
from tests.hpc.programs import DISTRIBUTED, TRAINING
from tests.hpc.test_supervise import causes, ready, until

Start = Callable[..., Run]
PYTHON = sys.executable


@pytest.fixture
def script(here: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = here / "train.py"
        path.write_text(text)
        return path

    return write


def command(*words: object) -> str:
    """A list of words as an override."""
    return "command=[" + ",".join("'" + str(word).replace("'", "\\'") + "'" for word in words) + "]"


def output(run: Run, attempt: int = 0, rank: int = 0) -> str:
    return (ledger.folder(run, attempt) / f"rank-{rank}.log").read_text()


def below(run: Run) -> list[psutil.Process]:
    """All that descends from what belongs to a run."""
    return [child for process in processes(run) for child in process.children(recursive=True)]


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("torchrun train.py", ["torchrun", "train.py"]),
        ("a 'b c' \"d;e\" $X `f` | g > h", ["a", "b c", "d;e", "$X", "`f`", "|", "g", ">", "h"]),
        (["bash", "-c", "a | b", 3, 0.5, True], ["bash", "-c", "a | b", "3", "0.5", "true"]),
    ],
)
def test_words_of_a_command(given: object, words: list[str]) -> None:
    assert check_command.words(given) == words


@pytest.mark.parametrize("given", ["", "   ", [], [""], "a 'b", 3, {"a": 1}, [["a"]], ["a", "b\0"]])
def test_what_is_no_command(given: object) -> None:
    with pytest.raises(ValueError):
        check_command.words(given)


def test_names_of_the_environment_are_filled_in_but_not_for_a_shell() -> None:
    told = {"NODE_RANK": "3", "NODE": "x", "HPC_RUN": "/r;rm"}
    assert check_command.filled(["p", "--rank=$NODE_RANK", "$NODE_RANKS", "$NODE", "$HOME", "$$"], told) == [
        "p",
        "--rank=3",
        "$NODE_RANKS",
        "x",
        "$HOME",
        "$$",
    ]
    shell = ["/bin/bash", "-c", "cd $HPC_RUN"]
    assert check_command.filled(shell, told) == shell


@pytest.mark.parametrize(
    "typed",
    [
        "torchrun train.py --lr=1e-4 --layers=1,2",
        "python -c 'print(1, \"{2}\")' \\ [x]",
        "a;touch pwned",
        "p it\\'s 100% $A ~ * ? (b)",
    ],
)
def test_a_command_means_what_was_typed(typed: str) -> None:
    assert compose(["job=command", f"command={typed}"]).command == typed


def test_a_command_may_refer_to_values_of_ones_own() -> None:
    config = compose(["job=command", "args.lr=3e-4", "command=train --lr ${args.lr}"])
    assert config.command == "train --lr 0.0003"
    assert config.name == "command"
    assert compose(["job=command", "command=x", "name=mine"]).name == "mine"


# -- the request ---------------------------------------------------------------------------------------------------


def test_a_node_is_one_rank_with_all_its_gpus() -> None:
    request = resolve(compose(["job=command", "command=x", "cluster=noctua2", "job.nodes=2"]))
    assert (request.ranks_per_node, request.gpus_per_node, request.processes_per_rank) == (1, 4, 4)
    shared = ["job=command", "command=x", "cluster=noctua2", "cluster.exclusive=false"]
    assert resolve(compose(shared)).gpus_per_node == 4
    assert resolve(compose([*shared, "job.gpus_per_node=2"])).processes_per_rank == 2
    each = resolve(compose([*shared, "job.ranks_per_node=4"]))
    assert (each.ranks_per_node, each.gpus_per_node, each.processes_per_rank) == (4, 4, 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["job=command"], "command=null"),
        (["job=command", "command=''"], "it has no words"),
        (["job=command", "command=[a,[b]]"], "neither text nor a list"),
        (["job=command", "command=a 'b"], "no closing quotation"),
        (["job=hello", "command=ls"], "only job=command runs one"),
        (["job=command", "command=ls", "job.metrics=[megatrn]"], "no pattern of that name"),
        (["job=command", "command=ls", "job.metrics=['(']"], "no regular expression"),
        (["job=command", "command=ls", "job.tokens_per_step=0"], "at least 1"),
        (["job=command", "command=ls", "cluster=noctua2", "job.gpus_per_node=5"], "has 4 GPUs"),
        (["job=command", "command=ls", "job.signal=KILL"], "USR1"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    overrides: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *overrides]) == Refused.status
    assert said in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_program_that_is_not_here_is_a_warning_and_on_the_node_the_end(start: Start) -> None:
    run = start("job=command", "command=no-such-program --x")
    assert wait(run, quiet=True) == 1
    assert causes(run) == [("refused", "stop")]
    assert "'no-such-program' is not found on node" in run.state()["reason"]


# -- running -------------------------------------------------------------------------------------------------------


def test_a_program_works_where_it_was_submitted_and_is_told_of_its_run(start: Start, here: Path) -> None:
    names = ["HPC_RUN", "HPC_ATTEMPT", "HPC_CHECKPOINTS", "HPC_RESUME", "NNODES", "NODE_RANK", "PET_NNODES"]
    text = f"import os, json; print(json.dumps([os.getcwd(), *(os.environ[n] for n in {names})]))"
    run = start("job=command", command(PYTHON, "-c", text))
    assert wait(run, quiet=True) == 0
    (line,) = (line for line in output(run).splitlines() if line.startswith("["))
    assert json.loads(line) == [str(here), str(run.folder), "0", str(run.checkpoints), "0", "1", "0", "1"]
    assert run.name == "command"
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["program"] == {"directory": str(here), "git": None}


def test_its_own_modules_come_before_ours(start: Start, here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "trainer.py").write_text("NAME = 'mine'")
    code = "import trainer, monitoring; print(trainer.NAME, monitoring.__file__)"
    run = start("job=command", command(PYTHON, "-c", code), f"job.pythonpath={here}/mine")
    assert wait(run, quiet=True) == 0
    assert f"mine {run.code}/monitoring" in output(run)


def test_no_word_reaches_a_shell(start: Start, here: Path) -> None:
    code = "'import sys; print(sys.argv[1:])'"
    run = start("job=command", f"command={PYTHON} -c {code} 'a;touch pwned' `touch` > out | x")
    assert wait(run, quiet=True) == 0
    assert "['a;touch pwned', '`touch`', '>', 'out', '|', 'x']" in output(run)
    assert sorted(path.name for path in here.iterdir()) == ["runs"]


def test_a_list_of_words_may_be_a_shells(start: Start) -> None:
    run = start("job=command", command("bash", "-c", "echo one two | tr a-z A-Z; echo $HPC_ATTEMPT"))
    assert wait(run, quiet=True) == 0
    assert "ONE TWO\n0\n" in output(run)


def test_at_the_limit_it_saves_and_the_next_attempt_goes_on(start: Start, script: Callable[[str], Path]) -> None:
    path = script(TRAINING)
    run = start("job=command", f"command={PYTHON} {path} 40 0.2", "job.time=0:08", "job.grace=3")
    assert wait(run, quiet=True) == 0
    assert {cause for cause, _ in causes(run)} == {("time_limit"), "finished"}
    snapshot = Reader(run.folder).read()
    assert (snapshot.step, snapshot.tokens, snapshot.target_steps, snapshot.lost_steps) == (40, 4000, 40, 0)
    assert list(snapshot.loss.steps) == list(range(1, 41))
    assert "step 40 of 40 (100.0 %), 4,000 tokens" in plain(snapshot)
    assert main(["watch", "--json", str(run.folder)]) == 0
    assert "resume 1" in output(run, 1)
    finished = json.loads(run.finished_file.read_text())
    assert (finished["step"], finished["tokens"], finished["loss"]) == (40, 4000, 0.25)
    until(lambda: processes(run) == [])  # its supervisor ends a moment after it has said so


def test_a_program_whose_steps_nobody_sees_makes_progress_by_saving(
    start: Start, script: Callable[[str], Path]
) -> None:
    path = script(TRAINING)
    words = f"command={PYTHON} {path} 80 0.2"
    run = start("job=command", words, "job.metrics=[]", "job.time=0:12", "job.grace=3", "job.max_fruitless=1")
    assert wait(run, quiet=True) == 0
    assert len(causes(run)) > 1


def test_a_launcher_outlives_the_signal_and_its_workers_get_it(start: Start, script: Callable[[str], Path]) -> None:
    # As torchrun: a parent that does not handle the signal, with workers in sessions of their own.
    path = script(TRAINING)
    worker = [PYTHON, str(path), "1000", "0.1"]
    launcher = f"import subprocess, sys; sys.exit(subprocess.run({worker}, start_new_session=True).returncode)"
    run = start("job=command", command(PYTHON, "-c", launcher), "job.time=0:08", "job.grace=3", "job.max_fruitless=1")
    until(lambda: (ledger.folder(run, 1) / READY).exists())
    assert ledger.history(run)[0].cause == "time_limit"
    assert ledger.history(run)[0].exit_code == 0
    assert "1 processes were sent SIGUSR2" in output(run)
    main(["cancel", "--now", str(run.folder)])
    until(lambda: processes(run) == [])


def test_a_shell_can_trap_another_signal(start: Start) -> None:
    loop = "trap 'echo saving; exit 0' TERM; for i in $(seq 600); do sleep 0.1; done"
    run = start(
        "job=command",
        command("bash", "-c", loop),
        "job.signal=TERM",
        "job.time=0:06",
        "job.grace=3",
        "job.max_fruitless=1",
    )
    assert wait(run, quiet=True) == 1
    assert causes(run) == [("time_limit", "stop")]
    assert "saving" in output(run)


def test_what_does_not_end_is_ended_with_all_that_it_started(start: Start) -> None:
    stubborn = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    inner = stubborn + "time.sleep(600)"
    outer = stubborn + f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True); time.sleep(600)"
    run = start("job=command", command(PYTHON, "-c", outer), "job.time=0:06", "job.grace=3", "job.max_fruitless=1")
    until(lambda: len(below(run)) >= 3)  # supervisor's descendants: rank, guard, both programs
    found = below(run)
    assert wait(run, quiet=True) == 1
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in found))


@pytest.mark.parametrize("victim", ["rank", "supervisor"])
def test_whoever_of_us_is_killed_the_program_goes_too(start: Start, victim: str) -> None:
    run = start("job=command", command(PYTHON, "-c", "import time; time.sleep(600)"), "requeue=never")
    until(ready(run, 0))
    until(lambda: any("time.sleep(600)" in " ".join(each.cmdline()[-1:]) for each in below(run)))
    mine = [each for each in below(run) if "time.sleep(600)" in " ".join(each.cmdline()[-1:])]
    marks = {"rank": "submitit.core._submit", "supervisor": "hpc.supervise"}
    chosen = [each for each in processes(run) if marks[victim] in each.cmdline()]
    (chosen[0] if victim == "rank" else chosen[-1]).kill()
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in mine))


def test_a_failing_program_is_diagnosed_by_what_it_printed(start: Start) -> None:
    run = start("job=command", command(PYTHON, "-c", "raise ValueError('no such layer')"), "requeue=never")
    assert wait(run, quiet=True) == 1
    (record,) = ledger.history(run)
    assert (record.cause, record.exit_code) == ("error", 1)
    assert "ValueError: no such layer" in record.evidence


def test_ranks_of_a_program_that_is_started_once_for_each(start: Start) -> None:
    text = "import os; print('I am', [os.environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')])"
    run = start("job=command", command(PYTHON, "-c", text), "job.ranks_per_node=2")
    assert wait(run, quiet=True) == 0
    for rank in range(2):
        assert f"I am ['{rank}', '2', '{rank}', '2']" in output(run, 0, rank)


def test_a_finished_run_goes_on_only_with_another_command(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("job=command", "command=true")
    assert wait(run, quiet=True) == 0
    assert main(["resume", str(run.folder)]) == Refused.status
    assert "command=..." in capsys.readouterr().err
    assert main(["resume", "--wait", str(run.folder), "command=sh -c 'echo $HPC_RESUME again'"]) == 0
    assert "1 again" in output(run, 1)
    capsys.readouterr()
    for verb in ("status", "explain", "logs", "watch"):
        assert main([verb, str(run.folder)]) == 0
    assert f"hpc resume {run.id} command=..." in capsys.readouterr().out


def test_a_sweep_over_a_programs_own_arguments(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["job=command", "args.n=1,2", "command=echo iteration ${args.n}/9 | lm loss: ${args.n}.5"]
    assert main(["submit", "-m", "--wait", *words]) == 0
    logs = sorted(here.glob("runs/command/*.*/attempts/0/rank-0.log"))
    assert ["iteration 1/9 | lm loss: 1.5" in logs[0].read_text(), "iteration 2/9" in logs[1].read_text()] == [
        True,
        True,
    ]


# -- torchrun ------------------------------------------------------------------------------------------------------


def test_torchrun_saves_at_the_limit_and_survives_a_killed_worker(start: Start, script: Callable[[str], Path]) -> None:
    pytest.importorskip("torch")
    path = script(DISTRIBUTED)
    words = f"command={PYTHON} -m torch.distributed.run --nproc-per-node=2 {path} 80 0.2"
    run = start("job=command", words, "job.time=0:50", "job.grace=15")
    until(lambda: "iteration 7/80" in output(run) if (ledger.folder(run, 0) / "rank-0.log").exists() else False, 60)
    workers = [each for each in below(run) if str(path) in each.cmdline() and "-m" not in each.cmdline()]
    assert len({each.pid for each in workers}) == 2
    workers[-1].send_signal(signal.SIGKILL)
    assert wait(run, quiet=True) == 0
    found = causes(run)
    assert found[0][0] == "crash"  # restarted, or queued again where too little time was left
    assert found[-1] == ("finished", "end")
    assert "SIGKILL" in ledger.history(run)[0].evidence
    assert "begin at 5 of 2 processes" in output(run, 1)
    for number, (cause, _) in enumerate(found[:-1]):
        if cause == "time_limit" and ledger.history(run)[number].step:
            assert f"begin at {ledger.history(run)[number].step} " in output(run, number + 1)
    snapshot = Reader(run.folder).read()
    assert list(snapshot.loss.steps) == list(range(1, 81))


TORCHRUN = """
[rank1]: Traceback (most recent call last):
[rank1]: ValueError: boom
W1122 19:01:11.706000 1 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 2 closing signal
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  exitcode  : -15 (pid: 19744)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 19745)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
"""


@pytest.mark.parametrize(
    ("text", "cause", "said"),
    [
        (TORCHRUN.format(code=1), Cause.error, "ValueError: boom"),
        (TORCHRUN.format(code=-9).replace("ValueError: boom", ""), Cause.crash, "SIGKILL"),
        (TORCHRUN.format(code=1).replace("ValueError: boom", "torch.OutOfMemoryError: CUDA out of memory."),
         Cause.gpu_memory, "CUDA out of memory"),
        ("[2026-01-01 00:00:00] [INFO] [launch.py:325:sigkill_handler] Killing subprocess 7\n"
         "[2026-01-01 00:00:00] [ERROR] [launch.py:331:sigkill_handler] ['p'] exits with return code = -11",
         Cause.crash, "SIGSEGV"),
        ("subprocess.CalledProcessError: Command '['p']' died with <Signals.SIGABRT: 6>.", Cause.crash, "SIGABRT"),
        ("KeyError: 'x'\nsubprocess.CalledProcessError: Command '['p']' returned non-zero exit status 1.",
         Cause.error, "KeyError: 'x'"),
    ],
)  # fmt: skip
def test_what_launchers_say_is_not_taken_for_the_cause(text: str, cause: Cause, said: str) -> None:
    found = diagnose([Exit(0, 1, "", True)], {0: text}, nodes=["n1"])
    assert found.cause is cause
    assert said in found.evidence


# -- the process tree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "launcher"),
    [
        ("/v/bin/python3 /v/bin/torchrun train.py", True),
        ("python -u -m torch.distributed.run train.py", True),
        ("/v/bin/python /v/bin/accelerate launch t.py", True),
        ("python -u -m deepspeed.launcher.launch --x t.py", True),
        ("/v/bin/python -u train.py --launcher torchrun", False),
        ("python -m mine", False),
        ("bash -c x", False),
        ("", False),
    ],
)
def test_launchers_are_known(line: str, launcher: bool) -> None:
    assert program.launches(line.split()) is launcher


def test_handlers_are_seen() -> None:
    code = "import signal, time; signal.signal(signal.SIGUSR1, print); print(flush=True); time.sleep(60)"
    with subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert program.handles(process.pid, signal.SIGUSR1)
        assert not program.handles(process.pid, signal.SIGUSR2)
        process.kill()
    assert not program.handles(process.pid, signal.SIGUSR1)
