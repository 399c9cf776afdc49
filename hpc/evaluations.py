"""What was measured of a run's checkpoints, in the run's own folder, and how an evaluation is laid over its ranks.

```
runs/<name>/<id>/evaluations/
  step-<n>.json             loss and perplexity of the checkpoint of that step, over all and by source
  step-<n>.submitted.json   which run measures it
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from hpc.config import Config
from hpc.runs import Run, read_json, write_json
from monitoring import layout
from trainer.config import Sharding


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on held-out text."""

    step: int
    trained_tokens: int
    loss: float  # mean cross-entropy of a token, natural logarithm
    perplexity: float  # its exponential
    by_source: dict[str, dict[str, float]]  # loss and perplexity of each
    tokens: int  # that were predicted
    samples: int  # that were asked for
    data: str  # folder of the prepared data
    evaluated_by: str  # folder of the run that measured it


def result_file(run: Run, step: int) -> Path:
    return layout.evaluation(run.folder, step)


def submitted_file(run: Run, step: int) -> Path:
    return run.evaluations / f"step-{step}.submitted.json"


def write(run: Run, found: Evaluation) -> None:
    """
    Raises:
        OSError: if the folder of ``run`` does not take it.
    """
    run.evaluations.mkdir(exist_ok=True)
    write_json(result_file(run, found.step), asdict(found))


def read(run: Run, step: int) -> Evaluation | None:
    """What was measured of a step; None where nothing was, or it cannot be read."""
    return _evaluation(read_json(result_file(run, step)))


def every(run: Run) -> list[Evaluation]:
    """All that was measured of a run, by step."""
    steps = layout.evaluated_steps(run.folder)
    return [found for step in steps if (found := read(run, step)) is not None]


def _evaluation(found: Mapping[str, object] | None) -> Evaluation | None:
    try:
        return None if found is None else Evaluation(**{f.name: found[f.name] for f in fields(Evaluation)})  # pyright: ignore[reportArgumentType]
    except KeyError:
        return None


def note_submitted(run: Run, step: int, by: Run, sweep: Path | None = None) -> None:
    """Note which run, maybe one of a sweep that has no folder yet, will measure a step."""
    run.evaluations.mkdir(exist_ok=True)
    note = {"run": str(by.folder), "sweep": str(sweep) if sweep else None}
    write_json(submitted_file(run, step), note)


def submitted(run: Run, step: int) -> tuple[Run, Path | None] | None:
    """The run that was to measure a step, and the sweep that it is one of; None where nobody was asked."""
    note = read_json(submitted_file(run, step))
    if note is None or not isinstance(note.get("run"), str):
        return None
    return Run(Path(note["run"])), Path(note["sweep"]) if note.get("sweep") else None


def fit(config: Config, world_size: int) -> None:
    """Lay an evaluation over any number of ranks: the micro-batch stays, what depends on the number of ranks follows.

    A model whose experts were spread over more ranks, or whose shards lay in groups, is laid as these ranks can.
    """
    # Anew, for requests of a sweep share parts that are equal.
    config.parallel = parallel = replace(config.parallel)
    if (moe := config.model.moe) is not None:
        both = math.gcd(world_size, moe.experts)
        most = min(parallel.expert_parallel, both)
        parallel.expert_parallel = max((n for n in range(1, most + 1) if both % n == 0), default=1)
    if parallel.sharding is Sharding.hybrid:
        parallel.sharding, parallel.shard_ranks = Sharding.full, 0
    batch_tokens = config.data.seq_len * parallel.micro_batch * world_size
    config.train = replace(config.train, init_from=None, batch_tokens=batch_tokens)
