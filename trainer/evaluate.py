"""Validation loss, over all and by source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from trainer.batch import Batch
from trainer.parallel import Engine
from trainer.samples import IGNORED, Samples


class ValidationSet(Protocol):
    """Sequences that are kept out of training, the same ones each time."""

    @property
    def sources(self) -> Sequence[str]:
        """Names; ``Samples.sources`` are their numbers."""
        ...

    def __len__(self) -> int:
        """Sequences."""
        ...

    def batch(self, indices: Sequence[int]) -> Samples:
        """Those at the given indices of at least 0; from the length on with nothing to be learned."""
        ...


@dataclass(frozen=True)
class Validation:
    """Mean cross-entropy of a token, natural logarithm; its exponential is the perplexity."""

    loss: float
    by_source: dict[str, float]  # of sources that have tokens in the set
    tokens: int

    def metrics(self) -> dict[str, float]:
        """As a step's record has them: ``validation_loss`` and, for each source, ``validation_loss/<source>``."""
        by_source = {f"validation_loss/{name}": loss for name, loss in self.by_source.items()}
        return {"validation_loss": self.loss, **by_source}


def evaluate(engine: Engine, data: ValidationSet, *, micro_batch: int, alive: Callable[[], None]) -> Validation:
    """Loss over the whole set, shared out over the ranks. Collective.

    Every rank makes the same number of passes of the same size, some of which reach beyond the end of the set.

    Args:
        micro_batch: sequences per rank in one pass.
        alive: called before each pass.
    """
    stretch = micro_batch * engine.world_size
    source_C = torch.arange(len(data.sources), device=engine.device)
    sums_2C = torch.zeros(2, len(data.sources), dtype=torch.float64, device=engine.device)
    for begin in range(engine.rank * micro_batch, engine.rank * micro_batch + len(data), stretch):
        alive()
        samples = data.batch(range(begin, begin + micro_batch))
        batch = Batch.of(samples, engine.device)
        loss_B = engine.evaluate(batch).cross_entropy_B
        assert loss_B is not None
        valid_B = (batch.targets_BS != IGNORED).sum(dim=1)
        # By choice, not by a product: the NaN of one source must not reach the others.
        mine_BC = torch.from_numpy(samples.sources).to(engine.device).unsqueeze(1) == source_C
        sums_2C += torch.stack(
            [torch.where(mine_BC, each.double().unsqueeze(1), 0.0).sum(0) for each in (loss_B, valid_B)]
        )
    dist.all_reduce(sums_2C)
    losses, counts = sums_2C.tolist()
    return Validation(
        loss=sum(losses) / max(1.0, sum(counts)),
        by_source={name: loss / n for name, loss, n in zip(data.sources, losses, counts, strict=True) if n},
        tokens=round(sum(counts)),
    )
