"""The order of samples: a pure function of (seed, sample index), in constant memory.

Each epoch visits every sample once, in a permutation of its own. The permutation is a Feistel network over
the smallest even number of bits that holds the number of samples; positions that fall outside are sent
through again until they fall inside ("cycle walking", Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). As the network is a bijection whatever its round function, so is the walk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.scramble import GOLDEN, scrambled

ROUNDS = 8
_TURNS = np.arange(ROUNDS, dtype=np.uint64) * GOLDEN


def shuffled(indices: npt.ArrayLike, samples: int, seed: int) -> np.ndarray:
    """Which sample stands at each place of an endless series of shuffled epochs.

    Args:
        indices: int64 [n], at least 0; index // samples is the epoch.
        samples: samples of one epoch, at least 1 and below 2**62.
        seed: any int; other seeds give unrelated orders.

    Returns:
        int64 [n] in [0, samples).
    """
    if not 1 <= samples < 1 << 62:
        raise ValueError(f"samples={samples}: must be from 1 to 2**62")
    epoch, place = np.divmod(np.asarray(indices, dtype=np.int64), samples)
    if (epoch < 0).any():
        raise ValueError("a sample index is negative")
    key = scrambled(epoch.astype(np.uint64) + scrambled(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))
    half = np.uint64(max(1, (max(samples - 1, 1).bit_length() + 1) // 2))
    value = _feistel(place.astype(np.uint64), key, half)
    outside = np.flatnonzero(value >= samples)
    while outside.size:
        value[outside] = _feistel(value[outside], key[outside], half)
        outside = outside[value[outside] >= samples]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, key: np.ndarray, half: np.uint64) -> np.ndarray:
    """A keyed bijection of [0, 4**half); all arrays uint64 [n]."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for turn in _TURNS:
        left, right = right, left ^ (scrambled(right + key + turn) & mask)
    return (left << half) | right
