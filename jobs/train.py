"""``job=train``: one rank of a training run. Joins the attempt, the trainer and the monitor's records."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.attempt import Attempt
from hpc.check import trainer_config
from hpc.config import Config, GpuRequest
from hpc.errors import Diverged, Failed, Refused
from hpc.request import resolve
from hpc.runs import Run, load_config, mark_finished, write_text
from jobs.preflight import look, pairs
from jobs.recording import recorder
from monitoring.devices import Sampler
from monitoring.recorder import Recorder
from trainer.config import TrainerConfig
from trainer.problems import problems

# torch is imported inside functions: the stop handlers must be in place before the seconds that it takes.
if TYPE_CHECKING:
    import torch

    from trainer.data import TokenDataset, ValidationSet
    from trainer.parallel import Engine
    from trainer.train import Outcome

log = logging.getLogger(__name__)


class Train:
    """Train the model of a run, from its newest checkpoint to its token target or until it is asked to stop."""

    def __init__(self, run: Path) -> None:
        self.run = Run(run)

    def __call__(self) -> None:
        """
        Returns when the run is finished, or was saved because a rank was asked to stop.

        Raises:
            Refused: if the request cannot be met: no further attempt would do better.
            Diverged: if training found that it cannot go on, such as on a loss that is not finite.
            Failed: if something else is in the way, such as a full disk.
        """
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        log_to_stdout(attempt.rank)
        whole = load_config(self.run.folder)
        config = trainer_config(whole)
        if found := [str(problem) for problem in problems(config, attempt.world_size, attempt.ranks_per_node)]:
            raise Refused("\n".join(found))
        record = recorder(self.run, attempt)
        try:
            self._train(config, attempt, record, whole=whole)
        finally:
            record.close()

    def _train(self, config: TrainerConfig, attempt: Attempt, record: Recorder, *, whole: Config) -> None:
        granted = gpus_granted(whole, attempt)
        if attempt.pairs is not None:
            return pairs(attempt, attempt.pairs, _device(config, attempt, granted=granted))
        dataset, validation = _dataset(config, attempt), _validation(config)
        nodes = attempt.nodes_by_rank() if whole.job.preflight else []
        with quick_start():
            engine = build(config, attempt, record, granted=granted, nodes=nodes)
        from trainer.checkpoint import CheckpointError, CheckpointMismatch
        from trainer.data import DataError
        from trainer.distributed import leave
        from trainer.guard import FailedTraining
        from trainer.train import train

        try:
            with Sampler(record.device, gpu=uuid_of(engine.device), host=attempt.local_rank == 0):
                outcome = train(
                    config,
                    engine,
                    dataset=dataset,
                    checkpoints=self.run.checkpoints,
                    stop=attempt.stop,
                    record=record,
                    validation=validation,
                    folder=attempt.folder,
                    peak_flops=_peak_flops(whole, engine),
                )
        except (CheckpointMismatch, DataError) as error:
            raise Refused(str(error)) from error
        except FailedTraining as error:
            raise Diverged(str(error)) from error
        except CheckpointError as error:
            raise Failed(str(error)) from error
        if outcome.kind == "finished":
            self._finish(config, engine, outcome, record)
        leave()

    def _finish(self, config: TrainerConfig, engine: Engine, outcome: Outcome, record: Recorder) -> None:
        """Collective: the sample, then the marker that ends the run, which is the last thing written."""
        text = _sample(config, engine)
        record.sync()
        if engine.rank != 0:
            return
        try:
            if text is not None:
                write_text(self.run.sample, text + "\n")
            mark_finished(
                self.run.folder,
                step=outcome.step,
                tokens=outcome.tokens,
                loss_first=outcome.loss_first,
                loss_last=outcome.loss_last,
                tokens_per_s=outcome.tokens_per_s,
                by_source=outcome.sources,
            )
        except OSError as error:
            raise Failed(
                f"training is done and saved, but {self.run.folder} takes no file that says so: "
                f"{error.strerror or error}. The next attempt has only this left to do"
            ) from error


def _device(config: TrainerConfig, attempt: Attempt, *, granted: bool) -> torch.device:
    """
    Raises:
        Refused: if the request asks for a device that this torch cannot use.
        Failed: if this node does not have what it was given for.
    """
    from trainer import distributed

    try:
        return distributed.device_of(config.train.device, attempt.local_rank, granted=granted)
    except ValueError as error:
        raise Refused(str(error)) from None
    except distributed.NoGPU as error:
        raise Failed(f"node {attempt.node}: {error}") from None


def build(config: TrainerConfig, attempt: Attempt, record: Recorder, *, granted: bool, nodes: list[str]) -> Engine:
    """Import torch, join the other ranks, and lay the model in its initial state over them.

    Args:
        nodes: of each rank, if they are to be looked at first; otherwise empty.
    """
    began = time.perf_counter()
    from trainer import distributed, parallel, postmortem, preflight

    distributed.set_deterministic(config.train.deterministic)
    device = _device(config, attempt, granted=granted)
    distributed.set_threads(config.parallel.threads, attempt.ranks_per_node)
    distributed.keep_memory()
    parallel.load(config)
    postmortem.flight_recorder(attempt.folder)
    postmortem.record_memory(device)
    imported = time.perf_counter()
    distributed.join(
        rank=attempt.rank,
        world_size=attempt.world_size,
        device=device,
        publish=attempt.publish,
        lookup=attempt.lookup,
        guard=look(attempt, nodes, device) if nodes else lambda store: contextlib.nullcontext(),
    )
    if nodes:
        preflight.reduce(device)
    attempt.ready()
    joined = time.perf_counter()
    engine = parallel.build(config, device, attempt.ranks_per_node)
    built = time.perf_counter()
    record.event("started", import_s=imported - began, join_s=joined - imported, build_s=built - joined)
    return engine


def uuid_of(device: torch.device) -> str | None:
    """By which the driver knows a rank's GPU; None on CPUs."""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def gpus_granted(whole: Config, attempt: Attempt) -> bool:
    """Whether Slurm gave this job GPUs; those of an emulated cluster exist in name only."""
    asked = whole.cluster.gpu_request is not GpuRequest.none and resolve(whole).gpus_per_node > 0
    return asked and not attempt.emulated


