"""Runs that come from another: hpc fork and hpc retry."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hpc import check, kin, submit
from hpc.cli import main
from hpc.compose import compose
from hpc.errors import Failed
from hpc.resume import words
from hpc.runs import Run, read_json, write_json, write_text
from monitoring import layout
from trainer import checkpoint_folder as checkpoints
from trainer.data.manifest import Manifest
from trainer.identity import identity

STEP_TOKENS = 4096


@pytest.fixture
def made(here: Path, dataset: Callable[..., Path]) -> Callable[..., Run]:
    """Makes a run that has ended, with complete checkpoints of these steps."""
    data = dataset({"de": 5000, "en": 9000})

    def make(*steps: int, state: str = "failed", more: tuple[str, ...] = ()) -> Run:
        typed = [f"data.path={data}", "train.tokens=81920", f"train.batch_tokens={STEP_TOKENS}"]
        typed += ["train.evaluate.every_steps=0", *more]
        config = compose(typed)
        submit._absolute(config)
        run = Run(here / "runs" / config.name / "20260101-000000-abcd")
        run.checkpoints.mkdir(parents=True)
        write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(typed)))
        write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_json(run.manifest_file, {"job_id": "local-1"})
        run.set_state(state, reason="")
        for step in steps:
            temporary = checkpoints.make_temporary(run.checkpoints, step)
            (temporary / "__0_0.distcp").write_bytes(b"x" * 100)
            progress = {"step": step, "tokens": step * STEP_TOKENS}
            known = identity(check.trainer_config(config), Manifest.read(data))
            checkpoints.commit(run.checkpoints, temporary, step, {"identity": known, "files": {}, "progress": progress})
        return run

    return make


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Runs a verb whose new run is written and not started."""
    monkeypatch.setattr(submit, "hand_over", lambda run, plan: "local-2")

    def call(*typed: str) -> Run:
        assert main([*typed, "--json"]) == 0, capsys.readouterr().err
        return Run(Path(json.loads(capsys.readouterr().out)["folder"]))

    return call


def manifest(run: Run) -> dict[str, Any]:
    return read_json(run.manifest_file) or {}


def test_a_fork_goes_on_exactly_where_only_what_may_change_has_changed(
    made: Callable[..., Run], forked: Callable[..., Run]
) -> None:
    run = made(5, 10)
    new = forked("fork", run.id, "optim.lr=1e-3", "name=lower")
    assert (new.name, new.config().optim.lr, new.config().train.init_from) == ("lower", 1e-3, None)
    assert checkpoints.complete_steps(new.checkpoints) == [10]
    at = [r.checkpoints / "step-10" / "__0_0.distcp" for r in (run, new)]
    assert at[0].samefile(at[1])
    origin = {"run": "tiny_moe/20260101-000000-abcd", "folder": str(run.folder), "step": 10, "exact": True}
    assert manifest(new)["forked_from"] == origin
    # Neither sees what becomes of the other.
    checkpoints.mark_corrupt(new.checkpoints, 10)
    checkpoints.remove(run.checkpoints / "step-10")
    assert at[1].read_bytes() == b"x" * 100
    assert checkpoints.complete_steps(run.checkpoints) == [5]


