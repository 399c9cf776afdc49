"""The order of samples: a pure function of (seed, sample index), in constant memory.

Each epoch visits every sample once, in a permutation of its own. The permutation is a Feistel network over
pairs (left, right) of residues modulo a and b, a * b being little more than the number of samples: places that
fall outside are sent through again until they fall inside ("generalized Feistel cipher" and "cycle walking",
Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). As the network is a bijection whatever its
round function, so is the walk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.scramble import GOLDEN, scrambled

ROUNDS = 8
_TURNS = np.arange(ROUNDS, dtype=np.uint64) * GOLDEN
_ONE = np.uint64(1)


def shuffled(indices: npt.ArrayLike, samples: npt.ArrayLike, seed: int | np.ndarray) -> np.ndarray:
    """Which sample stands at each place of an endless series of shuffled epochs.

    Args:
        indices: int64 [n], at least 0; index // samples is the epoch.
        samples: samples of one epoch, at least 1 and below 2**62; one number, or one for each index.
        seed: any int, or uint64 [n]; other seeds give unrelated orders.

    Returns:
        int64 [n] in [0, samples).
    """
    size = np.asarray(samples, dtype=np.int64)
    if ((size < 1) | (size >= 1 << 62)).any():
        raise ValueError(f"samples={samples}: must be from 1 to 2**62")
    epoch, place = np.divmod(np.asarray(indices, dtype=np.int64), size)
    if (epoch < 0).any():
        raise ValueError("a sample index is negative")
    size = np.broadcast_to(size, place.shape).astype(np.uint64)
    key = scrambled(epoch.astype(np.uint64) + scrambled(keyed(seed)))
    a = np.sqrt((size - _ONE).astype(np.float64)).astype(np.uint64) + _ONE
    b = (size + a - _ONE) // a
    value = _feistel(place.astype(np.uint64), key, a, b)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        value[outside] = _feistel(value[outside], key[outside], a[outside], b[outside])
        outside = outside[value[outside] >= size[outside]]
    return value.astype(np.int64)


def keyed(seed: int | np.ndarray) -> np.ndarray:
    """A seed as uint64 [1]; seeds in an array stay as they are."""
    return seed if isinstance(seed, np.ndarray) else np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)


def _feistel(value: np.ndarray, key: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A keyed bijection of [0, a * b); all arrays uint64 [n]."""
    right, left = np.divmod(value, a)
    for turn, odd in zip(_TURNS, [False, True] * (ROUNDS // 2), strict=True):
        # Of the round function 63 bits are taken: the sum must not wrap, which would be no bijection modulo a.
        if odd:
            right = (right + (scrambled(left + key + turn) >> _ONE)) % b
        else:
            left = (left + (scrambled(right + key + turn) >> _ONE)) % a
    return right * a + left