def _peak_flops(whole: Config, engine: Engine) -> float | None:
    """Of all GPUs that compute, FLOP/s; None on CPUs, and where the cluster's description does not say."""
    if engine.device.type != "cuda":
        return None
    return resolve(whole).node.gpu_peak_tflops * 1e12 * engine.world_size or None


def _dataset(config: TrainerConfig, attempt: Attempt) -> TokenDataset:
    from trainer.data import DataError, TokenDataset

    try:
        dataset = TokenDataset(
            config.data,
            seed=config.train.seed,
            tokens=config.train.tokens,
            rank=attempt.rank,
            world_size=attempt.world_size,
        )
    except DataError as error:
        raise Refused(str(error)) from error
    if dataset.vocab_size > config.model.vocab_size:
        raise Refused(
            f"model.vocab_size={config.model.vocab_size}: the data in {config.data.path} has "
            f"{dataset.vocab_size} token ids. Try: model.vocab_size={dataset.vocab_size}"
        )
    return dataset


def _validation(config: TrainerConfig) -> ValidationSet | None:
    from trainer.data import DataError, ValidationSet

    if not config.train.evaluate.every_steps:
        return None
    try:
        return ValidationSet(config.data, config.train.evaluate.samples)
    except DataError as error:
        raise Refused(str(error)) from error


def _sample(config: TrainerConfig, engine: Engine) -> str | None:
    """Collective: what the model writes; on rank 0, None where the tokenizer cannot be read."""
    import torch.distributed as dist

    from trainer.data import DataError, Tokenizer
    from trainer.data.manifest import TOKENIZER
    from trainer.generate import generate

    tokenizer: Tokenizer | None = None
    prompt: list[list[int] | None] = [None]
    if engine.rank == 0:
        try:
            tokenizer = Tokenizer.load(Path(config.data.path) / TOKENIZER)
            prompt = [tokenizer.encode(config.train.sample_prompt) or [tokenizer.eos]]
        except DataError as error:  # training is done; that must not be lost for want of a sample
            log.warning("no sample: %s", error)
    dist.broadcast_object_list(prompt)
    if prompt[0] is None:
        return None
    ids = generate(
        engine,
        prompt[0],
        tokens=config.train.sample_tokens,
        max_seq_len=config.model.max_seq_len,
        temperature=0.8,
        seed=config.train.seed,
    )
    return tokenizer.decode(ids) if tokenizer is not None else None


def log_to_stdout(rank: int) -> None:
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s [{rank}] %(message)s",
        datefmt="%H:%M:%S",
    )


@contextlib.contextmanager
def quick_start() -> Iterator[None]:
    """Without garbage collection: importing torch makes objects by the million, of which none is garbage, and
    looking for it among them takes a quarter of the time of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it worth looking at them later
        gc.enable()
