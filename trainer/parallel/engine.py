"""What the training loop asks of an engine, and the choice of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer import config as schema
from trainer.batch import Batch
from trainer.model import Output


class Engine(ABC):
    """A model and its optimizer laid over the ranks.

    Every method is collective: all ranks call it, in the same order. Gradients are sums over ranks and passes;
    what makes them means (division by the batch's tokens) is in the loss. A step is forward and backward for each
    pass, ``norm``, then ``update`` or ``drop``.
    """

    rank: int
    world_size: int
    device: torch.device

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """The loss of this rank's sequences, in training."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> Output:
        """The same as ``forward`` without gradients and random draws, and with the capacity of evaluation."""

    @abstractmethod
    def logits(self, tokens_BS: Tensor) -> Tensor:
        """[B, S, V], in evaluation."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of ``loss``; with the ``last`` pass of a step they are summed over the ranks."""

    @abstractmethod
    def norm(self) -> Tensor:
        """Norm of all gradients of the step, 0-dim, the same on every rank; not finite where a gradient is not.

        With a loss scale it is that of the unscaled gradients.
        """

    @abstractmethod
    def update(self, lr: float, *, norm: float, max_norm: float) -> None:
        """One step of the optimizer, the gradients scaled down to ``max_norm`` if that is above 0; then they are gone.

        Args:
            norm: what ``norm`` returned, finite.
        """

    @abstractmethod
    def drop(self, *, overflow: bool) -> None:
        """Throw the step's gradients away; the parameters stay.

        Args:
            overflow: they were not finite, which a loss scale learns from.
        """

    @abstractmethod
    def loss_scale(self) -> float | None:
        """The loss scale of fp16, as the configuration means it; None where there is none."""

    @abstractmethod
    def rebalance(self, tokens_LE: Tensor) -> None:
        """Tell the routers that balance by a bias how many tokens each expert was sent in the whole batch."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs, by names that no layout changes: tensors, into which loading writes in
        place, and what ``load_values`` takes back."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """State that is no tensor, such as the loss scale, as JSON values; the same on every rank."""

    @abstractmethod
    def load_values(self, values: Mapping[str, Any]) -> None:
        """The reverse of ``values``. Called after the tensors of ``state`` were loaded."""


def build(config: schema.TrainerConfig, device: torch.device, ranks_per_node: int = 1) -> Engine:
    """The engine that ``config.parallel.engine`` names, with the model in its initial state. Collective."""
    return load(config)(config, device, ranks_per_node)


def load(config: schema.TrainerConfig) -> Callable[[schema.TrainerConfig, torch.device, int], Engine]:
    """Import the engine that ``build`` makes; that of FSDP takes a second, DeepSpeed's two."""
    match config.parallel.engine:
        case schema.Engine.fsdp:
            from trainer.parallel.fsdp import FSDP

            return FSDP
        case schema.Engine.deepspeed:
            from trainer.parallel.deepspeed import DeepSpeed

            return DeepSpeed
        case schema.Engine.single:
            from trainer.parallel.single import Single

            return Single
