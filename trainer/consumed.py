"""How much of each source training has seen. Exact and cheap: which sample comes when is known without drawing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Countable(Protocol):
    """A dataset that knows what of each source the samples [first, last) are: int64 or float64 [sources]."""

    @property
    def sources(self) -> Sequence[str]: ...

    def tokens(self, first: int, last: int) -> np.ndarray: ...

    def epochs(self, first: int, last: int) -> np.ndarray: ...


def consumed(
    dataset: Countable,
    last: int,
    skipped: Iterable[Sequence[int]] = (),
    *,
    since: int = 0,
    known: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, float]]:
    """What was read of each source by the samples [0, last) without those that were skipped.

    Args:
        skipped: samples [begin, end) that were left out; they do not overlap.
        since: the sample from which on tokens are counted, where ``known`` is what was read before it. Where there
            is padding, tokens are looked up sample by sample: nothing that a run of weeks should do over and over.

    Returns:
        By name ``tokens``, padding not counted, and ``epochs``: how often the source was read from end to end.
    """
    skipped = list(skipped)
    tokens = _without(dataset.tokens, since, last, skipped)
    epochs = _without(dataset.epochs, 0, last, skipped)
    return {
        name: {"tokens": int(tokens[i]) + int((known or {}).get(name, {}).get("tokens", 0)), "epochs": float(epochs[i])}
        for i, name in enumerate(dataset.sources)
    }


def _without(count: Callable[[int, int], Any], first: int, last: int, skipped: Iterable[Sequence[int]]) -> Any:
    inside = [(max(first, begin), min(last, end)) for begin, end in skipped]
    return count(first, last) - sum(count(begin, end) for begin, end in inside if begin < end)
