"""The training loss of a pass, and its sums over the passes and ranks of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.batch import Batch
from trainer.config import ModelConfig
from trainer.model import Output
from trainer.profile_request import Request
from trainer.samples import IGNORED
from trainer.size import moe_layers


def valid_tokens(batches: Sequence[Batch]) -> Tensor:
    """Collective: positions of the global batch that are trained on, 0-dim on the device, at least 1."""
    count = torch.stack([(batch.targets_BS != IGNORED).sum() for batch in batches]).sum()
    dist.all_reduce(count)
    return count.clamp(min=1)


def loss_of(output: Output, targets_BS: Tensor, config: ModelConfig, valid: int | Tensor) -> tuple[Tensor, Tensor]:
    """This pass's share of the loss of a global batch that is trained on ``valid`` tokens.

    The loss of the batch is the mean cross-entropy of these tokens plus, with their coefficients, the sums over
    MoE layers of the balance and z losses, each a mean over sequences weighted by their valid tokens. All of it is
    divided by the global number of valid tokens, so the shares of all passes and ranks add up to it exactly.

    Returns:
        The share, 0-dim, to be differentiated; and float64 sums over this pass's tokens, detached:
        [cross-entropy, balance loss of all layers, z-loss of all layers].
    """
    assert output.cross_entropy is not None
    total = output.cross_entropy
    balance = z = total.new_zeros(())
    if config.moe is not None:
        valid_B = (targets_BS != IGNORED).sum(dim=1)
        balance = sum(((r.balance_B * valid_B).sum() for r in output.routing.values()), balance)
        z = sum(((r.z_B * valid_B).sum() for r in output.routing.values()), z)
        total = total + config.moe.balance_loss * balance + config.moe.z_loss * z
    sums = torch.stack([output.cross_entropy.detach(), balance.detach(), z.detach()]).double()
    return total / valid, sums


@dataclass(frozen=True)
class StepTotals:
    """One step over all of its passes and ranks."""

    loss: float  # mean cross-entropy of a valid token, natural logarithm
    balance_loss: float  # mean over sequences and MoE layers; 1 is an even load
    z_loss: float  # mean over sequences and MoE layers
    grad_norm: float  # before clipping
    stops: int  # ranks that were asked to stop
    profile: Request | None = None  # what rank 0 was asked to have profiled
    tokens_per_expert: dict[int, list[int]] = field(default_factory=dict)  # by layer: sent, dropped ones included
    dropped: dict[int, int] = field(default_factory=dict)  # by layer: routed rows beyond capacity
    entropy: dict[int, float] = field(default_factory=dict)  # by layer: of the router, mean over tokens

    @property
    def router_entropy(self) -> float:
        """Mean over MoE layers."""
        return sum(self.entropy.values()) / len(self.entropy)

    @property
    def dropped_share(self) -> float:
        """Of all rows that routers sent to experts."""
        return sum(self.dropped.values()) / sum(sum(counts) for counts in self.tokens_per_expert.values())


_HEAD = 7  # what goes before the routing: three losses, the wish to stop, three numbers of a request


class StepSums:
    """Adds up what the passes of a step say, then reduces it over the ranks in one collective."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.layers = moe_layers(config)
        self.experts = config.moe.experts if config.moe is not None else 0
        # float64 carries the counts exactly up to 2^53, so that one reduction serves everything.
        self.losses = torch.zeros(3, dtype=torch.float64, device=device)
        self.routing_LX = torch.zeros(len(self.layers), self.experts + 2, dtype=torch.float64, device=device)

    def add(self, sums: Tensor, output: Output, size: int) -> None:
        """One pass: the sums that ``loss_of`` returned, of sequences of ``size`` tokens."""
        self.losses += sums
        if self.layers:
            self.routing_LX += torch.stack(
                [
                    torch.cat([r.tokens_E, r.dropped.view(1), r.entropy_B.double().sum().view(1) * size])
                    for r in (output.routing[layer] for layer in self.layers)
                ]
            )

    def reduce(self, *, stop: bool, profile: Request | None = None) -> None:
        """Collective: sums over all ranks.

        Args:
            stop: whether this rank wants to stop.
            profile: what rank 0 was asked to have profiled; None on the others.
        """
        asked = torch.zeros(_HEAD - 3, dtype=torch.float64, device=self.losses.device)
        if stop:  # set in place: a copy from the host would wait for the device
            asked[0] = 1
        for place, number in enumerate(profile or (), start=1):
            asked[place] = number
        self.packed = torch.cat([self.losses, asked, self.routing_LX.flatten()])
        dist.all_reduce(self.packed)

    def tokens_LE(self) -> Tensor:
        """Tokens sent to each expert of each MoE layer over all ranks, on the device; after ``reduce``."""
        return self.packed[_HEAD:].view(len(self.layers), -1)[:, : self.experts]

    def totals(self, grad_norm: Tensor, *, batch_tokens: int, valid: int | Tensor) -> StepTotals:
        """What was reduced, on the host, where norm and valid tokens come along: the step's only wait for the device.

        Args:
            batch_tokens: tokens of the global batch.
            valid: those of them that are trained on.
        """
        counted = valid.double().view(1) if isinstance(valid, Tensor) else self.packed.new_full((1,), valid)
        *sums, norm, tokens = torch.cat([self.packed, grad_norm.double().view(1), counted]).tolist()
        (cross_entropy, balance, z, stops, *request), counts = sums[:_HEAD], sums[_HEAD:]
        number, steps, rank = map(round, request)
        per_layer = tokens * max(1, len(self.layers))
        width = self.experts + 2
        rows = {layer: counts[i * width : (i + 1) * width] for i, layer in enumerate(self.layers)}
        return StepTotals(
            loss=cross_entropy / tokens,
            balance_loss=balance / per_layer,
            z_loss=z / per_layer,
            grad_norm=norm,
            stops=round(stops),
            profile=Request(number, steps, rank) if number else None,
            tokens_per_expert={layer: [int(count) for count in row[: self.experts]] for layer, row in rows.items()},
            dropped={layer: int(row[self.experts]) for layer, row in rows.items()},
            entropy={layer: row[self.experts + 1] / batch_tokens for layer, row in rows.items()},
        )
