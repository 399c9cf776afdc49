"""Sampling from a model that is spread over ranks."""

from __future__ import annotations

import tiny
from ranks import Ranks

from trainer import parallel
from trainer.generate import generate


def continuations(seeds: list[int], temperature: float) -> list[list[int]]:
    config = tiny.config()
    config.model.init_std = 0.5
    engine = parallel.build(config, tiny.CPU)
    return [
        generate(
            engine,
            [1, 2, 3],
            tokens=40,
            max_seq_len=config.model.max_seq_len,
            temperature=temperature,
            seed=seed,
        )
        for seed in seeds
    ]


def test_text_is_a_function_of_the_seed_on_any_number_of_ranks(ranks: Ranks) -> None:
    ((one, again, other),) = ranks.run(continuations, [1, 1, 2], 1.0, world_size=1)
    assert one == again != other
    assert len(one) == 43
    assert one[:3] == [1, 2, 3]
    assert set(one) <= set(range(tiny.VOCABULARY))
    assert ranks.run(continuations, [1, 1, 2], 1.0, world_size=2) == [[one, again, other]] * 2


def test_greedy_text_needs_no_seed(ranks: Ranks) -> None:
    ((one, other),) = ranks.run(continuations, [1, 2], 0.0, world_size=1)
    assert one == other
