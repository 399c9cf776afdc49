"""FSDP2: every layer's parameters, gradients and optimizer state are sharded over ranks; experts may be shared out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from trainer.config import ParallelConfig, Precision, Sharding, TrainerConfig
from trainer.model import Decoder
from trainer.model.decoder import Layer
from trainer.model.experts import Experts
from trainer.parallel.base import COMPUTE_DTYPE, Base
from trainer.parallel.exchange import Exchange
from trainer.parallel.held import Layout
from trainer.parallel.layers import prepare
from trainer.parallel.mesh import EXPERTS, SHARD, Meshes


class FSDP(Base):
    """``fully_shard`` on each layer and on the rest; gloo or nccl.

    With expert parallelism each rank has only its stretch of a layer's experts as parameters, sharded over the
    ranks that have the same stretch, and everything else is sharded over all ranks. Then all ranks must evaluate
    batches of the same shape, where experts have a capacity.
    """

    def __init__(self, config: TrainerConfig, device: torch.device, ranks_per_node: int = 1) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.parallel = config.parallel
        self.meshes = Meshes.of(config.parallel, device, ranks_per_node)
        with torch.device("meta"):
            model = Decoder(config.model)
        if self.meshes.experts is not None:
            _share_out(model, self.meshes.experts)
        prepare(model, config.parallel)
        _shard(model, config.parallel, config.train.precision, self.meshes)
        super().__init__(model, config, device, self._layout)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        root = cast(FSDPModule, self.model)  # what fully_shard made of it
        every_pass = self.parallel.reduce_every_pass
        root.set_requires_gradient_sync(last or every_pass)
        root.set_requires_all_reduce(last)
        root.set_is_last_backward(last)
        # What stays gathered from forward to backward may as well stay for the step's next pass.
        root.set_reshard_after_backward(last or self.parallel.sharding is not Sharding.grad_op)
        super().backward(loss, last=last)

    def load_values(self, values: Mapping[str, Any]) -> None:
        super().load_values(values)
        # Evaluation may have left parameters gathered, from before the shards were loaded into.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _sum(self, square: Tensor) -> Tensor:
        dist.all_reduce(square)
        return square / self.meshes.copies

    def _layout(self, name: str, parameter: nn.Parameter) -> Layout:
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, tuple(parameter.placements)
        if self.meshes.experts is None or ".experts." not in name:
            return Layout(mesh, placements, tuple(parameter.shape))
        own, *rest = parameter.shape
        spread: tuple[Placement, ...] = (Replicate(), Shard(0), placements[-1])
        return Layout(self.meshes.experts, spread, (own * self.parallel.expert_parallel, *rest))


def _share_out(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Leave this rank its experts only, and let rows travel."""
    for experts in _experts(decoder):
        for name, parameter in list(experts.named_parameters(recurse=False)):
            own = parameter.shape[0] // mesh[EXPERTS].size()
            setattr(experts, name, nn.Parameter(parameter.new_empty(own, *parameter.shape[1:])))
        exchange = Exchange(experts.forward, experts.up_EDF.shape[0], mesh[EXPERTS].get_group())
        experts.forward = exchange.__call__  # pyright: ignore[reportAttributeAccessIssue]


def _shard(decoder: Decoder, parallel: ParallelConfig, precision: Precision, meshes: Meshes) -> None:
    # Inputs are not cast: the layers receive float32 angles beside activations that already have the right type.
    policy = MixedPrecisionPolicy(COMPUTE_DTYPE[precision], torch.float32, cast_forward_inputs=False)
    reshard = parallel.sharding is not Sharding.grad_op
    for layer in decoder.layers:
        fully_shard(
            layer,
            mesh=meshes.dense,
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=_placements(layer, meshes),
        )
    # The root's own parameters, embedding and head, are needed first in backward: no use in freeing them.
    fully_shard(decoder, mesh=meshes.dense, mp_policy=policy, reshard_after_forward=False)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            # Plain sums over ranks. gloo has no premultiplied sum, which any other factor asks for, and on a
            # mesh of one rank a factor with forced sums would be applied twice.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if meshes.experts is not None:
        # Where rows travel, the host waits for their numbers and cannot run ahead to gather what comes next.
        for before, after in pairwise(cast(list[FSDPModule], list(decoder.layers))):
            before.set_modules_to_forward_prefetch([after])
            after.set_modules_to_backward_prefetch([before])


def _placements(layer: nn.Module, meshes: Meshes) -> Callable[[nn.Parameter], Shard | ShardPlacementResult | None]:
    """How the parameters of a layer are split: experts that are shared out, over the ranks that hold the same ones.

    These belong to the layer's own FSDP module rather than to one of their own, whose gathering would take place
    in the middle of what is recomputed or compiled.
    """
    elsewhere: set[nn.Parameter] = set()
    dense = meshes.dense[SHARD].size()
    if meshes.experts is None:
        return lambda parameter: _placement(parameter, dense)
    assert isinstance(layer, Layer)
    if layer.moe is not None:
        elsewhere.update(layer.moe.experts.parameters())
    mesh = meshes.of_an_expert()
    info = FSDPMeshInfo(mesh, 0) if meshes.copies == 1 else HSDPMeshInfo(mesh, 1, 0)

    def placement(parameter: nn.Parameter) -> Shard | ShardPlacementResult | None:
        if parameter not in elsewhere:
            return _placement(parameter, dense)
        return ShardPlacementResult(_placement(parameter, mesh[SHARD].size()), info)

    return placement


def _placement(parameter: nn.Parameter, ranks: int) -> Shard | None:
    """Along which dimension a parameter is split; None: the first.

    8 stacked experts split along the first over 32 ranks would lie on 8 of these, with all of their optimizer
    state. They are split along the next dimension that all ranks share evenly, where there is one.
    """
    if parameter.ndim < 3 or parameter.shape[0] % ranks == 0:
        return None
    return next((Shard(dim) for dim in range(1, parameter.ndim) if parameter.shape[dim] % ranks == 0), None)


def _experts(decoder: Decoder) -> list[Experts]:
    return [layer.moe.experts for layer in decoder.layers if isinstance(layer, Layer) and layer.moe is not None]
