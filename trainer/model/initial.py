"""First values of the parameters: a pure function of (seed, name, region), so that every layout starts alike.

A parameter is drawn in blocks of whole rows, each from a generator of its own, keyed by the seed, the
parameter's name and the block. A rank that holds some rows of a parameter draws only the blocks they lie in.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig

BLOCK = 1 << 18  # elements drawn from one generator, rounded to whole rows; part of the definition of a start


@dataclass(frozen=True)
class Start:
    """How a parameter begins: one value everywhere, or normal around 0 with a deviation."""

    value: float | None = None
    std: float = 0.0
    truncate: float | None = None  # standard deviations beyond which nothing is drawn


def start_of(name: str, model: ModelConfig) -> Start:
    """How the parameter with this name in the decoder begins: norms with 1, biases with 0, the rest drawn."""
    *_, owner, leaf = ("", *name.split("."))
    if "bias" in leaf:
        return Start(value=0.0)
    if owner.endswith("norm"):
        return Start(value=1.0)
    std = model.init_std
    if owner == "output" and model.init_attention_output_std is not None:
        std = model.init_attention_output_std
    if (owner == "down" or leaf.startswith("down")) and model.init_down_std is not None:
        std = model.init_down_std
    return Start(std=std, truncate=model.init_truncate)


def initial(
    name: str, shape: tuple[int, ...], *, begin: Start, seed: int, start: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """Values of a region of a parameter.

    Args:
        name: the parameter's full name in the decoder.
        shape: of the whole parameter.
        start: first index of the region in each dimension.
        size: extent of the region in each dimension; it may be empty.

    Returns:
        float32 on the CPU, of shape ``size``.
    """
    if begin.value is not None:
        return torch.full(size, begin.value)
    if math.prod(size) == 0:
        return torch.empty(size)
    rows = max(1, BLOCK // math.prod(shape[1:]))
    first = start[0] // rows
    last = (start[0] + size[0] - 1) // rows
    inner = tuple(slice(s, s + n) for s, n in zip(start[1:], size[1:], strict=True))
    blocks = []
    for block in range(first, last + 1):
        count = min(rows, shape[0] - block * rows)
        values = _draw((count, *shape[1:]), begin, _key(seed, name, block))
        keep = slice(max(0, start[0] - block * rows), start[0] + size[0] - block * rows)
        blocks.append(values[(keep, *inner)])
    return torch.cat(blocks)


def _draw(shape: tuple[int, ...], begin: Start, key: int) -> Tensor:
    generator = torch.Generator().manual_seed(key)
    values = torch.empty(shape)
    if begin.truncate is None:
        return values.normal_(std=begin.std, generator=generator)
    limit = begin.truncate * begin.std
    return nn.init.trunc_normal_(values, std=begin.std, a=-limit, b=limit, generator=generator)


def _key(seed: int, name: str, block: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
