"""Pipelines: what each stage is asked for, what is refused before anything is written, one from text to perplexity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import monitoring
from hpc import evaluations, following, submit
from hpc.cli.cancel import cancel
from hpc.cli.pipeline import plan
from hpc.cli.submit import _IsPipeline, plans
from hpc.config import EvaluateJob, Stage, TrainJob
from hpc.config import PipelineJob as Pipeline
from hpc.errors import Failed, Refused
from hpc.pipeline import Planned, dispatch, ordered, upstream, words
from hpc.runs import Run, read_json, write_json, write_text
from hpc.supervise import supervise

TEXTS = Path(__file__).resolve().parent.parent / "trainer" / "data" / "texts"
SMALL = [
    "data=files",
    f"data.corpus.files=[{TEXTS}/*/*.txt]",
    "data.corpus.vocab_size=400",
    "data.corpus.validation_share=0.2",
    "data.seq_len=32",
    "model.d_model=32",
    "model.layers=2",
    "model.d_ff=64",
    "model.moe.experts=4",
    "model.moe.d_ff=32",
    "parallel.micro_batch=2",
    "train.batch_tokens=256",
    "train.tokens=5120",
    "train.sample_tokens=5",
    "train.checkpoint.every_steps=10",
    "train.evaluate.every_steps=10",
    "train.evaluate.samples=8",
    "job.ranks_per_node=1",
]
USUAL = {
    "prepare": Stage(job="prepare"),
    "train": Stage(job="train", after=["prepare"]),
    "evaluate": Stage(job="evaluate", after=["train"]),
}


def planned(*typed: str) -> list[Planned]:
    given = ["job=pipeline", *typed]
    with pytest.raises(_IsPipeline) as found:
        plans(given, dry_run=False)
    return plan(found.value.config, given, dry_run=False)


def test_each_stage_is_the_request_that_could_be_typed_for_it_alone() -> None:
    job = Pipeline(stages={**USUAL, "prepare": Stage(job="prepare", overrides=["job.time=0:05:00"])})
    typed = [
        "cluster=noctua2",
        "job=pipeline",
        "job.nodes=2",
        "job.account=us",
        "job.stages.prepare.after=[]",
        "name=x",
    ]
    common = ["cluster=noctua2", "job.account=us"]
    assert words(typed, job, "prepare", "x") == [*common, "job=prepare", "name=x-prepare", "job.time=0:05:00"]
    assert words(typed, job, "train", "x") == ["cluster=noctua2", "job.nodes=2", *common[1:], "job=train", "name=x"]
    assert words(typed, job, "evaluate", "x" * 64)[-1] == f"name={'x' * 55}-evaluate"


def test_stages_come_behind_those_that_they_follow() -> None:
    job = Pipeline(
        stages={
            "c": Stage(job="hello", after=["b", "a"]),
            "b": Stage(job="hello", after=["a"]),
            "a": Stage(job="hello"),
        }
    )
    assert ordered(job) == ["a", "b", "c"]
    assert upstream(job, "c") == ["a", "b"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({}, "needs at least one stage"),
        ({"a": Stage(job="hello", after=["b"])}, "job.stages.a.after=[b]: allowed are none"),
        ({"a": Stage(job="hello", after=["a"])}, "job.stages.a.after=[a]"),
        ({"a": Stage(job="hello", after=["b"]), "b": Stage(job="hello", after=["a"])}, "a, b wait for each other"),
        ({"a;b": Stage(job="hello")}, "a name has letters"),
    ],
)
def test_stages_that_could_never_begin_are_refused(stages: dict[str, Stage], said: str) -> None:
    with pytest.raises(Refused) as refused:
        ordered(Pipeline(stages=stages))
    assert said in str(refused.value)


def test_what_an_earlier_stage_makes_counts_as_there(here: Path) -> None:
    found = planned(*SMALL)
    assert [(stage.name, stage.after) for stage in found] == [
        ("prepare", []),
        ("train", ["prepare"]),
        ("evaluate", ["train"]),
    ]
    assert list(here.iterdir()) == []
    with pytest.raises(Refused, match=r"stage train: data\.path=.* is not there"):
        planned(*SMALL, "job.stages.train.after=[]")


def test_mistakes_in_all_stages_are_told_at_once_and_nothing_is_written(here: Path) -> None:
    with pytest.raises(Refused) as refused:
        planned(
            *SMALL, "model.heads=3", "cluster=noctua2", "job.nodes=99", "job.stages.prepare.overrides=['job.nodes=77']"
        )
    said = str(refused.value)
    assert "stage prepare: job.nodes=77" in said and "stage train: job.nodes=99" in said
    assert "stage evaluate: model.heads=3" in said and "stage train: model.heads=3" in said
    assert list(here.iterdir()) == []


def test_an_evaluation_of_another_model_than_is_trained_is_refused(here: Path) -> None:
    with pytest.raises(Refused, match=r"stage evaluate: job\.run=null: the stage before trains another model"):
        planned(*SMALL, "job.stages.evaluate.overrides=['model.d_model=64']")


def test_nothing_is_left_where_a_later_stage_cannot_be_submitted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(*SMALL, "cluster=noctua2", "job.nodes=1", "train.batch_tokens=256")
    taken: list[str] = []
    cancelled: list[str] = []

    def sbatch(script: Path, environment: object = None, *options: str) -> str:
        if len(taken) == 2:
            raise Failed("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        taken.append(" ".join(options))
        return f"{len(taken)}"

    monkeypatch.setattr("hpc.slurm.available", lambda: True)
    monkeypatch.setattr("hpc.slurm.sbatch", sbatch)
    monkeypatch.setattr("hpc.slurm.cancel", lambda job_id, environment: cancelled.append(job_id))
    with pytest.raises(Failed, match="QOSMax"):
        dispatch(found)
    assert taken == ["", "--dependency=afterok:1 --kill-on-invalid-dep=yes"]
    assert cancelled == ["2", "1"]
    assert list(here.glob("runs/*/*")) == []


@pytest.fixture
def two(here: Path) -> tuple[Run, Run]:
    """A run on this machine and one that follows it, neither of which has begun."""
    found = []
    for name in ("first", "second"):
        (each,) = plans(["job=hello", f"name={name}", "job.nodes=1", "job.ranks_per_node=1"], dry_run=False)
        found.append(Run(submit.write_folder(each, {"stage": name, "after": [str(run.folder) for run in found]})))
    following.note(found[0], found[1:])
    return found[0], found[1]


def test_a_run_does_not_begin_where_the_one_before_was_cancelled(two: tuple[Run, Run]) -> None:
    first, second = two
    first.set_state("cancelled", reason="hpc cancel")
    assert supervise(second) == Failed.status
    assert second.state()["reason"] == "stage first did not finish: it is cancelled: hpc cancel"
    assert not any(second.attempts.iterdir())


def test_those_that_follow_say_that_they_will_not_begin(two: tuple[Run, Run]) -> None:
    first, second = two
    following.give_up(first)
    assert second.state()["state"] == "queued"
    first.set_state("failed", reason="the disk is full")
    following.give_up(first)
    assert second.state() == second.state() | {
        "state": "failed",
        "reason": "stage first did not finish: it is failed: the disk is full",
    }


def test_one_that_has_not_begun_is_cancelled_without_those_before_it(two: tuple[Run, Run]) -> None:
    second = two[1]
    manifest = {**(read_json(second.manifest_file) or {}), "job_id": f"local-{os.getpid()}"}
    write_json(second.manifest_file, manifest)
    assert cancel(second, now=False) == "cancelled before it began"
    subprocess.run([sys.executable, "-m", "hpc.supervise", str(second.folder)], check=True, timeout=60)
    assert second.state()["state"] == "cancelled"


def test_a_run_waits_for_the_newest_job_of_those_that_have_not_finished(two: tuple[Run, Run]) -> None:
    first, second = two
    write_json(first.manifest_file, {**(read_json(first.manifest_file) or {}), "job_id": "7"})
    assert following.dependency(second) == ["--dependency=afterok:7", "--kill-on-invalid-dep=yes"]
    first.set_state("requeued", job_id="9")
    assert following.jobs_before(second) == ["9"]
    write_text(first.finished_file, "{}")
    assert following.dependency(second) == [] and following.unfinished(second) is None


def hpc(*typed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpc", *typed], capture_output=True, text=True, timeout=240, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_text_to_the_perplexity_that_training_itself_saw(here: Path) -> None:
    alone = "job.stages.evaluate.overrides=['job.ranks_per_node=1']"
    told = json.loads(hpc("submit", "job=pipeline", *SMALL, alone, "--json", "--wait"))
    assert [each["stage"] for each in told] == ["prepare", "train", "evaluate"]
    prepared, trained, evaluated = (Run(Path(each["folder"])) for each in told)
    assert prepared.finished and trained.finished and evaluated.finished
    assert isinstance(trained.config().job, TrainJob) and trained.name == "tiny_moe"
    job = evaluated.config().job
    assert isinstance(job, EvaluateJob) and job.run == str(trained.folder)
    history = monitoring.load(trained.folder).history.dropna(subset=["validation_loss"])
    seen = {int(step): float(loss) for step, loss in zip(history["step"], history["validation_loss"], strict=True)}
    assert [(each.step, each.loss) for each in evaluations.every(trained)] == [(20, seen[20])]

    hpc("evaluate", trained.id, "--missing", "--wait", "job.ranks_per_node=2")
    other = evaluations.read(trained, 10)
    assert other is not None and other.loss == pytest.approx(seen[10], rel=1e-6)  # of another number of ranks
    assert other.by_source.keys() == {name.partition("/")[2] for name in history if name.startswith("validation_loss/")}
    table = json.loads(hpc("evaluate", trained.id, "--table", "--json"))
    assert [each["step"] for each in table] == [10, 20]
