"""``hpc export`` and ``hpc import`` as they are typed."""

from __future__ import annotations

import json
import threading
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from hpc import exporting, runs
from hpc.cli import main
from hpc.sweep import Sweep
from monitoring import layout
from tests.monitoring.generate import Shape, Try, finish, generate
from tests.monitoring.test_export import append, events, steps

ID = "20260101-000000-abcd"
DONE = Shape(tries=(Try(0, 60, "time_limit"), Try(50, 100, "finished")))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    run = generate(tmp_path / "runs" / "tiny" / ID, DONE)
    (run / "overrides.yaml").write_text("- optim.lr=0.1\n- +experiment=tiny\n")
    (run / "notes.json").write_text('{"tags": ["good"], "note": "why"}')
    return tmp_path / "runs"


@pytest.mark.parametrize("to", ["tensorboard", "csv", "parquet"])
def test_a_run_is_exported(to: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "last", "--to", to, "-o", str(tmp_path / "out"), "--json", "--lost"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 100
    assert any((tmp_path / "out" / "tiny" / ID).iterdir())


def test_what_to_type_next_is_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", ID, "--to", "tensorboard", "-o", str(tmp_path / "my out")]) == 0
    said = capsys.readouterr()
    assert said.out == f"tiny/{ID}: 100 steps\n"
    assert said.err == f"look: tensorboard --logdir '{tmp_path}/my out'\n"


def test_where_runs_stand_is_one_file(root: Path, tmp_path: Path) -> None:
    generate(root / "other" / "20260102-000000-abcd", DONE)
    assert main(["export", "tiny", "other", "--to", "openmetrics", "-o", str(tmp_path / "out"), "--follow"]) == 0
    text = (tmp_path / "out" / "hpc.prom").read_text()
    assert text.count("hpc_run_step{") == 2 and text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "tensorbord", "-o", "out"], "Nearest: tensorboard"),
        (["--to", "wandb", "-o", "out", "--lost"], "wandb has no place for lost steps"),
        (["--to", "csv", "-o", "file"], "a file of that name is there"),
    ],
)
def test_mistakes_are_told(
    words: list[str], said: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root.parent)
    Path("file").touch()
    assert main(["export", "last", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_what_tells_a_run_from_others_goes_with_it(root: Path) -> None:
    said = exporting.about(runs.find(root, ID))
    assert said.changed == {"optim.lr": 0.1, "experiment": "tiny"}
    assert (said.tags, said.note, said.config["name"]) == (("good",), "why", "tiny_moe")


def test_a_sweeps_runs_carry_their_own_values(root: Path, tmp_path: Path) -> None:
    folder = root / "tiny" / "20260103-000000-eeee"
    folder.mkdir()
    changes = ({}, {"optim.lr": 0.2}, {"optim.lr": 0.3})  # the first run is the base
    (folder / "base.yaml").write_text("optim: {lr: 0.1}\n")
    members = [{"name": "tiny", "overrides": [], "changes": each} for each in changes]
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "members": members, "arrays": []}))
    for number in (0, 1):  # the third has not begun
        run = generate(root / "tiny" / f"{folder.name}.{number}", DONE)
        (run / "manifest.json").write_text(json.dumps({"sweep": str(folder), "number": number}))
    assert main(["export", folder.name, "--to", "tensorboard", "-o", str(tmp_path / "out")]) == 0
    Plugin = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData

    found = []
    for run in Sweep(folder).run(0), Sweep(folder).run(1):
        content = events(tmp_path / "out" / "tiny" / run.id).PluginTagToContent("hparams")
        start = Plugin.FromString(content["_hparams_/session_start_info"]).session_start_info
        found.append({name: value.number_value for name, value in start.hparams.items()})
    assert found == [{"optim.lr": 0.1}, {"optim.lr": 0.2}]


def test_following_ends_with_the_run_and_outlives_its_requeues(root: Path, tmp_path: Path) -> None:
    run = runs.Run(root / "live" / "20260104-000000-aaaa")
    shape = Shape(tries=(Try(0, 40),))
    generate(run.folder, shape)
    run.set_state("running", job_id=None, emulated=False)

    def train() -> None:
        for attempt, (begin, end) in enumerate([(30, 60), (55, 80)], 1):
            run.set_state("requeued")
            time.sleep(0.05)
            append(run.folder, attempt, ("event", {"event": "resumed", "fields": {"step": begin}}))
            for first in range(begin + 1, end + 1, 5):
                append(run.folder, attempt, *steps(first, first + 4))
                time.sleep(0.02)
        finish(run.folder, shape)

    thread = threading.Thread(target=train)
    thread.start()
    told: list[int] = []
    curves = exporting.Curves(
        lambda: [run], "csv", tmp_path / "out", lost=False, say=lambda _, count: told.append(count)
    )
    curves.follow(pause=0.01)
    thread.join()
    frame = pd.read_csv(tmp_path / "out" / "live" / run.id / "history.csv")
    assert frame["step"].tolist() == list(range(1, 81)) and told == [80]
    assert frame["attempt"].tolist() == [0] * 30 + [1] * 25 + [2] * 25


