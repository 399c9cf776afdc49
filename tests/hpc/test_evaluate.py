"""Evaluations of a run's checkpoints: which are due, what they are asked for, how they are laid over ranks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hpc import evaluate, evaluations, submit
from hpc.cli.evaluate import main
from hpc.compose import compose
from hpc.config import Config, EvaluateJob
from hpc.errors import Refused
from hpc.evaluating import Evaluating
from hpc.evaluations import Evaluation
from hpc.resume import refuse_evaluation
from hpc.runs import Run, write_json, write_text
from trainer import checkpoint_folder
from trainer.config import Sharding
from trainer.identity import of_model


@pytest.fixture
def run(here: Path) -> Run:
    """A run on this machine that trains, with complete checkpoints of steps 10, 20 and 25."""
    config = compose(["train.checkpoint.keep_every=10", "job.ranks_per_node=1", "job.evaluate_checkpoints=true"])
    submit._absolute(config)
    found = Run(here / "runs" / config.name / "20260101-000000-abcd")
    found.checkpoints.mkdir(parents=True)
    write_text(found.config_file, OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_json(found.manifest_file, {})
    found.set_state("running")
    for step in (10, 20, 25):
        checkpoint(found, step)
    return found


def checkpoint(run: Run, step: int) -> None:
    marker = {"identity": {"model": of_model(run.config().model)}, "files": {}}
    checkpoint_folder.commit(run.checkpoints, checkpoint_folder.make_temporary(run.checkpoints, step), step, marker)


def measured(run: Run, step: int) -> None:
    how: dict[str, Any] = {"trained_tokens": 100 * step, "tokens": 9, "samples": 8, "data": "d", "evaluated_by": "r"}
    by_source = {"de": {"loss": 1.0, "perplexity": 2.718}}
    evaluations.write(run, Evaluation(step=step, loss=1.5, perplexity=4.4817, by_source=by_source, **how))


def test_missing_is_what_was_not_measured_and_what_no_run_is_about_to_measure(run: Run, here: Path) -> None:
    measured(run, 20)
    assert evaluate.missing(run) == [10, 25]
    by = Run(here / "runs" / "x" / "y")
    evaluations.note_submitted(run, 10, by)
    assert evaluate.missing(run) == [10, 25], "whoever was to measure it is gone"
    evaluations.note_submitted(run, 10, by, here / "runs" / "x" / "s")
    assert evaluate.missing(run) == [10, 25], "and so is the sweep"


def test_it_is_the_run_s_own_request_with_another_job(run: Run) -> None:
    found = evaluate.request(run, 20, ["job.samples=5", "parallel.micro_batch=3"])
    before = run.config()
    assert (found.model, found.data, found.name) == (before.model, before.data, "tiny_moe-evaluate")
    assert found.parallel.micro_batch == 3
    job = found.job
    assert isinstance(job, EvaluateJob)
    assert (job.run, job.step, job.samples, job.nodes, job.ranks_per_node) == (str(run.folder), 20, 5, 1, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["job.sample=5"], "job.sample: there is no such key"),
        (["job.samples=many"], "job.samples"),
        (["job.samples=0"], "job.samples=0: must be at least 1"),
        (["model=tiny_dense"], "Try: job.ranks_per_node=2"),
        (["job.step=1,2"], "Try: job.ranks_per_node=2"),
        (["nonsense"], "name one run"),
    ],
    ids=str,
)
def test_a_mistake_in_a_value_is_told(run: Run, words: list[str], said: str) -> None:
    with pytest.raises(Refused) as refused:
        main([run.id, *words])
    assert said in str(refused.value)
    assert not run.evaluations.exists()


def test_an_evaluation_is_not_resumed_but_begun_anew(run: Run, here: Path) -> None:
    by = Run(here / "runs" / "tiny_moe-evaluate" / "20260101-000001-abcd")
    by.attempts.mkdir(parents=True)
    write_text(by.config_file, OmegaConf.to_yaml(OmegaConf.structured(evaluate.request(run, 20))))
    with pytest.raises(Refused, match=f"To begin it anew: hpc evaluate {run.folder} --step 20 --again"):
        refuse_evaluation(by)


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run: Run) -> None:
    with pytest.raises(Refused, match=r"--step 19: .* only of 10, 20, 25\. Try: --step 20"):
        main([run.id, "--step", "19"])


def test_the_table_has_a_line_for_each_step_that_was_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    measured(run, 20)
    measured(run, 10)
    assert main([run.id, "--table"]) == 0
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "tokens", "loss", "perplexity", "de"]
    assert (first.split(), second.split()[0]) == (["10", "1,000", "1.5000", "4.48", "2.72"], "20")
    main([run.id, "--table", "--json"])
    assert [each["step"] for each in json.loads(capsys.readouterr().out)] == [10, 20]


def test_what_was_measured_is_not_measured_again_unless_asked(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    measured(run, 25)
    assert main([run.id]) == 0
    assert "step 25 of" in capsys.readouterr().out
    with pytest.raises(Refused, match=r"data\.path="):  # it gets as far as the missing data
        main([run.id, "--again"])


def fitted(world_size: int, *overrides: str) -> Config:
    config = compose(list(overrides))
    evaluations.fit(config, world_size)
    return config


@pytest.mark.parametrize(("spread", "ranks", "fits"), [(4, 4, 4), (4, 2, 2), (8, 6, 2), (8, 1, 1), (1, 4, 1)])
def test_experts_are_spread_over_as_many_ranks_as_there_are(spread: int, ranks: int, fits: int) -> None:
    config = fitted(ranks, "model.moe.experts=8", f"parallel.expert_parallel={spread}", "parallel.micro_batch=3")
    assert config.parallel.expert_parallel == fits
    assert config.train.batch_tokens == config.data.seq_len * 3 * ranks


def test_a_layout_in_groups_of_nodes_becomes_one_of_all_ranks() -> None:
    config = fitted(3, "parallel.sharding=hybrid", "parallel.shard_ranks=8")
    assert (config.parallel.sharding, config.parallel.shard_ranks) == (Sharding.full, 0)


class Commands:
    """Stands for the processes that would be started; each ends at the second look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
        self.steps: list[str] = []
        self.code = code
        monkeypatch.setattr(subprocess, "Popen", self)
        monkeypatch.setattr("hpc.evaluating.EVERY", 0.0)

    def __call__(self, command: list[str], **options: object) -> Any:
        self.steps.append(command[-1])
        codes = iter([None, self.code])
        return type("Process", (), {"poll": lambda _: next(codes)})()


