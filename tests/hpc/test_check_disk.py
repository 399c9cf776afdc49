"""A request against what lies on disk: data that is not there, not whole or of another kind; weights of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import submit
from hpc.check_disk import data, preparing, weights
from hpc.compose import compose
from hpc.errors import Refused
from trainer import checkpoint_folder
from trainer.identity import of_model

Dataset = Callable[..., Path]


def said(*overrides: str) -> list[str]:
    return [str(problem) for problem in data(compose([*overrides, "train.evaluate.every_steps=0"]))]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "hpc submit job=prepare data=debian_guide --wait"),
        (["data=django_po"], "hpc submit job=prepare data=django_po --wait"),
        (["data=debian_guide_even", "cluster=noctua2"], "hpc submit job=prepare data=debian_guide cluster=noctua2"),
        (["data.corpus.vocab_size=900"], "hpc submit job=prepare data=debian_guide data.corpus.vocab_size=900 --wait"),
        (["data=files"], "hpc submit job=prepare data=files 'data.corpus.files=[/path/to/texts/**/*.txt]' --wait"),
        (["data=files", "data.corpus.files=[/a/*.txt,/b]"], "data=files 'data.corpus.files=[/a/*.txt,/b]' --wait"),
        (["experiment=linly_7b_tiny"], "hpc submit job=prepare data="),
    ],
)
def test_missing_data_says_how_this_data_is_made(words: list[str], command: str, here: Path) -> None:
    config = compose(words)
    submit._absolute(config)
    problem = next(data(config))
    assert problem.field == "data.path"
    assert "is not there" in problem.allowed
    assert command in problem.fix
    made = compose(preparing(config).removeprefix("hpc submit ").removesuffix(" --wait").replace("'", "").split())
    submit._absolute(made)
    assert made.data.path == config.data.path
    assert made.data.corpus.vocab_size == config.data.corpus.vocab_size


def test_missing_data_elsewhere_is_made_there(here: Path) -> None:
    config = compose([f"data.path={here / 'none'}"])
    submit._absolute(config)
    [problem] = data(config)
    assert problem.fix == f"hpc submit job=prepare data=debian_guide data.path={here / 'none'} --wait"


def test_a_vocabulary_smaller_than_that_of_the_data_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    made = dataset({"en": 5000}, vocab_size=9000)
    [problem] = said(f"data.path={made}")
    assert problem.endswith("has 9000 ids. Try: model.vocab_size=9000")
    _, to_come = said(f"data.path={tmp_path / 'none'}", "data.corpus.vocab_size=9000", "model.vocab_size=4096")
    assert to_come.startswith("model.vocab_size=4096: data.corpus.vocab_size")
    assert to_come.endswith("Try: model.vocab_size=9000")


def test_a_mixture_of_sources_that_the_data_does_not_have_is_refused(dataset: Dataset) -> None:
    here = f"data.path={dataset({'german': 5000, 'english': 9000})}"
    assert said(here) == []
    [unknown] = said(here, "data.mixture.weights={germn: 1, english: 2}")
    assert unknown.startswith("data.mixture.weights=germn: no such source; the data has ")
    assert unknown.endswith("Try: german in place of germn")
    [unmeasured] = data(compose([here, "train.evaluate.every_steps=5"]))
    assert unmeasured.fix == "train.evaluate.every_steps=0"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file, other: file.write_bytes(file.read_bytes()[:-8]), "bytes where its header says"),
        (lambda file, other: file.write_bytes(other.read_bytes()), "it belongs to other data"),
        (lambda file, other: file.write_bytes(b"text" * 2000), "does not begin as one"),
        (
            lambda file, other: file.write_bytes(file.read_bytes()[:40] + b"!" + file.read_bytes()[41:]),
            "damaged header",
        ),
        (lambda file, other: file.unlink(), "No such file"),
    ],
)
def test_a_shard_that_is_damaged_or_of_other_data_is_refused_before_anything_is_dispatched(
    harm: Callable[[Path, Path], None], message: str, dataset: Dataset
) -> None:
    made, other = dataset({"en": 5000, "de": 900}), dataset({"en": 7000}, name="other")
    harm(made / "train" / "en-00000.tokens", other / "train" / "en-00000.tokens")
    [problem] = said(f"data.path={made}")
    assert problem.startswith(f"data.path={made}: ")
    assert "en-00000.tokens" in problem and message in problem
    assert "Try: remove the folder, then: hpc submit job=prepare data=debian_guide" in problem


def checkpointed(folder: Path, step: int, *overrides: str) -> Path:
    """A run's folder with a checkpoint's marker, as far as a look from here goes."""
    checkpoints = folder / "checkpoints"
    temporary = checkpoint_folder.make_temporary(checkpoints, step)
    identity = {"model": of_model(compose(list(overrides)).model)}
    checkpoint_folder.commit(checkpoints, temporary, step, {"identity": identity, "files": {}})
    return folder


def begun(path: Path, *overrides: str) -> list[str]:
    return [str(problem) for problem in weights(compose([f"train.init_from={path}", *overrides]))]


def test_weights_to_begin_with_are_looked_for(tmp_path: Path) -> None:
    run = checkpointed(checkpointed(tmp_path / "run", 5), 10)
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-5"):
        assert begun(path, "optim.lr=0.1", "data.seq_len=64") == []
    [absent] = begun(tmp_path / "nonexistent")
    assert absent.startswith(f"train.init_from={tmp_path / 'nonexistent'}: there is no such folder. Try: the folder of")
    (tmp_path / "empty").mkdir()
    assert "there is no complete checkpoint in" in begun(tmp_path / "empty")[0]
    (run / "checkpoints" / "step-20").mkdir()
    [incomplete] = begun(run / "checkpoints" / "step-20")
    assert incomplete.endswith(f"Try: train.init_from={run / 'checkpoints' / 'step-10'}")


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path: Path) -> None:
    run = checkpointed(tmp_path / "run", 5, "model.d_model=64")
    [problem] = begun(run, "model.d_model=128")
    assert problem == (
        f"train.init_from={run}: its weights are of another model: model.d_model is 128, was 64. Try: model.d_model=64"
    )


def test_weights_are_found_from_any_folder_and_refused_before_anything_is_written(here: Path, dataset: Dataset) -> None:
    checkpointed(here / "theirs", 5)
    small = [f"data.path={dataset({'en': 5000})}", "train.evaluate.every_steps=0"]
    plan = submit.plan(compose([*small, "train.init_from=theirs"]))
    assert plan.config.train.init_from == str(here / "theirs")
    wrong = compose([*small, "train.init_from=nonexistent"])
    with pytest.raises(Refused, match=f"train.init_from={here}/nonexistent: there is no such folder"):
        submit.plan(wrong)
    assert [problem.field for problem in submit.plan(wrong, dry_run=True).missing] == ["train.init_from"]