@pytest.mark.parametrize("to", ["tensorboard", "csv", "parquet"])
def test_following_ends_when_the_runs_are_deleted_and_keeps_what_was_exported(
    to: str, root: Path, tmp_path: Path
) -> None:
    run = runs.Run(generate(root / "live" / "20260104-000000-aaaa", Shape(tries=(Try(0, 40),))))
    run.set_state("running", job_id=None, emulated=False)
    told: dict[str, int] = {}
    curves = exporting.Curves(
        lambda: exporting.members([run]), to, tmp_path / "out", lost=False, say=lambda name, n: told.update({name: n})
    )
    thread = threading.Thread(target=curves.follow, args=(0.01,), daemon=True)
    thread.start()
    while not (curves.open and next(iter(curves.open.values())).steps):
        time.sleep(0.01)
    run.folder.rename(tmp_path / "thrown away")
    thread.join(20)
    assert not thread.is_alive()
    assert told == {f"live/{run.id}": 39} and not curves.open  # the newest step waited for more to be said of it


def test_a_log_is_imported_and_listed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.monitoring.test_import import iteration

    monkeypatch.chdir(tmp_path)
    Path("slurm-4470044.out").write_text("".join(iteration(step, 2.0) for step in range(10, 101, 10)) + "iteration 1")
    assert main(["import", "slurm-4470044.out", "--as", "megatron", "name=lola"]) == 0
    out = capsys.readouterr()
    assert "1 attempt, 10 records of steps, the last of step 100" in out.out
    assert "times are counted back" in out.err
    assert main(["runs", "--name", "lola", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["step"]) == ("lola", "finished", 100)
    assert row["reason"] == "imported from slurm-4470044.out"
    for words in (["watch", "lola", "--plain"], ["status", "lola"], ["logs", "lola"], ["diff", "lola", ID]):
        assert main(words) == 0, words
    for words in (["resume", "lola"], ["retry", "lola"], ["efficiency", "lola"]):
        assert main(words) == 2, words
        assert "was imported" in capsys.readouterr().err
    attempt = layout.attempt_folder(Path(row["folder"]), 0)
    assert json.loads(layout.attempt_info(attempt).read_text())["job_id"] == "4470044"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "--as", "csv"], "no such file or folder"),
        (["file", "--as", "megatro"], "Nearest: megatron"),
        (["file", "--as", "csv", "nam=x"], "Nearest: name="),
        (["file", "--as", "csv", "name=a/b"], "a name has letters"),
        (["file", "--as", "csv", "tokens_per_step=many"], "a whole number"),
        (["name=x", "--as", "csv"], "which file or folder?"),
        (["file", "--as", "csv", "cluster=\x1b[31mred"], "cluster=red: at most 64 characters"),
        (["file", "--as", "csv", "cluster=" + "x" * 65], "at most 64 characters"),
        (["file", "--as", "csv"], "no column for the step"),
        (["empty", "--as", "megatron"], "Name the files themselves"),
    ],
)
def test_mistakes_in_an_import_leave_nothing(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPC_RUNS", "runs")
    Path("file").write_text("a,b\n1,2\n")
    Path("empty").mkdir()
    assert main(["import", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().rglob("runs/*"))


def test_no_verb_prints_what_a_terminal_would_act_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    red = "\x1b[31mred\x1b]0;title\x07"
    run = runs.Run(generate(tmp_path / "runs" / f"n{red}" / f"{ID}{red}", DONE))
    run.state_file.write_text(json.dumps({"state": "finished", "reason": f"a\n{red}", "cluster": red, "job_id": red}))
    run.notes_file.write_text(json.dumps({"tags": [red], "note": f"first{red}\nsecond{red}"}))
    out = str(tmp_path / "out")
    for words in (
        *(["runs"], ["status", "last"], ["runs", "tag", "last"], ["runs", "note", "last"], ["findings", "last"]),
        *(["watch", "last", "--plain"], ["logs", "last"], ["efficiency", "last"], ["explain", "last"]),
        *(["export", "last", "--to", "csv", "-o", out], ["resume", "last"], ["profile", "last"], ["diff", "last", ID]),
    ):
        main(words)
        said = "".join(capsys.readouterr())
        assert said and "\x1b" not in said and "\x07" not in said, words
    assert (run.name, run.id, run.cluster) == ("nred", f"{ID}red", "red")
