"""What all layers of one pass are told beside their activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Context(NamedTuple):
    """Of one pass; the same for every layer."""

    cos_SC: Tensor | None  # rotary positions
    sin_SC: Tensor | None
    mask: Any  # what trainer.model.attention.document_mask made; None: plain causal attention
    key_B: Tensor | None  # int64, one per sequence, from which every random draw follows; None: nothing is drawn


def uniform(key_B: Tensor, place: int, shape: tuple[int, ...]) -> Tensor:
    """Random numbers that are a pure function of (key, place, index): no generator, no state, no order.

    Every layout of ranks draws the same for a sequence, and a layer that is computed again in backward draws the
    same again. The bits are those of SplitMix64 (Steele, Lea, Flood, 2014) at a counter.

    Args:
        key_B: one per sequence.
        place: tells draws of one sequence apart; layer times PLACES plus a number below it.
        shape: of one sequence's draw.

    Returns:
        float32 in [0, 1), of shape [B, *shape].
    """
    size = math.prod(shape)
    index = torch.arange(size, device=key_B.device, dtype=torch.int64)
    # Multiplied as a tensor, which wraps around at 64 bits where a Python number would not fit.
    seeded_B = _mix(key_B + key_B.new_full((), place) * _GOLDEN)
    together = max(1, DRAWN // max(1, size))
    drawn = [_numbers(seeded_b.unsqueeze(1) + index * _GOLDEN) for seeded_b in seeded_B.split(together)]
    return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).view(-1, *shape)


DRAWN = 1 << 26  # numbers made together, whole sequences at least: on the way each takes ten times its own 4 bytes
PLACES = 8  # draws that one layer may make
EMBEDDING_DROPOUT, ATTENTION_DROPOUT, ATTENTION_OUTPUT_DROPOUT, FEEDFORWARD_DROPOUT, SELECTION = range(5)


def dropout(x: Tensor, probability: float, key_B: Tensor | None, place: int) -> Tensor:
    """Zero elements with ``probability`` and scale up the others; x is [B, ...]. As it is where nothing is drawn."""
    if probability == 0 or key_B is None:
        return x
    kept = uniform(key_B, place, tuple(x.shape[1:])) >= probability
    return torch.where(kept, x / (1 - probability), 0.0)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits for the 64 bits of x, without dragging the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _numbers(counter: Tensor) -> Tensor:
    # 24 bits: as many as a float32 tells apart.
    return _shifted(_mix(counter), 40).to(torch.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)
