"""A rank's part of a checkpoint in host memory, byte for byte the file that it becomes.

Which rank writes which part of which tensor follows from the layout alone, and so do its place in the rank's file
and all bytes around it. They are settled once. A save then is one copy of the values into their places, while
training waits, and one file written from memory, while it goes on: nothing is planned, pickled or copied again.

The files are those of ``torch.distributed.checkpoint``: each part of a tensor is what ``torch.save`` makes of it, and
``.metadata`` says where it lies, so that its own reader loads them into any layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.serialization import get_crc32_options, set_crc32_options

from trainer.agreement import Agreement
from trainer.checkpoint_folder import BLOCK

ALIGNMENT = 64  # bytes, of values within a file, so that tensors of any type can lie over them

log = logging.getLogger(__name__)


class Staged(NamedTuple):
    """What a rank writes of each checkpoint of a run."""

    image: Image
    metadata: bytes  # content of .metadata; empty on other ranks than 0


class Image:
    """The host memory of one rank's file, kept from save to save.

    Args:
        items: the parts of tensors that the rank writes, by torch's plan.
        names: of all tensors of the state.
        device: where the tensors are; for a GPU the memory is pinned, so that copies run at the bus's speed.
    """

    def __init__(self, items: Iterable[WriteItem], names: Iterable[str], device: torch.device) -> None:
        self.names = frozenset(names)
        self.places: dict[MetadataIndex, tuple[int, int]] = {}  # offset and length in the file
        self._device = device
        frames = {item.index: _frame_of(item) for item in items}
        end = 0
        for index, frame in frames.items():
            self.places[index] = (end, frame.size)
            end += -(-frame.size // ALIGNMENT) * ALIGNMENT
        # Anonymous pages: zeroed, at a multiple of BLOCK, and as many as are needed; torch's own pinned memory comes
        # in powers of two. Private ones, since only these can be huge: writing them takes a fifth of the kernel's time.
        size = max(1, -(-end // BLOCK)) * BLOCK
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self._pinned = device.type == "cuda" and self._pin()
        self._values = [
            (index, values)
            for index, frame in frames.items()
            if (values := frame.fill(self.memory, self.places[index][0])) is not None
        ]

    @torch.no_grad()
    def stage(self, state: Mapping[str, Any]) -> None:
        """Copy the values of this rank's parts of ``state`` into their places; returns when they are there.

        Raises:
            ValueError: if the state is not laid out as it was when this memory was.
        """
        if changed := self.names.symmetric_difference(state):
            raise ValueError(f"{min(changed)} is in one of the state saved first and the state now, not in both")
        for index, target in self._values:
            source = _part(state[index.fqn], index)
            if source.shape != target.shape or source.dtype != target.dtype:
                raise ValueError(
                    f"{index.fqn} is {source.dtype} {tuple(source.shape)} here, was {target.dtype} "
                    f"{tuple(target.shape)} in the state saved first"
                )
            target.copy_(source, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Give the pinning back; the memory goes when the last to look at it does."""
        if self._pinned:
            _cudart().cudaHostUnregister(self._address())
            self._pinned = False
        self._values = []

    def _pin(self) -> bool:
        code = _cudart().cudaHostRegister(self._address(), len(self.memory), 0)
        if int(code) != 0:
            log.warning("memory for checkpoints could not be pinned (CUDA error %s): staging will be slower", code)
        return int(code) == 0

    def _address(self) -> int:
        return torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()


def lay_out(state: Mapping[str, Any], device: torch.device, agree: Agreement) -> Staged:
    """Collective: settle what each rank writes of ``state``; what several ranks have, one of them writes."""
    planner = DefaultSavePlanner()

    def local() -> SavePlan:
        planner.set_up_planner(dict(state), is_coordinator=agree.rank == 0)
        return planner.create_local_plan()

    plans: list[SavePlan] = []
    found: list[Metadata] = []

    def settle(locals_: list[SavePlan]) -> None:
        settled, metadata = planner.create_global_plan(locals_)
        plans.extend(dataclasses.replace(plan, planner_data=None) for plan in settled)
        found.append(metadata)

    def describe(places: list[dict[MetadataIndex, tuple[int, int]]]) -> None:
        storage = {
            index: _StorageInfo(file_of(rank), *place)
            for rank, mine in enumerate(places)
            for index, place in mine.items()
        }
        found[0] = dataclasses.replace(found[0], storage_data=storage)

    agree.on_each_rank(local, settle)
    items = agree.to_each_rank(plans if agree.rank == 0 else None).items
    images: list[Image] = []

    def place() -> dict[MetadataIndex, tuple[int, int]]:
        images.append(Image(items, state, device))
        return images[0].places

    agree.on_each_rank(place, describe)
    return Staged(images[0], pickle.dumps(found[0]) if found else b"")


def _cudart() -> Any:
    return torch.cuda.cudart()


def file_of(rank: int) -> str:
    return f"__{rank}_0.distcp"


class _Frame(NamedTuple):
    """What ``torch.save`` writes around the values of a tensor."""

    head: bytes  # ends where the values begin
    tail: bytes  # begins where they end
    size: int  # of the whole, values included
    dtype: torch.dtype
    shape: torch.Size

    def fill(self, file: mmap.mmap, begin: int) -> Tensor | None:
        """Write it into a file in memory; a tensor of the values in between, None where there are none."""
        file[begin : begin + len(self.head)] = self.head
        file[begin + self.size - len(self.tail) : begin + self.size] = self.tail
        if not (count := math.prod(self.shape)):
            return None
        flat = torch.frombuffer(file, dtype=self.dtype, count=count, offset=begin + len(self.head))
        return flat.view(self.shape)


def _frame_of(item: WriteItem) -> _Frame:
    data = item.tensor_data
    if data is None:
        raise ValueError(f"{item.index.fqn} is no tensor")
    return _frame(data.chunk.sizes, data.properties.dtype)


@functools.lru_cache(maxsize=1024)  # a decoder repeats its layers
def _frame(shape: torch.Size, dtype: torch.dtype) -> _Frame:
    # Without the archive's own checksums: it would have those of other values. Ours cover the whole file.
    checksums = get_crc32_options()
    set_crc32_options(False)
    try:
        file = io.BytesIO()
        torch.save(torch.empty(shape, dtype=dtype), file)
    finally:
        set_crc32_options(checksums)
    content = file.getbuffer()
    with zipfile.ZipFile(file) as archive:
        (values,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    # The header of an entry: 30 bytes, the last four of them the lengths of a name and of padding that follow.
    name, padding = struct.unpack_from("<HH", content, values.header_offset + 26)
    begin = values.header_offset + 30 + name + padding
    end = begin + values.file_size
    return _Frame(bytes(content[:begin]), bytes(content[end:]), len(content), dtype, shape)


def _part(value: Any, index: MetadataIndex) -> Tensor:
    """The part of a tensor, or of what stands for one, that ``index`` names."""
    find = getattr(value, "__get_tensor_shard__", None)
    return value if find is None else find(index)
