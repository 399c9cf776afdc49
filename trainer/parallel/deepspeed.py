"""DeepSpeed: ZeRO stages 0 to 3, and experts spread over the ranks up to stage 2.

The router stays our own and experts are exchanged by ``trainer.parallel.exchange``: capacity, balance losses and
draws are the same as under every other engine. DeepSpeed shards, reduces and steps.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from trainer.batch import Batch
from trainer.config import ModelConfig, OptimConfig, Precision, TrainerConfig
from trainer.model import Decoder, Output
from trainer.model.decoder import Layer
from trainer.model.initial import initial, start_of
from trainer.optim import first_state, is_decayed
from trainer.parallel.base import COMPUTE_DTYPE
from trainer.parallel.deepspeed_experts import Spread
from trainer.parallel.deepspeed_fragment import Fragment
from trainer.parallel.deepspeed_zero import environment, load, zero_of
from trainer.parallel.engine import Engine
from trainer.parallel.layers import prepare
from trainer.parallel.loss_scale import LossScale

BUCKET = 50_000_000  # elements that are reduced, and gathered ahead, together


class DeepSpeed(Engine):
    """A decoder under DeepSpeed's ZeRO and torch's AdamW; gloo or nccl."""

    def __init__(self, config: TrainerConfig, device: torch.device, ranks_per_node: int = 1) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        fp16 = config.train.precision is Precision.fp16
        self.scale = LossScale(config.train.loss_scale, self.world_size) if fp16 else None
        with environment(device):
            deepspeed = load(device)
            settings = _settings(config, device)
            with torch.device("meta"):
                self.model = Decoder(config.model)
            self.shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
            self.experts = Spread(config.parallel.expert_parallel)
            if config.parallel.zero_stage < 3:
                self.experts.share_out(self.model)
                _allocate(self.model, config, device)
            else:  # sharded as it is made: no rank ever has the whole
                with deepspeed.zero.Init(config_dict_or_path=settings):
                    self.model = Decoder(config.model)
                # Gathered layer by layer. Gathering inside of a layer would be taken for a part of its computation
                # by those who compile or compute it again.
                deepspeed.utils.set_z3_leaf_modules(self.model, [Layer])
                # The decoder computes with this one itself, rather than a module of its own.
                head = self.model.embedding if self.model.head is None else self.model.head
                deepspeed.zero.register_external_parameter(self.model, head.weight)
            _reset_buffers(self.model, config.model, device)
            self.model.compute_dtype = COMPUTE_DTYPE[config.train.precision]
            prepare(self.model, config.parallel)
            with self.experts.told(self.model), contextlib.redirect_stdout(io.StringIO()):  # it prints its memory
                self.optimizer = self._adamw(config.optim)
                self.engine = deepspeed.initialize(model=self.model, optimizer=self.optimizer, config=settings)[0]
        self.zero = zero_of(self.engine)
        for flat in self.zero.flats():
            self.optimizer.state[flat] = first_state(flat)
        self._initialise(config)

    # -- passes ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        with environment(self.device):
            return self._call(self.engine, batch)

    def evaluate(self, batch: Batch) -> Output:
        with self._evaluating():
            return self._call(self.model, batch._replace(key_B=None))

    def logits(self, tokens_BS: Tensor) -> Tensor:
        with self._evaluating():
            found = self.model(tokens_BS).logits_BSV
        assert found is not None
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        with environment(self.device):
            self.engine.set_gradient_accumulation_boundary(last)
            self.engine.backward(loss if self.scale is None else loss * self.scale.factor, scale_wrt_gas=False)

    def _call(self, model: Any, batch: Batch) -> Output:
        return model(batch.tokens_BS, batch.targets_BS, documents_BS=batch.documents_BS, key_B=batch.key_B)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad(), environment(self.device):
            yield
        self.model.train()

    # -- the optimizer's step --------------------------------------------------------------------------------

    def norm(self) -> Tensor:
        if self.zero.copies:
            square = self._square_of_copies()
        else:
            square = get_total_norm(self.zero.gradients()).double().square().to(self.device)
        dist.all_reduce(square)
        return square.sqrt() / self._divisor()

    def _square_of_copies(self) -> Tensor:
        """This rank's share in the square of the norm, where others hold the same gradients."""
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                square += parameter.grad.norm().double().square() / self.experts.copies(parameter)
        return square

    def _divisor(self) -> float:
        """What the gradients that DeepSpeed holds are divided by to be those of the loss."""
        scale = 1.0 if self.scale is None else self.scale.factor
        return scale / self.world_size if self.zero.averages else scale

    def update(self, lr: float, *, norm: float, max_norm: float) -> None:
        divisor = self._divisor()
        if max_norm > 0 and norm > max_norm:
            divisor *= (norm + 1e-6) / max_norm
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel divides gradients while it reads them: neither clipping nor the loss scale costs a pass.
        scale = None if divisor == 1.0 else torch.full((), divisor, device=self.zero.flats()[0].device)
        self.optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        self.zero.step()
        if self.scale is not None:
            self.scale.step(overflow=False)

    def drop(self, *, overflow: bool) -> None:
        self.zero.drop()
        if self.scale is not None and overflow:
            self.scale.step(overflow=True)

    def loss_scale(self) -> float | None:
        return None if self.scale is None else self.scale.value

    def rebalance(self, tokens_LE: Tensor) -> None:
        self.model.rebalance(tokens_LE)

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            part, shape = self.zero.part(parameter), self.shapes[name]
            start = self.experts.start(parameter) + part.start
            found[f"model.{name}"] = Fragment(part.of(part.flat), shape, start)
            for key, tensor in self.optimizer.state[part.flat].items():
                whole = tensor if key == "step" else Fragment(part.of(tensor), shape, start)
                found[f"optimizer.{name}.{key}"] = whole
        for name, buffer in self.model.named_buffers():
            found[f"model.{name}"] = buffer
        return found

    def values(self) -> dict[str, Any]:
        return {} if self.scale is None else {"loss_scale": self.scale.values()}

    def load_values(self, values: Mapping[str, Any]) -> None:
        self.zero.refresh()
        if self.scale is not None and "loss_scale" in values:
            self.scale.load_values(values["loss_scale"])

    # -- starting --------------------------------------------------------------------------------------------

    def _adamw(self, optim: OptimConfig) -> torch.optim.AdamW:
        """Without state: DeepSpeed puts flat tensors in the parameters' place."""
        groups: list[dict[str, Any]] = [
            {"name": "decayed", "params": [], "weight_decay": optim.weight_decay},
            {"name": "spared", "params": [], "weight_decay": 0.0},
        ]
        for name, parameter in self.model.named_parameters():
            shape = torch.empty(self.shapes[name], device="meta")  # stage 3 leaves no shape on the parameter
            groups[0 if is_decayed(name, shape, optim) else 1]["params"].append(parameter)
        return torch.optim.AdamW(
            self.experts.split(groups),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )

    @torch.no_grad()
    def _initialise(self, config: TrainerConfig) -> None:
        """Give this rank's parts their first values, in float32 whatever is computed in."""
        for name, parameter in self.model.named_parameters():
            part = self.zero.part(parameter)
            start = self.experts.start(parameter) + part.start
            values = _first_values(name, self.shapes[name], start, part.size, config)
            part.of(part.flat).copy_(values)
        self.zero.refresh()


