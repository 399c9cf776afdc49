"""The training loss of a pass, and its sums over the passes and ranks of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model import Routing
from trainer.model.decoder import moe_layers


def loss_of(
    logits_BSV: Tensor, targets_BS: Tensor, routing: dict[int, Routing], config: ModelConfig, batch_tokens: int
) -> tuple[Tensor, Tensor]:
    """This pass's share of the loss of a global batch of ``batch_tokens`` tokens.

    The loss of the batch is the mean cross-entropy of its tokens plus, with their coefficients, the sums over
    MoE layers of the balance and z losses, each a mean over sequences weighted by their tokens. All of it is
    divided by the global number of tokens, so the shares of all passes and ranks add up to it exactly.

    Returns:
        The share, 0-dim, to be differentiated; and float64 sums over this pass's tokens, detached:
        [cross-entropy, balance loss of all layers, z-loss of all layers].
    """
    seq_len = targets_BS.shape[1]
    logits_TV = logits_BSV.flatten(0, 1)
    if logits_TV.dtype in (torch.bfloat16, torch.float16):
        logits_TV = logits_TV.float()
    cross_entropy = F.cross_entropy(logits_TV, targets_BS.flatten(), reduction="sum")
    zero = cross_entropy.new_zeros(())
    balance = sum((r.balance_B.sum() for r in routing.values()), zero) * seq_len
    z = sum((r.z_B.sum() for r in routing.values()), zero) * seq_len
    total = cross_entropy
    if config.moe is not None:
        total = total + config.moe.balance_loss * balance + config.moe.z_loss * z
    sums = torch.stack([cross_entropy.detach(), balance.detach(), z.detach()]).double()
    return total / batch_tokens, sums


@dataclass(frozen=True)
class StepTotals:
    """One step over all of its passes and ranks."""

    loss: float  # mean cross-entropy of a token, natural logarithm
    balance_loss: float  # mean over sequences and MoE layers; 1 is an even load
    z_loss: float  # mean over sequences and MoE layers
    stops: int  # ranks that were asked to stop
    tokens_per_expert: dict[int, list[int]]  # by layer; sums over ranks


class StepSums:
    """Adds up what the passes of a step say, then reduces it over the ranks in one collective."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.layers = moe_layers(config)
        self.experts = config.moe.experts if config.moe is not None else 0
        self.losses = torch.zeros(3, dtype=torch.float64, device=device)
        self.tokens_LE = torch.zeros(len(self.layers), self.experts, dtype=torch.int64, device=device)

    def add(self, sums: Tensor, routing: dict[int, Routing]) -> None:
        """One pass: the sums that ``loss_of`` returned, and the routing it was given."""
        self.losses += sums
        if self.layers:
            self.tokens_LE += torch.stack([routing[layer].tokens_E for layer in self.layers])

    def reduce(self, *, stop: bool, batch_tokens: int) -> StepTotals:
        """Collective: the totals over all ranks, on the host. ``stop`` is whether this rank wants to stop."""
        # float64 carries the counts exactly up to 2^53, so that one reduction serves everything.
        stops = torch.full((1,), float(stop), dtype=torch.float64, device=self.losses.device)
        packed = torch.cat([self.losses, stops, self.tokens_LE.flatten().double()])
        dist.all_reduce(packed)
        cross_entropy, balance, z, stops_sum, *counts = packed.tolist()
        per_layer = batch_tokens * max(1, len(self.layers))
        tokens = {
            layer: [int(count) for count in counts[i * self.experts : (i + 1) * self.experts]]
            for i, layer in enumerate(self.layers)
        }
        return StepTotals(
            loss=cross_entropy / batch_tokens,
            balance_loss=balance / per_layer,
            z_loss=z / per_layer,
            stops=round(stops_sum),
            tokens_per_expert=tokens,
        )
