"""A stretch of a tensor's elements as checkpoints see it: as the boxes that it covers of the whole tensor.

ZeRO cuts tensors without regard to their dimensions: a rank may hold the elements from the middle of one row to the
middle of another. Written as boxes, such a stretch loads into any other cut, a DTensor's included, and without any
rank ever having gathered the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Box(NamedTuple):
    """A box of a tensor whose elements are contiguous in it."""

    offset: tuple[int, ...]  # first index in each dimension
    size: tuple[int, ...]  # extent in each dimension


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The elements start ... stop - 1 of a tensor, counted in rows, as boxes in the same order.

    At most 2 · dimensions - 1 of them.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield Box((start,), (stop - start,)) if shape else Box((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:
        yield from _within_row(shape, last, start - last * row, stop - last * row)
        return
    yield from _within_row(shape, first - 1, start - (first - 1) * row, row if start < first * row else 0)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _within_row(shape, last, 0, stop - last * row)


def _within_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    for box in boxes(shape[1:], start, stop):
        yield Box((row, *box.offset), (1, *box.size))


class Fragment(Tensor):
    """A tensor of which this rank holds a stretch of elements; to be saved and loaded, not computed with.

    torch.distributed.checkpoint asks tensors for three methods that say what there is to write and where to read
    to; these are they.

    Attributes:
        local: the elements held, of one dimension; writing to the fragment writes to it.
        start: the first of them, counted in the whole tensor.
    """

    local: Tensor
    start: int

    @staticmethod
    def __new__(cls, local: Tensor, shape: tuple[int, ...], start: int) -> Fragment:
        made = torch.Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=local.dtype, device=local.device)
        made.local = local
        made.start = start
        return made

    def _boxes(self) -> Iterator[tuple[Box, Tensor]]:
        begin = 0
        for box in boxes(tuple(self.shape), self.start, self.start + self.local.numel()):
            count = math.prod(box.size)
            yield box, self.local.narrow(0, begin, count).view(box.size)
            begin += count

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size)) for box, _ in self._boxes()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(tensor for box, tensor in self._boxes() if box.offset == tuple(index.offset or ()))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            (fragment,) = args
            return Fragment(fragment.local.detach(), tuple(fragment.shape), fragment.start)
        raise TypeError(f"{func} cannot be computed with a part of a tensor")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Fragment(shape={tuple(self.shape)}, start={self.start}, elements={self.local.numel()})"
