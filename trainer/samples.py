"""What a dataset gives: sequences of tokens, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100  # target of a position that is not trained on


class Samples(NamedTuple):
    """n sequences of ``seq_len`` tokens."""

    tokens: np.ndarray  # int64 [n, seq_len], the inputs
    targets: np.ndarray  # int64 [n, seq_len], the token that follows each input; IGNORED where none is to be learned
    # int32 [n, seq_len], number of each position's document in its sequence, rising from 0, padding counted as one
    # more; None: all may see each other
    documents: np.ndarray | None
    sources: np.ndarray  # int64 [n], number of the source that each sequence comes from
