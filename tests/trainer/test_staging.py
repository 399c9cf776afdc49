"""What a rank writes: files of torch.distributed.checkpoint, of any layout, loaded into any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Ranks
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from trainer.checkpoint import Checkpoints, Progress
from trainer.parallel.deepspeed_fragment import Fragment
from trainer.staging import Image

SHAPES = {"matrix": (7, 3), "vector": (5,), "number": (), "experts": (4, 2, 3), "one": (1, 1), "row": (1, 9)}
KINDS = ["plain", "replicated", "rows", "last", "fragment"]


def whole(name: str) -> torch.Tensor:
    torch.manual_seed(len(name))
    return torch.randn(SHAPES[name])


def laid(kind: str, tensor: torch.Tensor) -> Any:
    """A tensor under a layout over all ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if kind == "plain" or tensor.ndim == 0:
        return tensor.clone()
    if kind == "fragment":  # cut anywhere, the first rank with less than its share
        cuts = [0, *(tensor.numel() * n // world_size - 1 for n in range(1, world_size)), tensor.numel()]
        cuts = [max(0, cut) for cut in cuts]
        return Fragment(tensor.flatten()[cuts[rank] : cuts[rank + 1]].clone(), tuple(tensor.shape), cuts[rank])
    mesh = init_device_mesh("cpu", (world_size,))
    placement = {"replicated": Replicate(), "rows": Shard(0), "last": Shard(tensor.ndim - 1)}[kind]
    return distribute_tensor(tensor, mesh, [placement])


def here(value: Any) -> torch.Tensor:
    """What this rank holds of it."""
    return value.local if isinstance(value, Fragment) else getattr(value, "to_local", lambda: value)()


def state(kind: str, *, zero: bool = False) -> dict[str, Any]:
    return {name: laid(kind, whole(name) * (0 if zero else 1)) for name in SHAPES}


class Loaded:
    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state(self) -> dict[str, Any]:
        return self._state

    def load_values(self, values: Any) -> None: ...


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(
        folder, identity={}, keep_latest=9, keep_every=0, background=True, device=tiny.CPU, record=tiny.Memory()
    )


def save_each_kind(folder: Path) -> None:
    for kind in KINDS:
        saved = checkpoints(folder / kind)
        saved.save(state(kind), {}, Progress(step=1))
        saved.wait()


def load_each_into_each(folder: Path) -> list[str]:
    """What did not come back as it was."""
    wrong = []
    for saved in KINDS:
        for kind in KINDS:
            into = state(kind, zero=True)
            checkpoints(folder / saved).resume(Loaded(into), seed=0)
            for name in SHAPES:
                if not here(into[name]).equal(here(laid(kind, whole(name)))):
                    wrong.append(f"{name}, saved as {saved}, loaded as {kind}")
    return wrong


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 2)])
def test_every_layout_loads_into_every_other(ranks: Ranks, tmp_path: Path, first: int, then: int) -> None:
    ranks.run(save_each_kind, tmp_path, world_size=first)
    assert ranks.run(load_each_into_each, tmp_path, world_size=then) == [[]] * then


def test_torchs_own_reader_needs_nothing_of_ours(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(save_each_kind, tmp_path, world_size=2)
    for kind in KINDS:
        into = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        state_dict_loader.load(into, storage_reader=FileSystemReader(tmp_path / kind / "step-1"), no_dist=True)
        assert all(into[name].equal(whole(name)) for name in SHAPES)


def item(name: str, tensor: torch.Tensor) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size([0] * tensor.ndim), tensor.shape)
    data = TensorWriteData(chunk=chunk, properties=TensorProperties.create_from_tensor(tensor), size=tensor.shape)
    return WriteItem(index=MetadataIndex(name, chunk.offsets), type=WriteItemType.TENSOR, tensor_data=data)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda shape, dtype, transposed: (
        torch.arange(shape[0] * shape[1]).remainder(2).to(dtype).view(shape).t()
        if transposed
        else torch.arange(shape[0] * shape[1]).to(dtype).view(shape)
    ),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.sampled_from(DTYPES),
    st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(tensors=st.lists(TENSORS, max_size=8))
def test_each_part_of_the_memory_is_what_torch_would_have_saved(tensors: list[torch.Tensor]) -> None:
    given = {f"t{number}": tensor for number, tensor in enumerate(tensors)}
    image = Image([item(name, tensor) for name, tensor in given.items()], given, tiny.CPU)
    for offset in (0, 1):  # a second save over the first
        now = {name: tensor + offset if tensor.dtype != torch.bool else tensor for name, tensor in given.items()}
        image.stage(now)
        content = bytes(image.memory)
        assert len(content) % 4096 == 0
        assert sorted(image.places.values()) == list(image.places.values())
        for index, (begin, length) in image.places.items():
            with open_at(content, begin, length) as file:
                loaded = torch.load(file, weights_only=True)
            assert loaded.equal(now[index.fqn]) and loaded.dtype == now[index.fqn].dtype


def open_at(content: bytes, begin: int, length: int) -> Any:
    import io

    return io.BytesIO(content[begin : begin + length])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"a": torch.zeros(3)}, "b is in one of the state saved first and the state now"),
        ({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1)}, "c is in one of"),
        ({"a": torch.zeros(4), "b": torch.zeros(2)}, r"a is torch.float32 \(4,\) here, was torch.float32 \(3,\)"),
        ({"a": torch.zeros(3).half(), "b": torch.zeros(2)}, "a is torch.float16"),
    ],
)
def test_a_state_of_another_layout_is_not_written_into_the_places_of_the_first(
    changed: dict[str, torch.Tensor], why: str
) -> None:
    first = {"a": torch.zeros(3), "b": torch.zeros(2)}
    image = Image([item(name, tensor) for name, tensor in first.items()], first, tiny.CPU)
    image.stage(first)
    with pytest.raises(ValueError, match=why):
        image.stage(changed)