def test_kept_checkpoints_are_submitted_once_a_few_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    commands = Commands(monkeypatch)
    evaluating = Evaluating(run, run.config(), said.append)
    for step in (30, 40):
        checkpoint(run, step)
    measured(run, 40)
    evaluating.look()
    assert commands.steps == ["10", "20"]
    for _ in range(4):
        evaluating.look()
    assert commands.steps == ["10", "20", "30"]
    checkpoint(run, 45)
    evaluating.finish(lambda: None)
    assert commands.steps == ["10", "20", "30", "45"], "the last one stays, whatever its step"


def test_what_is_refused_is_not_tried_again_and_a_person_is_told_what_to_type(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    commands = Commands(monkeypatch, code=2)
    evaluating = Evaluating(run, run.config(), said.append)
    for _ in range(6):
        evaluating.look()
    assert commands.steps == ["10", "20"]
    assert f"To try it again: hpc evaluate {run.id} --missing" in said[-1]


def test_where_compute_nodes_may_not_submit_a_person_is_told_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    commands = Commands(monkeypatch)
    config = compose(["cluster=noctua2", "cluster.slurm_from_compute=false", "job.evaluate_checkpoints=true"])
    evaluating = Evaluating(run, config, said.append)
    for _ in range(3):
        evaluating.look()
    assert commands.steps == []
    assert said == [
        f"compute nodes may not submit here; to evaluate its checkpoints type: hpc evaluate {run.id} --missing"
    ]


def test_without_being_asked_nothing_is_evaluated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands(monkeypatch)
    Evaluating(run, compose([]), print).look()
    assert commands.steps == []
