"""FSDP2: every layer's parameters, gradients and optimizer state are sharded over all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.utils import get_total_norm

from trainer.batch import Batch
from trainer.config import ModelConfig, ParallelConfig, Precision, Sharding, TrainerConfig
from trainer.model import Decoder, Output
from trainer.model.decoder import Layer
from trainer.model.initial import initial, start_of
from trainer.optim import adamw
from trainer.parallel.engine import Engine


class FSDP(Engine):
    """``fully_shard`` on each layer and on the rest, over one mesh dimension of all ranks; gloo or nccl."""

    def __init__(self, config: TrainerConfig, device: torch.device, ranks_per_node: int = 1) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        with torch.device("meta"):
            self.model = Decoder(config.model)
        _shard(self.model, config.parallel, config.train.precision, device)
        self.model.to_empty(device=device)
        self._initialise(config.model, config.train.seed)
        self.optimizer = adamw(self.model.named_parameters(), config.optim)

    def forward(self, batch: Batch) -> Output:
        self.model.train()
        return self._call(batch)

    def evaluate(self, batch: Batch) -> Output:
        with self._evaluating():
            return self._call(batch._replace(key_B=None))

    def logits(self, tokens_BS: Tensor) -> Tensor:
        with self._evaluating():
            found = self.model(tokens_BS).logits_BSV
        assert found is not None
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        sharded = cast(FSDPModule, self.model)  # what fully_shard made of it
        sharded.set_requires_gradient_sync(last)
        sharded.set_is_last_backward(last)
        loss.backward()

    def norm(self) -> Tensor:
        # On the local shards: a dispatch per DTensor costs more than the arithmetic of a small shard.
        square = get_total_norm(self._gradients()).double().square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(self, lr: float, *, norm: float, max_norm: float) -> None:
        if max_norm > 0 and norm > max_norm:
            torch._foreach_mul_(self._gradients(), max_norm / (norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop(self, *, overflow: bool) -> None:
        self.optimizer.zero_grad()

    def loss_scale(self) -> float | None:
        return None

    def rebalance(self, tokens_LE: Tensor) -> None:
        self.model.rebalance(tokens_LE)

    def values(self) -> dict[str, Any]:
        return {}

    def load_values(self, values: Mapping[str, Any]) -> None:
        pass

    def _gradients(self) -> list[Tensor]:
        return [_local(p.grad) for p in self.model.parameters() if p.grad is not None]

    def _call(self, batch: Batch) -> Output:
        return self.model(batch.tokens_BS, batch.targets_BS, documents_BS=batch.documents_BS, key_B=batch.key_B)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            found[f"model.{name}"] = parameter
            for key, tensor in self.optimizer.state[parameter].items():
                found[f"optimizer.{name}.{key}"] = tensor
        for name, buffer in self.model.named_buffers():
            found[f"model.{name}"] = buffer
        return found

    @torch.no_grad()
    def _initialise(self, model: ModelConfig, seed: int) -> None:
        for name, parameter in self.model.named_parameters():
            assert isinstance(parameter, DTensor)
            shape = tuple(parameter.shape)
            size, start = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
            begin = start_of(name, model)
            values = initial(name, shape, begin=begin, seed=seed, start=tuple(start), size=tuple(size))
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
            reshard_after_forward=parallel.sharding is not Sharding.grad_op,
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
