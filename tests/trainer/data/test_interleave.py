"""Which source stands at an index: counts keep to weights everywhere, and are known without a walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.interleave import BLOCK, Interleave
from trainer.data.mixture import Part

MOST = 2000
weights = st.lists(st.integers(0, 50) | st.integers(0, 10**15), min_size=1, max_size=30).filter(any)


def interleave(parts: list[Part], sources: int, seed: int = 0) -> Interleave:
    return Interleave(parts, [str(i) for i in range(sources)], seed)


def part(weights: list[int], first: int = 0, epoch: int = 0) -> Part:
    return Part(first, {str(i): w for i, w in enumerate(weights) if w}, epoch)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Part], int]:
    """Phases of a run, and how many sources there are."""
    count = draw(st.integers(1, 8))
    tables = draw(st.lists(st.lists(st.integers(0, 99), min_size=count, max_size=count).filter(any), min_size=1))
    firsts = [0, *sorted(draw(st.integers(0, 900)) for _ in tables[1:])]
    if len(tables) == 1 and draw(st.booleans()):
        return [part(tables[0], epoch=sum(tables[0]))], count
    return [part(table, first) for table, first in zip(tables, firsts, strict=True)], count


@given(run=runs(), seed=st.integers(0, 2**64), data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_account_of_any_interval_equals_a_count(
    run: tuple[list[Part], int], seed: int, data: st.DataObject
) -> None:
    parts, count = run
    first = data.draw(st.integers(0, 1200))
    last = data.draw(st.integers(first, 1200))
    series = interleave(parts, count, seed)
    sources, _ = series.locate(np.arange(first, last))
    assert series.drawn(first, last).tolist() == np.bincount(sources, minlength=count).tolist()


@given(run=runs(), seed=st.integers(0, 2**64))
@settings(deadline=None, max_examples=50)
def test_the_draws_of_a_source_follow_each_other(run: tuple[list[Part], int], seed: int) -> None:
    parts, count = run
    sources, draws = interleave(parts, count, seed).locate(np.arange(1200))
    for source in range(count):
        mine = draws[sources == source]
        assert mine.tolist() == list(range(len(mine)))


@given(run=runs(), seed=st.integers(0, 2**64), indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_source_and_its_draw_are_a_pure_function_of_the_index(
    run: tuple[list[Part], int], seed: int, indices: list[int]
) -> None:
    parts, count = run
    together = np.stack(interleave(parts, count, seed).locate(np.array(indices)))
    fresh = interleave(parts, count, seed)
    for index, located in zip(indices, together.T, strict=True):
        assert np.concatenate(fresh.locate(np.array([index]))).tolist() == located.tolist()


@given(weights=weights, seed=st.integers(0, 2**64), far=st.integers(0, 10**12))
@settings(deadline=None, max_examples=50)
def test_shares_keep_to_the_weights_in_every_prefix_and_window(weights: list[int], seed: int, far: int) -> None:
    series = interleave([part(weights)], len(weights), seed)
    shares = np.array(weights) / sum(weights)
    for blocks in (1, 2, 3, 7, far):
        n = blocks * BLOCK
        exact = [n * weight for weight in weights]  # times the sum of the weights, which floats cannot hold
        errors = [abs(int(d) * sum(weights) - e) for d, e in zip(series.drawn(0, n), exact, strict=True)]
        assert max(errors) <= 2 * sum(weights)
        assert (np.abs(series.drawn(n, n + BLOCK) - BLOCK * shares) <= 4).all()
    for n in range(0, MOST, 97):  # within a block places are random, and no more than a block is
        assert (np.abs(series.drawn(0, n) - n * shares) <= 2 + np.minimum(BLOCK * shares + 4, BLOCK)).all()


@given(weights=weights)
@settings(deadline=None, max_examples=50)
def test_a_source_that_is_left_out_is_never_drawn(weights: list[int]) -> None:
    drawn = interleave([part(weights)], len(weights)).drawn(0, 10**9)
    assert drawn.sum() == 10**9
    assert (drawn[np.array(weights) == 0] == 0).all()


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12), seed=st.integers(0, 2**64))
@settings(deadline=None, max_examples=50)
def test_drawn_by_size_every_epoch_is_whole(sizes: list[int], seed: int) -> None:
    epoch = sum(sizes)
    series = interleave([part(sizes, epoch=epoch)], len(sizes), seed)
    for number in (0, 1, 10**9):
        sources, draws = series.locate(np.arange(number * epoch, (number + 1) * epoch))
        once = {(s, number * sizes[s] + n) for s in range(len(sizes)) for n in range(sizes[s])}
        assert set(zip(sources.tolist(), draws.tolist(), strict=True)) == once


@pytest.mark.parametrize("boundary", [1, 100, BLOCK, 5 * BLOCK + 17])
def test_a_phase_ends_exactly_where_it_should(boundary: int) -> None:
    series = interleave([part([1, 3, 0]), part([0, 1, 1], boundary)], 3)
    sources, _ = series.locate(np.arange(boundary + 1000))
    assert set(sources[:boundary].tolist()) <= {0, 1}
    assert set(sources[boundary:].tolist()) == {1, 2}
    assert series.drawn(0, boundary)[2] == 0
    assert series.drawn(boundary, 10**9)[0] == 0


def test_places_within_a_block_mean_nothing_and_no_two_blocks_are_alike() -> None:
    series = interleave([part([1, 1])], 2)
    blocks = series.locate(np.arange(400 * BLOCK))[0].reshape(400, BLOCK)
    assert abs(blocks.mean(axis=0) - 0.5).max() < 0.12  # five standard deviations of 400 throws
    assert len({row.tobytes() for row in blocks}) == 400
    other = interleave([part([1, 1])], 2, seed=1).locate(np.arange(BLOCK))[0]
    assert other.tolist() != blocks[0].tolist()


def test_the_series_never_changes_between_versions() -> None:
    # A resumed run must go on where it was: change these numbers only together with dataset.ORDER.
    sources, draws = interleave([part([5, 2, 1])], 3, seed=3).locate(np.array([*range(9), 10**12]))
    assert sources.tolist() == [0, 0, 0, 0, 0, 2, 1, 1, 1, 0]
    assert draws.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 625000000000]


def test_an_index_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        interleave([part([1])], 1).locate(np.array([-1]))
