"""What the training loop asks of an engine, and the choice of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from trainer import config as schema
from trainer.model import Routing


class Engine(ABC):
    """A model and its optimizer laid over the ranks.

    Every method but the properties is collective: all ranks call it, in the same order. Gradients are sums over
    ranks and passes; what makes them means (division by the batch's tokens) is in the loss.
    """

    rank: int
    world_size: int
    device: torch.device

    @abstractmethod
    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, dict[int, Routing]]:
        """Logits [B, S, V] of this rank's sequences, and what the router did in each MoE layer."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of ``loss``; with the ``last`` pass of a step they are summed over the ranks."""

    @abstractmethod
    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients down to a global norm of at most ``max_norm``; 0 leaves them as they are.

        Returns:
            The norm before that, the same on every rank; not finite where a gradient is not.
        """

    @abstractmethod
    def update(self, lr: float) -> None:
        """One step of the optimizer with this learning rate; the gradients are then gone."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor a checkpoint needs, by a name that no layout changes. Loading writes into them in place."""


def build(config: schema.TrainerConfig, device: torch.device) -> Engine:
    """The engine that ``config.parallel.engine`` names, with the model in its initial state. Collective."""
    return load(config)(config, device)


def load(config: schema.TrainerConfig) -> Callable[[schema.TrainerConfig, torch.device], Engine]:
    """Import the engine that ``build`` makes; that of FSDP takes a second."""
    match config.parallel.engine:
        case schema.Engine.fsdp:
            from trainer.parallel.fsdp import FSDP

            return FSDP
