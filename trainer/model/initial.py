"""First values of the parameters: a pure function of (seed, name, region), so that every layout starts alike.

A parameter is drawn in blocks of whole rows, each from a generator of its own, keyed by the seed, the
parameter's name and the block. A rank that holds some rows of a parameter draws only the blocks they lie in.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

BLOCK = 1 << 18  # elements drawn from one generator, rounded to whole rows; part of the definition of a start


def initial(
    name: str, shape: tuple[int, ...], *, std: float, seed: int, start: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """Values of a region of a parameter: ones for a vector (norm scales), else normal with deviation ``std``.

    Args:
        name: the parameter's full name in the decoder.
        shape: of the whole parameter.
        start: first index of the region in each dimension.
        size: extent of the region in each dimension; it may be empty.

    Returns:
        float32 on the CPU, of shape ``size``.
    """
    if len(shape) == 1:
        return torch.ones(size)
    if math.prod(size) == 0:
        return torch.empty(size)
    rows = max(1, BLOCK // math.prod(shape[1:]))
    first = start[0] // rows
    last = (start[0] + size[0] - 1) // rows
    inner = tuple(slice(s, s + n) for s, n in zip(start[1:], size[1:], strict=True))
    blocks = []
    for block in range(first, last + 1):
        count = min(rows, shape[0] - block * rows)
        generator = torch.Generator().manual_seed(_key(seed, name, block))
        values = torch.empty(count, *shape[1:]).normal_(std=std, generator=generator)
        keep = slice(max(0, start[0] - block * rows), start[0] + size[0] - block * rows)
        blocks.append(values[(keep, *inner)])
    return torch.cat(blocks)


def _key(seed: int, name: str, block: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
