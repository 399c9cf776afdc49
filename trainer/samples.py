"""What a dataset gives: sequences of tokens, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100  # target of a position that is not trained on


class Samples(NamedTuple):
    """n sequences of ``seq_len`` tokens."""

    tokens: np.ndarray  # int64 [n, seq_len], the inputs
    targets: np.ndarray  # int64 [n, seq_len], the token that follows each input; IGNORED where none is to be learned
    documents: np.ndarray | None  # int32 [n, seq_len], document of each position; None: all may see each other
    sources: np.ndarray  # int64 [n], number of the source that each sequence comes from
