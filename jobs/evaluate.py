"""``job=evaluate``: one rank of measuring a checkpoint of another run on held-out text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.attempt import Attempt
from hpc.check import trainer_config
from hpc.config import Config, EvaluateJob
from hpc.errors import Failed, Refused
from hpc.evaluations import Evaluation, fit, write
from hpc.runs import Run, load_config, mark_finished
from jobs.recording import recorder
from jobs.train import build, gpus_granted, log_to_stdout, quick_start
from monitoring.recorder import Recorder
from trainer import checkpoint_folder as checkpoints
from trainer.problems import problems

# torch is imported inside functions: the stop handlers must be in place before the seconds that it takes.
if TYPE_CHECKING:
    from trainer.data import ValidationSet
    from trainer.evaluate import Validation
    from trainer.parallel import Engine


class Evaluate:
    """Measure the perplexity of a checkpoint, and write it into the folder of the run that was trained."""

    def __init__(self, run: Path) -> None:
        self.run = Run(run)

    def __call__(self) -> None:
        """
        Raises:
            Refused: if the checkpoint is gone or of another model, or there is no held-out text.
            Failed: if it was asked to stop, or the result cannot be written: another attempt measures it again.
        """
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        log_to_stdout(attempt.rank)
        whole = load_config(self.run.folder)
        job = whole.job
        if not isinstance(job, EvaluateJob) or job.run is None:
            raise Refused("job.run=null: name the folder of the run to evaluate. Try: hpc evaluate RUN")
        fit(whole, attempt.world_size)
        config = trainer_config(whole)
        if found := [str(problem) for problem in problems(config, attempt.world_size, attempt.ranks_per_node)]:
            raise Refused("\n".join(found))
        record = recorder(self.run, attempt)
        try:
            self._evaluate(whole, Run(Path(job.run)), job, attempt, record)
        finally:
            record.close()

    def _evaluate(self, whole: Config, trained: Run, job: EvaluateJob, attempt: Attempt, record: Recorder) -> None:
        config = trainer_config(whole)
        samples = config.train.evaluate.samples if job.samples is None else job.samples
        data = _held_out(config.data, samples)
        nodes = attempt.nodes_by_rank() if whole.job.preflight else []
        with quick_start():
            engine = build(config, attempt, record, granted=gpus_granted(whole, attempt), nodes=nodes)
        from trainer.distributed import leave
        from trainer.evaluate import evaluate
        from trainer.watchdog import Watchdog

        with Watchdog(config.train.watch, attempt.folder, engine.rank, record) as watchdog:
            watchdog.slow("loading a checkpoint")
            step = _load(engine, whole, trained, job.step)

            def alive() -> None:
                watchdog.part("a pass of the evaluation")
                if reason := attempt.stop():
                    raise Failed(f"asked to stop ({reason}) before all was measured; the next attempt begins anew")

            found = evaluate(engine, data, micro_batch=config.parallel.micro_batch, alive=alive)
        if engine.rank == 0:
            self._tell(trained, step, found, record, samples=samples, data=config.data.path)
        leave()

    def _tell(self, trained: Run, step: int, found: Validation, record: Recorder, **how: Any) -> None:
        """Rank 0: the result to the run that was trained, then the marker that ends this one."""
        marker = checkpoints.read_marker(trained.checkpoints, step) or {}
        tokens = int(marker.get("progress", {}).get("tokens", 0))
        result = Evaluation(
            step=step,
            trained_tokens=tokens,
            loss=found.loss,
            perplexity=_perplexity(found.loss),
            by_source={name: {"loss": loss, "perplexity": _perplexity(loss)} for name, loss in found.by_source.items()},
            tokens=found.tokens,
            evaluated_by=str(self.run.folder),
            **how,
        )
        record.step(step=step, tokens=tokens, **found.metrics())
        record.event("validation", step=step, loss=found.loss, tokens=found.tokens)
        record.sync()
        print(f"step {step}: loss {found.loss:.4f}, perplexity {result.perplexity:.2f} over {found.tokens} tokens")
        try:
            write(trained, result)
            mark_finished(
                self.run.folder, of=str(trained.folder), step=step, loss=found.loss, perplexity=result.perplexity
            )
        except OSError as error:
            raise Failed(
                f"could not write what was measured to {trained.evaluations}: {error.strerror or error}"
            ) from error


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _held_out(data: Any, samples: int) -> ValidationSet:
    from trainer.data import DataError, ValidationSet

    try:
        return ValidationSet(data, samples, slice(None))
    except DataError as error:
        raise Refused(str(error)) from error


def _load(engine: Engine, whole: Config, trained: Run, step: int | None) -> int:
    """Collective: the weights of a checkpoint into the engine, in place; the step that it is of."""
    import torch.distributed as dist

    from trainer.agreement import Agreement
    from trainer.checkpoint import PATIENCE, CheckpointError, CheckpointMismatch
    from trainer.identity import of_model
    from trainer.loading import load_weights

    agree = Agreement(dist.new_group(backend="gloo", timeout=PATIENCE), CheckpointError)
    path = trained.folder if step is None else checkpoints.step_folder(trained.checkpoints, step)
    try:
        return load_weights(path, engine.state(), of_model(whole.model), agree, "job.run")[1]
    except (CheckpointMismatch, CheckpointError) as error:
        if step is not None and not (path / checkpoints.COMPLETE).exists():
            raise Refused(
                f"the checkpoint of step {step} in {trained.folder} is gone: training keeps the newest "
                "train.checkpoint.keep_latest, and for good each train.checkpoint.keep_every-th step"
            ) from error
        raise (Refused if isinstance(error, CheckpointMismatch) else Failed)(str(error)) from error
