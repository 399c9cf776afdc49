"""The nearest way to lay a model over the same ranks so that it fits their memory. Pure and free of torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

from trainer.config import ActivationCheckpointing, Engine, Sharding, TrainerConfig
from trainer.problems import problems

Change = tuple[str, Any]  # a field of ParallelConfig and its new value


def nearest(
    config: TrainerConfig, world_size: int, ranks_per_node: int, fits: Callable[[TrainerConfig], bool]
) -> list[str] | None:
    """Overrides of ``parallel`` that make a configuration fit; None where none do.

    The fewest changes, and of as many the mildest: a smaller micro-batch costs no arithmetic, computing activations
    again a third, sharding more some communication. The global batch stays what it is.
    """
    choices = [[None, *options] for options in _options(config, world_size)]
    for picked in sorted(itertools.product(*(range(len(c)) for c in choices)), key=_cost):
        changes = [c[i] for c, i in zip(choices, picked, strict=True)]
        made = [change for change in changes if change is not None]
        other = replace(config, parallel=replace(config.parallel, **dict(made)))
        if made and not list(problems(other, world_size, ranks_per_node)) and fits(other):
            return [f"parallel.{name}={_word(value)}" for name, value in made]
    return None


def _cost(picked: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    changed = sum(index > 0 for index in picked)
    return changed, sum(picked), tuple(-index for index in picked)


def _options(config: TrainerConfig, world_size: int) -> Iterator[list[Change]]:
    """For each field what may take its value's place, mildest first."""
    parallel, moe = config.parallel, config.model.moe
    yield [("micro_batch", n) for n in range(parallel.micro_batch - 1, 0, -1) if parallel.micro_batch % n == 0]
    kinds = list(ActivationCheckpointing)
    stronger = kinds[kinds.index(parallel.activation_checkpointing) + 1 :]
    yield [("activation_checkpointing", kind) for kind in stronger]
    if parallel.engine is Engine.fsdp:
        yield [("sharding", Sharding.full)] if parallel.sharding is not Sharding.full else []
        yield [("reduce_every_pass", True)] if not parallel.reduce_every_pass else []
    if parallel.engine is Engine.deepspeed:
        yield [("zero_stage", stage) for stage in range(parallel.zero_stage + 1, 4)]
        yield [("offload", True)] if not parallel.offload else []
    if moe is not None and parallel.engine is not Engine.single:
        most = math.gcd(world_size, moe.experts)
        yield [("expert_parallel", n) for n in range(parallel.expert_parallel + 1, most + 1) if most % n == 0]


def _word(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    return str(value).lower() if isinstance(value, bool) else str(value)
