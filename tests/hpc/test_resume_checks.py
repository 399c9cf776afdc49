"""What a run cannot go on with is refused before anything in its folder changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpc import check, resume, submit
from hpc.cli.resume import main
from hpc.compose import compose
from hpc.errors import Refused
from hpc.runs import Run, write_json, write_text
from trainer import checkpoint_folder
from trainer.config import Phase
from trainer.data.manifest import Manifest
from trainer.identity import identity

PHASES = "data.mixture.phases=[{until: 0.25, weights: {de: 1}}, {until: 1.0, weights: {en: 1}}]"
TOKENS, STEP_TOKENS = 81920, 4096


@pytest.fixture
def begun(here: Path, dataset: Callable[..., Path]) -> Callable[..., Run]:
    """Makes a run that has ended, with the marker of a checkpoint of step 10."""
    made = dataset({"de": 5000, "en": 9000})

    def make(*more: str) -> Run:
        words = [f"data.path={made}", f"train.tokens={TOKENS}", f"train.batch_tokens={STEP_TOKENS}"]
        words += ["train.evaluate.every_steps=0", *more]
        config = compose(words)
        submit._absolute(config)
        run = Run(here / "runs" / config.name / "20260101-000000-abcd")
        run.checkpoints.mkdir(parents=True)
        write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(words)))
        write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_json(run.manifest_file, {})
        run.set_state("cancelled", reason="")
        marker = {"identity": identity(check.trainer_config(config), Manifest.read(made)), "files": {}}
        checkpoint_folder.commit(run.checkpoints, checkpoint_folder.make_temporary(run.checkpoints, 10), 10, marker)
        return run

    return make


def refusal(run: Run, *new: str) -> str:
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(Refused) as refused:
        main([str(run.folder), *new])
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    return str(refused.value)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("model.d_model=256", "model.d_model=256: the run's checkpoint of step 10 has "),
        (
            "data.packing=documents",
            "data.packing=documents: the run's checkpoint of step 10 has stream, and that cannot",
        ),
        ("data.seq_len=128", "Try: data.seq_len=256"),
        (
            "train.seed=7",
            "train.seed=7: the run's checkpoint of step 10 has 0, and that cannot change. Try: train.seed=0",
        ),
        ("data.mixture.temperature=3", "Try: data.mixture.temperature=null"),
        ("data.mixture.weights={en: 1}", "data.mixture.weights={en: 1}: the run's checkpoint of step 10 has {}, and"),
        ("train.init_from=elsewhere", "the run has weights of its own already"),
    ],
)
def test_another_model_or_other_samples_are_refused_by_name(new: str, message: str, begun: Callable[..., Run]) -> None:
    text = refusal(begun(), new)
    assert message in text
    assert len(text.splitlines()) == 1


def test_other_data_is_refused_with_where_the_data_was(begun: Callable[..., Run], dataset: Callable[..., Path]) -> None:
    other = dataset({"de": 5000, "en": 9001}, name="other")
    run = begun()
    text = refusal(run, f"data.path={other}")
    assert text.startswith(f"data.path={other}: the run was trained on other tokens. Try: data.path=")
    assert run.config().data.path in text


@pytest.mark.parametrize("new", ["train.tokens=163840", "optim.lr=0.1", "model.moe.balance_loss=0.1"])
def test_what_may_change_is_taken(new: str, begun: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(begun().folder), new, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!")


def test_a_longer_run_keeps_the_beginnings_of_its_phases(begun: Callable[..., Run]) -> None:
    run = begun(PHASES)
    longer = f"train.tokens={2 * TOKENS}"
    config = compose(resume.words(run, [longer]))
    resume.keep_phases(config, resume.origin(run), [longer])
    assert config.data.mixture.phases == [Phase(0.125, {"de": 1.0}), Phase(1.0, {"en": 1.0})]
    assert main([str(run.folder), longer, "--dry-run"]) == 0
    text = refusal(run, f"train.tokens={TOKENS // 4}")
    assert f"begins at token {TOKENS // 4}" in text
    assert text.endswith(f"Try: train.tokens={TOKENS // 4 + 256}")
    assert refusal(run, longer, "data.packing=documents").startswith("data.packing=documents: ")
    moved = PHASES.replace("0.25", "0.5")
    assert "data.mixture.phases[1].first_sample=160: the run's checkpoint of step 10 has 80" in refusal(run, moved)


def test_a_run_with_weights_of_its_own_needs_those_it_began_with_no_more(
    begun: Callable[..., Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun("train.init_from=gone")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main([str(run.folder), "--dry-run"]) == 0
    config = compose(resume.words(run, []))
    resume.keep_places(config, run, [])
    assert config.train.init_from == str(here / "gone")
