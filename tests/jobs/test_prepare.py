"""job=prepare as a rank runs it: from a run folder to prepared data and the mark that the run is finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpc import attempt
from hpc.compose import compose
from hpc.errors import Failed, Refused
from hpc.runs import Run
from jobs.prepare import Prepare
from trainer.config import DataConfig
from trainer.data import TokenDataset

TEXTS = Path(__file__).parents[1] / "trainer" / "data" / "texts"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run folder for a job=prepare, and the environment of its only rank."""
    return made(tmp_path, monkeypatch)


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, world_size: int = 1) -> Run:
    monkeypatch.setattr(attempt.Attempt, "install_stop_handlers", lambda self: None)  # they are the test runner's
    config = compose(
        [
            "job=prepare",
            "data=files",
            f"data.path={tmp_path}/data/texts",
            f"data.corpus.files=[{TEXTS}/*/*.txt]",
            "data.corpus.vocab_size=400",
            *overrides,
        ]
    )
    run = Run(tmp_path / "runs" / "prepare" / "1")
    (run.attempts / "1").mkdir(parents=True, exist_ok=True)
    run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    environment = {
        attempt.RUN: run.folder,
        attempt.ATTEMPT: 1,
        attempt.JOB_ID: 1,
        attempt.RANKS_PER_NODE: world_size,
        attempt.RANK: 0,
        attempt.WORLD_SIZE: world_size,
        attempt.LOCAL_RANK: 0,
        attempt.NODE: "here",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return run


def test_it_makes_the_data_and_marks_the_run_finished(run: Run, tmp_path: Path) -> None:
    Prepare(run.folder)()
    data = TokenDataset(DataConfig(path=str(tmp_path / "data" / "texts"), seq_len=16), seed=0, tokens=1)
    finished = json.loads(run.finished_file.read_text())
    assert finished["vocab_size"] == data.vocab_size == 400
    assert finished["train_tokens"] > 0
    assert finished["data"] == str(tmp_path / "data" / "texts")


def test_a_second_run_finds_it_made(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Prepare(run.folder)()
    run.finished_file.unlink()
    capsys.readouterr()
    Prepare(run.folder)()
    assert "prepared already" in capsys.readouterr().out
    assert run.finished


def test_more_than_one_rank_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, monkeypatch, world_size=2)
    with pytest.raises(Refused, match=r"takes one rank, and this run has 2\. Try: .*job\.ranks_per_node=1"):
        Prepare(run.folder)()
    assert not run.finished
    assert not (tmp_path / "data").exists()


def test_a_mistake_is_refused_and_the_run_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, monkeypatch, f"data.corpus.files=[{tmp_path}/none/*.txt]")
    with pytest.raises(Refused, match=r"none/\*\.txt matches no file"):
        Prepare(run.folder)()
    assert not run.finished


def test_a_download_that_fails_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, monkeypatch, "data.corpus.source=debian_guide")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Failed, match=r"cannot download Django==5\.2\.\*.*data=files"):
        Prepare(run.folder)()
    assert not run.finished


def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    run = made(tmp_path, monkeypatch, f"data.path={tmp_path}/file/texts")
    with pytest.raises(Failed, match=r"could not write the data to .*data\.path=DIR"):
        Prepare(run.folder)()
