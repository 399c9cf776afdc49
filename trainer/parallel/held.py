"""What one rank holds of each parameter, as plain tensors: what the optimizer works on and checkpoints are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.config import ModelConfig
from trainer.model.initial import initial, start_of


class Layout(NamedTuple):
    """How the ranks share a tensor."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: tuple[int, ...]  # of the whole

    def whole(self, local: Tensor) -> DTensor:
        """The whole tensor, of which ``local`` is this rank's part; writing to it writes to ``local``."""
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=stride
        )

    def region(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """This rank's part: first index and extent in each dimension."""
        size, start = compute_local_shape_and_global_offset(self.shape, self.mesh, self.placements)
        return tuple(start), tuple(size)


class Held:
    """This rank's part of a parameter.

    Plain tensors, because a dispatch per DTensor costs more than the arithmetic of a small part.

    Args:
        name: of the parameter in the decoder.
        parameter: in the model, where gradients arrive; a DTensor where it is shared.
        layout: of the whole parameter; None: this rank holds all of it.
    """

    def __init__(self, name: str, parameter: nn.Parameter, layout: Layout | None) -> None:
        self.name = name
        self.parameter = parameter
        self.layout = layout
        self.local = nn.Parameter(local(parameter.detach()))

    @torch.no_grad()
    def bind(self) -> None:
        """Make ``local`` this rank's part as it is now, with its gradient: whoever shards may move it in memory."""
        self.local.data = local(self.parameter)
        self.local.grad = self.gradient()

    def gradient(self) -> Tensor | None:
        with torch.no_grad():
            return None if self.parameter.grad is None else local(self.parameter.grad)

    def drop_gradient(self) -> None:
        self.parameter.grad = self.local.grad = None

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the part's shape, such as a moment of its gradient, under the whole parameter's layout."""
        return tensor.detach() if self.layout is None else self.layout.whole(tensor.detach())

    @torch.no_grad()
    def initialise(self, model: ModelConfig, seed: int) -> None:
        """Give the part its first values."""
        shape = tuple(self.parameter.shape) if self.layout is None else self.layout.shape
        start, size = ((0,) * len(shape), shape) if self.layout is None else self.layout.region()
        values = initial(self.name, shape, begin=start_of(self.name, model), seed=seed, start=start, size=size)
        local(self.parameter).copy_(values)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; to be called without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
