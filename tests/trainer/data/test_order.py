"""The order of samples is a bijection in every epoch, and depends on nothing but seed and index."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import shuffled

seeds = st.integers(-(2**63), 2**64)


@given(samples=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 10**9))
def test_an_epoch_visits_every_sample_once(samples: int, seed: int, epoch: int) -> None:
    order = shuffled(np.arange(samples) + epoch * samples, samples, seed)
    assert sorted(order.tolist()) == list(range(samples))


@given(
    samples=st.integers(1, 2**61),
    seed=seeds,
    indices=st.lists(st.integers(0, 2**62), min_size=1, max_size=8),
)
def test_a_sample_depends_on_seed_and_index_alone(samples: int, seed: int, indices: list[int]) -> None:
    together = shuffled(indices, samples, seed)
    alone = [int(shuffled([index], samples, seed)[0]) for index in indices]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < samples)).all()


@given(sizes=st.lists(st.integers(1, 2**40), min_size=1, max_size=6), data=st.data())
def test_each_index_may_have_a_size_and_a_seed_of_its_own(sizes: list[int], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, 2**50), min_size=len(sizes), max_size=len(sizes)))
    keys = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(sizes), max_size=len(sizes)))
    together = shuffled(indices, sizes, np.array(keys, dtype=np.uint64))
    each = zip(indices, sizes, keys, strict=True)
    assert together.tolist() == [int(shuffled([index], size, key)[0]) for index, size, key in each]


def test_the_order_never_changes_between_versions() -> None:
    # A resumed run must go on where it was: change these numbers only together with dataset.ORDER.
    assert shuffled(range(12), 10, seed=0).tolist() == [0, 9, 7, 5, 6, 3, 2, 1, 4, 8, 8, 9]
    assert shuffled([0, 1, 10**15], 10**12 + 39, seed=7).tolist() == [
        774711808693,
        281780936585,
        312097403827,
    ]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    rows = [shuffled(np.arange(1000) + 1000 * epoch, 1000, seed) for seed in range(4) for epoch in range(4)]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            # Two random permutations agree in one place on average.
            assert (row == other).sum() < 10


def test_small_permutations_are_all_equally_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    tries = 200 * factorial(4)
    for seed in range(tries):
        order = tuple(shuffled(range(4), 4, seed).tolist())
        seen[order] = seen.get(order, 0) + 1
    chi_square = sum((count - 200) ** 2 / 200 for count in seen.values())
    assert len(seen) == factorial(4)
    assert chi_square < 50  # 23 degrees of freedom: beyond it once in a thousand trials


def test_neighbours_in_the_data_do_not_stay_neighbours() -> None:
    order = shuffled(range(100_000), 100_000, seed=3)
    steps = np.abs(np.diff(order))
    assert abs(steps.mean() - 100_000 / 3) < 500  # of two random places
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


@pytest.mark.parametrize(("index", "samples"), [(-1, 10), (0, 0), (0, 2**62)])
def test_what_cannot_be_ordered_is_refused(index: int, samples: int) -> None:
    with pytest.raises(ValueError, match=r"negative|samples="):
        shuffled([index], samples, 0)
