"""Scrambling 64 bits: what orders and keys of samples are made with."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def scrambled(value: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood, 2014): uint64 to uint64, a bijection."""
    value = value + GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
