"""The request against what lies on disk: the data that training would read, and the weights it would begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.config import CheckpointJob, Config, EvaluateJob, PrepareJob, TrainJob
from hpc.runs import Run
from trainer import checkpoint_folder as checkpoints
from trainer.config import CorpusSource
from trainer.problems import Problem

if TYPE_CHECKING:
    from trainer.data.manifest import Manifest

# trainer.data is imported inside functions: it brings numpy, which other commands do without.


def data(config: Config, before: Sequence[Config] = ()) -> Iterator[Problem]:
    """Whether the data set that would be read is there and whole, and fits the model.

    Args:
        before: requests that finish before this one begins: what they make counts as there.
    """
    if not isinstance(config.job, TrainJob | EvaluateJob):
        return
    from trainer.data import mixture
    from trainer.data.files import AGAIN, DataError
    from trainer.data.manifest import DATASET

    path = Path(config.data.path)
    if not (path / DATASET).exists():
        if not any(isinstance(other.job, PrepareJob) and other.data.path == config.data.path for other in before):
            what = f"holds no complete data set (no {DATASET})" if path.exists() else "is not there"
            yield Problem("data.path", str(path), f"{what}. Make it first", preparing(config))
        yield from _vocabulary(config, config.data.corpus.vocab_size, "data.corpus.vocab_size, with which it is made,")
        return
    try:
        manifest = whole(str(path))
    except DataError as error:
        again = f"remove the folder, then: {preparing(config)}"
        yield Problem("data.path", str(path), str(error).removesuffix(f". {AGAIN}"), again)
        return
    yield from _vocabulary(config, manifest.vocab_size, f"the tokenizer of {path}")
    splits = {
        split: {source: entry.tokens for source, entry in sources.items()} for split, sources in manifest.splits.items()
    }
    if "train" in splits:
        yield from mixture.problems(splits["train"], config.data)
    every = config.train.evaluate.every_steps
    if any(splits.get("validation", {"": 1}).values()):
        return
    none = f"{path} has no documents to validate on; data.corpus.validation_share keeps some, when it is prepared"
    if isinstance(config.job, EvaluateJob):
        yield Problem("data.path", str(path), none)
    elif every:
        yield Problem("train.evaluate.every_steps", str(every), none, "train.evaluate.every_steps=0")


def weights(config: Config, before: Sequence[Config] = ()) -> Iterator[Problem]:
    """Whether ``train.init_from``, or the run that the job is about, leads to weights of this model.

    Args:
        before: as ``data`` has it; a training among them is what a job that names no run is about.
    """
    if isinstance(config.job, CheckpointJob):
        yield from _checkpoint(config, config.job, before)
    elif isinstance(config.job, TrainJob) and config.train.init_from is not None:
        instead = "the folder of a run that has a complete checkpoint, or train.init_from=null"
        yield from _of_this_model(config, "train.init_from", config.train.init_from, instead)


def _checkpoint(config: Config, job: CheckpointJob, before: Sequence[Config]) -> Iterator[Problem]:
    from trainer.identity import differences, of_model

    if job.run is not None:
        place = Path(job.run) if job.step is None else checkpoints.step_folder(Run(Path(job.run)).checkpoints, job.step)
        yield from _of_this_model(config, "job.run", str(place), "the folder of a run that has a complete checkpoint")
        return
    trained = [other for other in before if isinstance(other.job, TrainJob)]
    if not trained:
        yield Problem("job.run", "null", "names no run", "job.run=FOLDER, or to evaluate one: hpc evaluate RUN")
    elif found := differences(of_model(trained[-1].model), of_model(config.model), "model."):
        fix = " ".join(filter(None, (each.fix for each in found)))
        yield Problem("job.run", "null", f"the stage before trains another model: {'; '.join(map(str, found))}", fix)


def _of_this_model(config: Config, field: str, given: str, instead: str) -> Iterator[Problem]:
    from trainer.identity import differences, of_model

    try:
        folder, steps = checkpoints.candidates(Path(given))
    except OSError as error:
        what = error.strerror or str(error)
        beside = _complete_beside(Path(given))
        yield Problem(field, given, what, f"{field}={beside}" if beside and field == "train.init_from" else instead)
        return
    for step in steps:
        marker = checkpoints.read_marker(folder, step)
        if marker is None:  # as on the ranks, which pass over what is damaged
            continue
        found = differences(marker["identity"]["model"], of_model(config.model), "model.")
        if found:
            said = "; ".join(map(str, found))
            fix = " ".join(filter(None, (each.fix for each in found)))
            yield Problem(field, given, f"its weights are of another model: {said}", fix)
        return
    yield Problem(field, given, f"no checkpoint there can be read: {checkpoints.UNREADABLE}", instead)


@lru_cache(maxsize=8)
def whole(path: str) -> Manifest:
    """The description of a folder of prepared data, after a look at each of its shards; once, for all of a multirun.

    Raises:
        DataError: if it is not whole.
    """
    from trainer.data.manifest import Manifest

    manifest = Manifest.read(Path(path))
    manifest.check(Path(path))
    return manifest


def preparing(config: Config) -> str:
    """The command that makes the data of a request. What the data group and the cluster say anyway is left out."""
    corpus, name = config.data.corpus, config.cluster.name
    words = ["hpc submit job=prepare", f"data={corpus.source.name}"]
    if name != "local":
        words.append(f"cluster={name}")
    usual = _usual(corpus.source, name)
    if usual.get("path") != config.data.path:
        words.append(f"data.path={config.data.path}")
    if corpus.source is CorpusSource.files:
        files = ",".join(corpus.files) or "/path/to/texts/**/*.txt"
        words.append(f"'data.corpus.files=[{files}]'")
    for key in ("vocab_size", "validation_share"):
        value = getattr(corpus, key)
        if value != usual.get(key):
            words.append(f"data.corpus.{key}={value}")
    return " ".join([*words, "--wait"])


def _usual(source: CorpusSource, cluster: str) -> dict[str, Any]:
    """Where the data group of a source puts its data on a cluster, and what else it says of it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from hpc.compose import CONF
    from trainer.config import CorpusConfig

    try:
        files = {"cluster": CONF / "cluster" / f"{cluster}.yaml", "data": CONF / "data" / f"{source.name}.yaml"}
        both = OmegaConf.create({key: OmegaConf.load(file) for key, file in files.items()})
        given = both.data.get("corpus", {})
        path = str(Path(both.data.path).expanduser().absolute())
    except (OSError, OmegaConfBaseException):  # a cluster of one's own
        return {}
    plain = CorpusConfig()
    return {"path": path} | {key: given.get(key, getattr(plain, key)) for key in ("vocab_size", "validation_share")}


def _vocabulary(config: Config, ids: int, whose: str) -> Iterator[Problem]:
    if ids > config.model.vocab_size:
        yield Problem(
            "model.vocab_size", str(config.model.vocab_size), f"{whose} has {ids} ids", f"model.vocab_size={ids}"
        )


def _complete_beside(path: Path) -> str:
    """The newest complete checkpoint beside one that is not; empty where there is none."""
    try:
        _, steps = checkpoints.candidates(path.parent)
    except OSError:
        return ""
    return str(checkpoints.step_folder(path.parent, steps[0])) if path.name.startswith("step-") else ""