def test_a_fork_on_other_samples_begins_with_the_weights_and_says_why(
    made: Callable[..., Run], forked: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(5, 10)
    assert main(["fork", run.id, "train.seed=7", "--step", "5", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "step 5" in said and "weights alone" in said and "train.seed is 7" in said
    new = forked("fork", run.id, "train.seed=7", "--step", "5")
    assert new.config().train.init_from == str(run.checkpoints / "step-5")
    assert words(new, [])[-1] == f"train.init_from={run.checkpoints / 'step-5'}"
    assert (checkpoints.complete_steps(new.checkpoints), manifest(new)["forked_from"]["exact"]) == ([], False)
    assert forked("fork", run.id, "--weights").config().train.init_from == str(run.checkpoints / "step-10")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--exact", "data.packing=documents"], "data.packing=documents: the run's checkpoint of step 10 has stream"),
        (["model.d_model=256"], "its weights are of another model"),
        (["--step", "7"], "It has those of steps 5, 10"),
        (["--step", "x"], "--step x: a number"),
        (["--step"], "a number of a step"),
        (["train.tokens=40960"], "step 10 has seen 40960 already. Try: train.tokens=81920"),
        (["--exact", "--weights"], "not both"),
        (["train.init_from=/x"], "a fork begins from RUN"),
        (["--hard"], "unknown flag --hard"),
        (["optim.lrr=1"], "optim.lrr"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_nothing_written(
    made: Callable[..., Run], here: Path, capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    run = made(5, 10)
    before = sorted(here.rglob("*"))
    assert main(["fork", run.id, *typed]) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_a_run_without_checkpoints_cannot_be_forked(
    made: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fork", made().id]) == 2
    assert "hpc retry" in capsys.readouterr().err


def test_a_checkpoint_that_goes_away_meanwhile_leaves_no_run(
    made: Callable[..., Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, link = made(10), os.link

    def purged(source: Path, target: Path) -> None:
        checkpoints.remove(run.checkpoints / "step-10")
        link(source, target)

    monkeypatch.setattr(kin.os, "link", purged)
    assert main(["fork", run.id]) == Failed.status
    assert [path for path in (here / "runs").glob("*/*") if path != run.folder] == []


def test_a_file_system_without_links_gets_a_copy(
    made: Callable[..., Run], forked: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(kin.os, "link", refused)
    run = made(10)
    new = forked("fork", run.id)
    assert not (run.checkpoints / "step-10" / "COMPLETE").samefile(new.checkpoints / "step-10" / "COMPLETE")
    assert checkpoints.newest(new.checkpoints) == checkpoints.newest(run.checkpoints)


def test_retry_asks_for_the_same_once_more(made: Callable[..., Run], forked: Callable[..., Run]) -> None:
    run = made(10, more=("optim.lr=1e-3",))
    new = forked("retry", run.id, "train.seed=3")
    assert (new.name, new.config().optim.lr, new.config().train.seed) == ("tiny_moe", 1e-3, 3)
    assert new.config().data.path == run.config().data.path
    assert checkpoints.newest(new.checkpoints) is None
    assert manifest(new)["retry_of"] == {"run": f"{run.name}/{run.id}", "folder": str(run.folder)}
    assert words(new, []) == [*words(run, []), "train.seed=3"]


def test_retry_of_a_fork_begins_where_the_fork_began(made: Callable[..., Run], forked: Callable[..., Run]) -> None:
    run = made(5, 10)
    fork = forked("fork", run.id, "--step", "5", "optim.lr=1e-3")
    fork.set_state("failed")
    again = forked("retry", fork.id)
    assert checkpoints.complete_steps(again.checkpoints) == [5]
    assert manifest(again)["forked_from"] == manifest(fork)["forked_from"]
    checkpoints.remove(fork.checkpoints / "step-5")
    assert checkpoints.complete_steps(forked("retry", fork.id).checkpoints) == [5]  # the parent has it still
    checkpoints.remove(run.checkpoints / "step-5")
    again.set_state("failed")
    assert main(["retry", fork.id]) == 2


def test_a_run_that_has_not_ended_is_not_retried(made: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(10, state="running")
    write_json(run.manifest_file, {"job_id": f"local-{os.getpid()}", "host": os.uname().nodename})
    assert main(["retry", run.id]) == 2


def losses(run: Run, number: int = 0) -> dict[int, float]:
    lines = layout.rank_records(layout.attempt_folder(run.folder, number), 0).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "step" and "loss" in record}


def test_a_fork_trains_as_its_parent_did(start: Callable[..., Run], dataset: Callable[..., Path]) -> None:
    """The same losses to the last bit: optimizer, random state and samples are those of the checkpoint."""
    data = dataset({"de": 60000})
    shape = [f"data.path={data}", "data.seq_len=64", "model.vocab_size=400", "model.d_model=32", "model.layers=2"]
    shape += ["model.d_ff=64", "model.moe.d_ff=32", "parallel=single", "job.ranks_per_node=1", "train.sample_tokens=0"]
    shape += ["train.batch_tokens=512", "parallel.micro_batch=8", "train.tokens=6144", "train.evaluate.every_steps=0"]
    shape += ["train.checkpoint.every_steps=4", "train.checkpoint.keep_latest=9"]
    run = start(*shape, "--wait")
    assert run.finished, run.log.read_text()
    assert main(["fork", run.id, "--step", "4", "--wait", "name=same"]) == 0
    (fork,) = (run.folder.parent.parent / "same").iterdir()
    assert losses(Run(fork)) == {step: loss for step, loss in losses(run).items() if step > 4}