def _settings(config: TrainerConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration. Loss scale, clipping and division of gradients are left to the engine."""
    stage, offload = config.parallel.zero_stage, config.parallel.offload
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    host = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if offload:
        zero["offload_optimizer"] = host
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = BUCKET
        if offload:
            zero["offload_param"] = host
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.parallel.micro_batch,
        "gradient_accumulation_steps": 1,  # the loop says which pass is the last
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # that one is compiled when first used
        "zero_optimization": zero,
        "steps_per_print": 1 << 62,
        "timers": {"throughput": {"enabled": False}},
    }
    if stage < 3:
        settings["gradient_allreduce_op"] = "sum"
    if stage > 0:  # stage 0 has no float32 copy of parameters: they are float32, and cast where they are used
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        if config.train.precision is Precision.bf16:
            settings["bf16"] = {"enabled": True}
        if config.train.precision is Precision.fp16:
            settings["fp16"] = {"enabled": True, "loss_scale": 1.0}
    return settings


def _allocate(decoder: Decoder, config: TrainerConfig, device: torch.device) -> None:
    dtype = COMPUTE_DTYPE[config.train.precision]
    if dtype is not None and config.parallel.zero_stage > 0:
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(dtype)
    decoder.to_empty(device=device)


def _reset_buffers(decoder: Decoder, model: ModelConfig, device: torch.device) -> None:
    """Their first values, in float32: stage 3 makes everything in the type that is computed in."""
    for name, buffer in decoder.named_buffers():
        buffer.data = torch.full(buffer.shape, start_of(name, model).value or 0.0, device=device)


def _first_values(name: str, shape: tuple[int, ...], start: int, size: int, config: TrainerConfig) -> Tensor:
    """The elements start ... start + size - 1 of a parameter at the beginning of a run, of one dimension."""
    row = math.prod(shape[1:])
    first, last = start // row, -(-(start + size) // row)
    begin = start_of(name, config.model)
    corner, extent = (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    values = initial(name, shape, begin=begin, seed=config.train.seed, start=corner, size=extent)
    return values.reshape(-1).narrow(0, start - first * row, size)
