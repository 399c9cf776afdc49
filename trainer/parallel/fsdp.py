"""FSDP2: every layer's parameters, gradients and optimizer state are sharded over all ranks."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import get_total_norm

from trainer.config import ParallelConfig, Precision, TrainerConfig
from trainer.model import Decoder, Routing
from trainer.model.decoder import Layer
from trainer.model.initial import initial
from trainer.optim import adamw
from trainer.parallel.engine import Engine


class FSDP(Engine):
    """``fully_shard`` on each layer and on the rest, over one mesh dimension of all ranks; gloo or nccl."""

    def __init__(self, config: TrainerConfig, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        with torch.device("meta"):
            self.model = Decoder(config.model)
        _shard(self.model, config.parallel, config.train.precision, device)
        self.model.to_empty(device=device)
        self._initialise(config.model.init_std, config.train.seed)
        self.optimizer = adamw(self.model.named_parameters(), config.optim)

    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, dict[int, Routing]]:
        return self.model(tokens_BS)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        sharded = cast(FSDPModule, self.model)  # what fully_shard made of it
        sharded.set_requires_gradient_sync(last)
        sharded.set_is_last_backward(last)
        loss.backward()

    def clip(self, max_norm: float) -> Tensor:
        # On the local shards: a dispatch per DTensor costs more than the arithmetic of a small shard.
        shards = [_local(p.grad) for p in self.model.parameters() if p.grad is not None]
        square = get_total_norm(shards).double().square()
        dist.all_reduce(square)
        norm = square.sqrt()
        if max_norm > 0:
            scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(torch.float32)
            torch._foreach_mul_(shards, scale)  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            found[f"model.{name}"] = parameter
            for key, tensor in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{key}"] = tensor
        return found

    @torch.no_grad()
    def _initialise(self, std: float, seed: int) -> None:
        for name, parameter in self.model.named_parameters():
            assert isinstance(parameter, DTensor)
            shape = tuple(parameter.shape)
            size, start = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
            values = initial(name, shape, std=std, seed=seed, start=tuple(start), size=tuple(size))
            parameter.to_local().copy_(values)


def _shard(decoder: Decoder, parallel: ParallelConfig, precision: Precision, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("dp",))
    # Inputs are not cast: the layers receive float32 angles beside activations that already have the right type.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision is Precision.bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        if parallel.compile:
            _compile(layer)
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=parallel.reshard_after_forward,
            shard_placement_fn=_placement,
        )
    # The root's own parameters, embedding and head, are needed first in backward: no use in freeing them.
    fully_shard(decoder, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            # Plain sums over ranks. gloo has no premultiplied sum, which any other factor asks for, and on a
            # mesh of one rank a factor with forced sums would be applied twice.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _placement(parameter: nn.Parameter) -> Shard | None:
    """Along which dimension a parameter is split; None: the first.

    8 stacked experts split along the first over 32 ranks would lie on 8 of these, with all of their optimizer
    state. They are split along the next dimension that all ranks share evenly, where there is one.
    """
    ranks = dist.get_world_size()
    if parameter.ndim < 3 or parameter.shape[0] % ranks == 0:
        return None
    return next((Shard(dim) for dim in range(1, parameter.ndim) if parameter.shape[dim] % ranks == 0), None)


def _compile(layer: Layer) -> None:
    if layer.moe is not None:
        # Left out: the compiler knows no grouped product in float32, and the loop's lengths change every time.
        experts = layer.moe.experts
        experts.forward = torch.compiler.disable(experts.forward)  # pyright: ignore[reportAttributeAccessIssue]
    layer.compile()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
