"""Runs and sweeps from Python, as in a notebook: submitted, waited for, looked into, resumed, cancelled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc import api
from hpc.compose import compose
from hpc.runs import Run
from tests.hpc.conftest import processes
from tests.hpc.test_supervise import until


@pytest.fixture(autouse=True)
def place(here: Path) -> Iterator[Path]:
    yield here
    for run in api.runs():
        for process in processes(Run(run.folder)):
            process.kill()


def shell(text: str) -> dict[str, object]:
    return {"job": "command", "command": ["bash", "-c", text]}


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys; from hpc import api; "
        "print([m for m in ('torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'submitit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_run_from_submitting_to_its_history() -> None:
    run = api.submit(shell("for i in 1 2 3; do echo \"iteration $i/3 | lm loss: 0.$i |\"; done; echo 'a;b' >&2"))
    assert run.job_id.startswith("local-")
    assert run.wait(60) is run
    assert (run.state, run.done(), run.exception()) == ("COMPLETED", True, None)
    assert (run.result()["step"], run.results()) == (3, [run.result()])
    assert list(run.history()["loss"]) == [0.1, 0.2, 0.3]
    assert len(run.frames().attempts) == 1
    assert "a;b" in run.stdout() and run.stdout() == run.stderr() == run.paths.stdout.read_text()
    assert "the run is finished" in run.logs()
    assert run.get_info()["step"] == run.status().step == 3
    assert run.config.command[0] == "bash"
    assert [api.find(run.id), api.find("last"), api.find(run.name), api.Run(run.folder)] == [run] * 4
    assert api.runs(limit=1) == [run]


def test_a_failure_says_why_and_can_be_resumed() -> None:
    run = api.submit({**shell("exit 3"), "requeue": "never", "name": "mine"})
    error = run.exception()
    assert isinstance(error, api.Failed)
    assert "exit status 3" in str(error)
    assert (run.state, run.done(), run.name) == ("FAILED", True, "mine")
    with pytest.raises(api.Failed, match="exit status 3"):
        run.result()
    assert run.resume({"command": ["bash", "-c", "test $HPC_RESUME = 1"]}).wait(60).state == "COMPLETED"
    with pytest.raises(api.Refused, match="is finished"):
        run.resume()


def test_waiting_has_an_end_and_so_has_a_run() -> None:
    run = api.submit(["job=hello", "job.seconds=60"])
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        run.wait(0.3)
    assert not run.done()
    until(lambda: run.state == "RUNNING")
    with pytest.raises(api.Refused, match="has not ended"):
        run.resume()
    run.cancel(now=True)
    assert run.wait(60).state == "CANCELLED"
    assert "cancelled" in str(run.exception())


def test_mistakes_are_refused_and_nothing_is_written(place: Path) -> None:
    for wrong in (["job=helo"], {"job.nodez": 1}, ["job=command"], "job=hello", ["cluster=noctua2", "job.nodes=25"]):
        with pytest.raises(api.Refused):
            api.submit(wrong)
    with pytest.raises(api.Refused):
        api.submit_many([])
    with pytest.raises(api.Refused):
        api.sweep(["job=hello", "job.nodes=1,2"])  # of which this machine has one
    with pytest.raises(api.Refused, match="no run"):
        api.find("nothing")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    "value",
    ["plain", "a b", "it's", "a;touch pwned", "[x]", "{y: 1}", "a,b", "\\", "\\'", "", "ü$HOME", "x=1", "#", '"q"'],
)
def test_values_arrive_as_they_were_given(value: str) -> None:
    words = api.words(
        {"job": "command", "command": ["p", value], "args.text": value, "args.list": [value, 2, None, True]}
    )
    config = compose(words)
    assert config.command == ["p", value]
    assert config.args == {"text": value, "list": [value, 2, None, True]}


def test_a_sweep_and_its_table() -> None:
    sweep = api.sweep(["job=command", "args.n=1,2", "command=echo iteration ${args.n}/9 | lm loss: ${args.n}.5"])
    assert len(sweep) == 2
    assert sweep.wait(90, poll=0.2).done()
    assert [result["loss"] for result in sweep.results()] == [1.5, 2.5]
    table = sweep.table("loss")
    assert list(table["loss"]) == [1.5, 2.5]
    assert list(table["args"]) == [{"n": 1}, {"n": 2}]
    assert [run.state for run in sweep] == ["COMPLETED"] * 2
    assert sweep.resume() == []
    assert sweep.cancel() == {}


def test_many_requests_however_they_differ() -> None:
    sweep = api.submit_many([shell("exit 0"), {**shell("exit 1"), "requeue": "never"}, ["job=hello", "job.nodes=1"]])
    assert [each.state for each in sweep.wait(90, poll=0.2).status()] == ["finished", "failed", "finished"]
    with pytest.raises(api.Failed, match="1 of 3 runs did not finish"):
        sweep.results()


def test_another_use_of_hydra_in_the_process_goes_on(place: Path) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    (place / "conf").mkdir()
    (place / "conf" / "mine.yaml").write_text("x: 1")
    with initialize_config_dir(config_dir=str(place / "conf"), version_base="1.3"):
        assert api.submit({"job": "command", "command": ["true"]}).wait(60).state == "COMPLETED"
        assert hydra_compose("mine").x == 1
