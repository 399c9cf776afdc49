"""What engines on PyTorch's own optimizer share: passes, evaluation, the optimizer's step and the state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from trainer.batch import Batch
from trainer.config import Precision, TrainerConfig
from trainer.model import Decoder, Output
from trainer.model.initial import start_of
from trainer.optim import adamw
from trainer.parallel.engine import Engine
from trainer.parallel.held import Held, Layout
from trainer.parallel.loss_scale import LossScale

COMPUTE_DTYPE = {Precision.fp32: None, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class Base(Engine):
    """A decoder whose parameters are plain tensors or DTensors, under fused AdamW.

    Args:
        model: on the meta device; it is allocated on ``device`` and given its first values.
        layout_of: how the ranks share a parameter, by its name; None: this rank holds all of it.
    """

    def __init__(
        self,
        model: Decoder,
        config: TrainerConfig,
        device: torch.device,
        layout_of: Callable[[str, nn.Parameter], Layout | None],
    ) -> None:
        self.device = device
        self.model = model.to_empty(device=device)
        for name, buffer in self.model.named_buffers():
            buffer.fill_(start_of(name, config.model).value or 0.0)
        self.held = [Held(name, p, layout_of(name, p)) for name, p in self.model.named_parameters()]
        for held in self.held:
            held.initialise(config.model, config.train.seed)
        self.optimizer = adamw(((held.name, held.local) for held in self.held), config.optim)
        fp16 = config.train.precision is Precision.fp16
        self.scale = LossScale(config.train.loss_scale, self.world_size) if fp16 else None

    # -- passes ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
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
        (loss if self.scale is None else loss * self.scale.factor).backward()

    def _call(self, batch: Batch) -> Output:
        return self.model(batch.tokens_BS, batch.targets_BS, documents_BS=batch.documents_BS, key_B=batch.key_B)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train()

    # -- the optimizer's step --------------------------------------------------------------------------------

    def norm(self) -> Tensor:
        gradients = [gradient for held in self.held if (gradient := held.gradient()) is not None]
        square = self._sum(get_total_norm(gradients).double().square())
        return square.sqrt() / (1.0 if self.scale is None else self.scale.factor)

    def _sum(self, square: Tensor) -> Tensor:
        """The sum over the ranks of what each has of the parameters, each part counted once."""
        return square

    def update(self, lr: float, *, norm: float, max_norm: float) -> None:
        divisor = 1.0 if self.scale is None else self.scale.factor
        if max_norm > 0 and norm > max_norm:
            divisor *= (norm + 1e-6) / max_norm
        for held in self.held:
            held.bind()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused kernel divides gradients while it reads them: neither clipping nor the loss scale costs a pass.
        scale = None if divisor == 1.0 else torch.full((), divisor, device=self.device)
        self.optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self._drop_gradients()
        if self.scale is not None:
            self.scale.step(overflow=False)

    def drop(self, *, overflow: bool) -> None:
        self._drop_gradients()
        if self.scale is not None and overflow:
            self.scale.step(overflow=True)

    def _drop_gradients(self) -> None:
        for held in self.held:
            held.drop_gradient()

    def loss_scale(self) -> float | None:
        return None if self.scale is None else self.scale.value

    def rebalance(self, tokens_LE: Tensor) -> None:
        self.model.rebalance(tokens_LE)

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for held in self.held:
            held.bind()
            found[f"model.{held.name}"] = held.whole(held.local)
            for key, tensor in self.optimizer.state[held.local].items():
                found[f"optimizer.{held.name}.{key}"] = tensor if key == "step" else held.whole(tensor)
        for name, buffer in self.model.named_buffers():
            found[f"model.{name}"] = buffer
        return found

    def values(self) -> dict[str, Any]:
        return {} if self.scale is None else {"loss_scale": self.scale.values()}

    def load_values(self, values: Mapping[str, Any]) -> None:
        if self.scale is not None and "loss_scale" in values:
            self.scale.load_values(values["loss_scale"])
