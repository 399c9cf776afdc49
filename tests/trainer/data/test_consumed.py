"""What is told of the tokens of each source is what training read of it, however often it was saved and went back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import DataConfig, MixtureConfig, Packing
from trainer.consumed import consumed
from trainer.data import TokenDataset


def opened(path: Path, packing: Packing) -> TokenDataset:
    mixture = MixtureConfig(weights={"*": 1, "en": 0.5})
    return TokenDataset(DataConfig(str(path), 16, packing=packing, mixture=mixture), seed=3, tokens=10**6)


@given(
    cuts=st.lists(st.integers(0, 700), unique=True, min_size=1, max_size=9),
    saves=st.lists(st.integers(0, 700), max_size=5),
    packing=st.sampled_from(list(Packing)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_of_each_source_are_counted_exactly_and_skipped_samples_are_not(
    prepared: Path, cuts: list[int], saves: list[int], packing: Packing
) -> None:
    data = opened(prepared, packing)
    skipped = list(pairwise(sorted(cuts)))[::2]
    found, since = {}, 0
    for last in [*sorted(saves), 700]:  # at each save from the one before
        found, since = consumed(data, last, skipped, since=since, known=found), last
    seen = [i for i in range(700) if not any(begin <= i < end for begin, end in skipped)]
    sources, numbers = data.locate(seen)
    for i, name in enumerate(data.sources):
        assert found[name]["tokens"] == data._sequences.tokens_of(i, numbers[sources == i])
        assert found[name]["epochs"] == pytest.approx(np.sum(sources == i) / data.lengths[i])
    assert found == consumed(data, 700, skipped)
