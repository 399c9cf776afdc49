"""Cutting documents into sequences: everything once, nothing across the end of a document."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import packing
from trainer.data.packing import Cut, EvenCut, pack, pad

lengths = st.lists(st.integers(0, 9) | st.integers(0, 70), max_size=60)


def bounds(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def stretches(cut: Cut) -> list[tuple[int, int]]:
    return [(start, start + length) for start, length in zip(cut.starts.tolist(), cut.lengths.tolist(), strict=True)]


def next_fit(lengths: list[int], seq_len: int) -> list[tuple[int, int]]:
    """The plain loop that ``pack`` must equal: stretches [first, end) of the row."""
    found = []
    first = end = 0  # of the sequence that is being filled
    for length in lengths:
        if end + length - first > seq_len + 1:
            found.append((first, end))
            first = end
        end += length
        while end - first > seq_len + 1:
            found.append((first, first + seq_len + 1))
            first += seq_len
    return [(a, b) for a, b in [*found, (first, end)] if b - a > 1]


@given(lengths=lengths, seq_len=st.integers(1, 20), chunk=st.integers(1, 80))
@settings(deadline=None)
def test_packing_is_next_fit_however_many_documents_are_looked_at_together(
    lengths: list[int], seq_len: int, chunk: int
) -> None:
    with patch.object(packing, "_CHUNK", chunk):
        assert stretches(pack(bounds(lengths), seq_len)) == next_fit(lengths, seq_len)


@given(lengths=lengths, seq_len=st.integers(1, 20), chunk=st.integers(1, 80))
@settings(deadline=None)
def test_every_token_but_the_first_of_its_document_is_predicted_once(
    lengths: list[int], seq_len: int, chunk: int
) -> None:
    edges = bounds(lengths)
    within = set(range(sum(lengths))) - set(edges.tolist())
    for cut in (pack, pad):
        with patch.object(packing, "_CHUNK", chunk):
            found = cut(edges, seq_len)
        assert all(2 <= length <= seq_len + 1 for length in found.lengths.tolist())
        predicted = [token for a, b in stretches(found) for token in range(a + 1, b)]
        learned = [token for token in predicted if token in within]
        assert sorted(learned) == sorted(within)
        if cut is pad:
            assert learned == predicted


@given(lengths=lengths, seq_len=st.integers(1, 20))
def test_a_document_that_fits_is_never_cut(lengths: list[int], seq_len: int) -> None:
    edges = bounds(lengths)
    cuts = {edge for stretch in stretches(pack(edges, seq_len)) for edge in stretch}
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if b - a <= seq_len + 1:
            assert not cuts & set(range(a + 1, b))


@given(tokens=st.integers(0, 300), seq_len=st.integers(1, 40))
def test_an_even_cut_leaves_less_than_a_sequence(tokens: int, seq_len: int) -> None:
    cut = EvenCut(tokens, seq_len)
    starts, sizes = cut.stretches(np.arange(len(cut)))
    assert (sizes == seq_len + 1).all()
    assert starts.tolist() == list(range(0, len(cut) * seq_len, seq_len))
    assert 0 <= max(tokens - 1, 0) - len(cut) * seq_len < seq_len


@pytest.mark.parametrize("cut", [pack, pad])
def test_nothing_to_predict_makes_no_sequence(cut: object) -> None:
    for lengths in ([], [0, 0], [1]):
        assert len(cut(bounds(lengths), 4)) == 0  # type: ignore[operator]
