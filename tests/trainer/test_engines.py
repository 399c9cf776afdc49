"""Every engine and layout finds the gradients of one process in float64 on the same global batch."""

from __future__ import annotations

from dataclasses import replace

import gradients
import pytest
import tiny
from gradients import Variant, capacity, dense, documents, dropless, dropout, lola, padded, shared, sigmoid
from ranks import Ranks

from trainer.config import (
    ActivationCheckpointing,
    Engine,
    ParallelConfig,
    Sharding,
)

ONE = ParallelConfig(engine=Engine.single, micro_batch=4)
SELECTIVE, RECOMPUTE = ActivationCheckpointing.selective, ActivationCheckpointing.full
FULL = ParallelConfig(micro_batch=2)
KEPT = ParallelConfig(micro_batch=1, sharding=Sharding.grad_op)
COPIES = ParallelConfig(micro_batch=2, sharding=Sharding.hybrid)  # of the tests' nodes, which have 2 ranks
EP2, EP4 = {"expert_parallel": 2}, {"expert_parallel": 4}
EVERY = {"reduce_every_pass": True}

# Each variant of a model under each kind of sharding: ranks, then the layout. All numbers of ranks and of ranks
# that share experts come with each sharding, and with both ways of recomputing activations.
CELLS: list[tuple[Variant, int, ParallelConfig]] = [
    *((variant, 1, ONE) for variant in (dropless, capacity, dropout, sigmoid, shared, lola, padded, documents)),
    (lola, 1, replace(ONE, activation_checkpointing=RECOMPUTE)),
    (dropout, 1, replace(ONE, activation_checkpointing=SELECTIVE)),
    (dropless, 1, FULL),
    (dropless, 4, replace(FULL, **EP2)),
    (dropless, 4, replace(KEPT, **EP4)),
    (dropless, 4, replace(COPIES, **EP2)),
    (capacity, 2, replace(FULL, **EP2)),
    (capacity, 4, replace(KEPT, **EP2)),
    (capacity, 4, COPIES),
    (dropout, 2, replace(FULL, activation_checkpointing=RECOMPUTE)),
    (dropout, 2, replace(KEPT, **EP2, activation_checkpointing=SELECTIVE)),
    (dropout, 4, replace(COPIES, **EP2, activation_checkpointing=RECOMPUTE)),
    (sigmoid, 4, FULL),
    (sigmoid, 1, KEPT),
    (sigmoid, 2, replace(COPIES, shard_ranks=1, **EVERY)),
    (shared, 4, replace(FULL, **EP4, activation_checkpointing=RECOMPUTE)),
    (shared, 4, replace(KEPT, **EVERY)),
    (shared, 2, COPIES),
    (lola, 4, replace(FULL, **EP2, activation_checkpointing=SELECTIVE)),
    (lola, 2, replace(KEPT, **EP2)),
    (lola, 4, replace(COPIES, **EP2)),
    (padded, 2, replace(FULL, **EVERY)),
    (padded, 2, KEPT),
    (padded, 4, replace(COPIES, shard_ranks=4, **EP4)),
    (documents, 4, replace(FULL, **EP2, **EVERY)),
    (documents, 4, replace(KEPT, activation_checkpointing=SELECTIVE)),
    (documents, 4, replace(COPIES, micro_batch=1, **EVERY)),
    (dense, 4, FULL),
    (dense, 2, KEPT),
    (dense, 4, COPIES),
]


def name(variant: Variant, ranks: int, parallel: ParallelConfig) -> str:
    if parallel.engine is Engine.single:
        parts = ["single"]
    else:
        parts = [parallel.sharding.name, f"{ranks} ranks"]
    parts += [f"ep {parallel.expert_parallel}"] if parallel.expert_parallel > 1 else []
    parts += [f"shard {parallel.shard_ranks}"] if parallel.shard_ranks else []
    parts += ["every pass"] if parallel.reduce_every_pass else []
    recompute = parallel.activation_checkpointing
    parts += [] if recompute is ActivationCheckpointing.none else [f"{recompute.name} recompute"]
    return ", ".join([variant.__name__, *parts])


def cells(chosen: list[tuple[Variant, int, ParallelConfig]]) -> pytest.MarkDecorator:
    named = [pytest.param(*cell, id=name(*cell)) for cell in chosen]
    return pytest.mark.parametrize(("variant", "world_size", "parallel"), named)


@cells(CELLS)
def test_gradients_agree(ranks: Ranks, variant: Variant, world_size: int, parallel: ParallelConfig) -> None:
    config = tiny.config()
    config.parallel = parallel
    data = variant(config)
    expected = gradients.reference(config, data)
    for found in ranks.run(gradients.of_rank, config, data, world_size=world_size):
        gradients.agree(found, expected)


COMPILED: list[tuple[Variant, int, ParallelConfig]] = [
    (lola, 1, replace(ONE, activation_checkpointing=SELECTIVE)),
    (dropless, 2, replace(FULL, **EP2, activation_checkpointing=RECOMPUTE)),
]


@pytest.mark.parametrize(
    ("variant", "world_size", "parallel"), [pytest.param(*cell, id=name(*cell)) for cell in COMPILED]
)
def test_gradients_of_compiled_layers_agree(
    ranks: Ranks, variant: Variant, world_size: int, parallel: ParallelConfig
) -> None:
    config = tiny.config()
    config.parallel = replace(parallel, compile=True)
    data = variant(config)
    expected = gradients.reference(config, data)
    for found in ranks.run(gradients.of_rank, config, data, world_size=world_size, patience=300.0):
        gradients.agree(found, expected)
