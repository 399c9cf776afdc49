"""A smaller micro-batch for a run that ran out of memory: the same global batch in more passes."""

from __future__ import annotations

from hpc.config import Config, TrainJob
from hpc.request import Request
from hpc.runs import Run, write_text

FIELD = "parallel.micro_batch"


def smaller(config: Config, request: Request) -> int | None:
    """The largest micro-batch of at most half that gives exactly ``train.batch_tokens``; None if there is none."""
    if not isinstance(config.job, TrainJob):
        return None
    sequences = config.train.batch_tokens // config.data.seq_len // request.world_size
    half = config.parallel.micro_batch // 2
    return next((m for m in range(half, 0, -1) if sequences % m == 0), None)


def shrink(run: Run, config: Config, micro_batch: int) -> None:
    """Write it into the run's request, where its next attempt and a person's `hpc resume` find it."""
    from omegaconf import OmegaConf

    typed = [str(word) for word in OmegaConf.load(run.overrides_file)] if run.overrides_file.exists() else []
    kept = [word for word in typed if not word.lstrip("+").startswith(f"{FIELD}=")]
    write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create([*kept, f"{FIELD}={micro_batch}"])))
    config.parallel.micro_batch = micro_batch
    write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.structured(config)))
