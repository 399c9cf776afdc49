"""The router of an MoE layer: which experts each token is sent to, with which weights, at which loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import MoEConfig, Scope, Score


class Routing(NamedTuple):
    """What the router of one layer did in one pass.

    The losses are kept per sequence, never averaged over the sequences that happen to share a pass: their
    weighted sum over a global batch is then the same for every micro-batch size and number of ranks.
    """

    tokens_E: Tensor  # int64: tokens sent to each expert, at most T each, T·K in all, the dropped ones included
    dropped: Tensor  # int64, 0-dim: routed rows beyond an expert's capacity
    balance_B: Tensor  # load-balancing loss of each sequence, 1 when its load is even
    z_B: Tensor  # router z-loss of each sequence
    entropy_B: Tensor  # mean entropy of the router's distribution over the tokens of each sequence, natural log


class Router(nn.Module):
    """Chooses K of E experts for each token by a linear score, computed in at least float32."""

    bias_E: Tensor

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.score = nn.Linear(d_model, config.experts, bias=False)
        self.config = config
        # Of balancing without a loss: counts in the choice only. Moved by ``rebalance`` after each step, never by
        # the optimizer; float32 whatever the parameters are.
        if config.bias_update:
            self.register_buffer("bias_E", torch.zeros(config.experts))

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """
        Returns:
            Routing weights of shape [B, S, K], the chosen experts [B, S, K] as int64, and the record of it, in
            which nothing is dropped yet.
        """
        config = self.config
        logits_BSE = F.linear(_at_least_float32(x_BSD), _at_least_float32(self.score.weight))
        if config.score is Score.softmax:
            score_BSE = logits_BSE.softmax(dim=-1)
            probability_BSE = score_BSE
        else:
            score_BSE = logits_BSE.sigmoid()
            probability_BSE = score_BSE / score_BSE.sum(dim=-1, keepdim=True)
        if config.bias_update:
            expert_BSK = (score_BSE + self.bias_E).topk(config.top_k, dim=-1).indices
            weight_BSK = score_BSE.gather(-1, expert_BSK)
        else:
            weight_BSK, expert_BSK = score_BSE.topk(config.top_k, dim=-1)
        if config.normalize_weights:
            weight_BSK = weight_BSK / weight_BSK.sum(dim=-1, keepdim=True)
        if config.weight_scale != 1:
            weight_BSK = weight_BSK * config.weight_scale
        count_BE = self._count(expert_BSK)
        tokens_E = count_BE.sum(dim=0)
        routing = Routing(
            tokens_E=tokens_E,
            dropped=tokens_E.new_zeros(()),
            balance_B=self._balance(count_BE, probability_BSE),
            z_B=z_loss(logits_BSE),
            entropy_B=entropy(probability_BSE.detach()),
        )
        return weight_BSK, expert_BSK, routing

    @torch.no_grad()
    def rebalance(self, tokens_E: Tensor) -> None:
        """Move each expert's bias by ``bias_update`` towards an even load (arXiv:2408.15664, algorithm 1).

        Args:
            tokens_E: tokens sent to each expert in the whole global batch.
        """
        load_E = tokens_E.to(torch.float64)
        self.bias_E += self.config.bias_update * torch.sign(load_E.mean() - load_E).to(self.bias_E.dtype)

    def _balance(self, count_BE: Tensor, probability_BSE: Tensor) -> Tensor:
        if self.config.scope is Scope.sequence:
            return balance_loss(count_BE, probability_BSE)
        together = balance_loss(count_BE.sum(dim=0, keepdim=True), probability_BSE.flatten(0, 1).unsqueeze(0))
        return together.expand(count_BE.shape[0])

    def _count(self, expert_BSK: Tensor) -> Tensor:
        # A comparison instead of bincount: no synchronisation with the host, deterministic on every device.
        expert_E = torch.arange(self.config.experts, device=expert_BSK.device)
        return (expert_BSK.flatten(1).unsqueeze(-1) == expert_E).sum(dim=1)


def balance_loss(count_BE: Tensor, probability_BSE: Tensor) -> Tensor:
    """Load-balancing loss of each sequence: E · sum over experts of f · P.

    f is the share of the sequence's routed rows that went to the expert, P the expert's mean probability over
    the sequence. It is 1 when both are even and grows towards E. Switch Transformer (arXiv:2101.03961,
    equations 4 to 6), with f divided by K so that it does not depend on the number of experts per token.
    """
    share_BE = count_BE / count_BE.sum(dim=-1, keepdim=True)
    experts = count_BE.shape[-1]
    return experts * (share_BE.to(probability_BSE.dtype) * probability_BSE.mean(dim=1)).sum(dim=-1)


def z_loss(logits_BSE: Tensor) -> Tensor:
    """Router z-loss of each sequence: the mean square of logsumexp (ST-MoE, arXiv:2202.08906, equation 5)."""
    return logits_BSE.logsumexp(dim=-1).square().mean(dim=-1)


def entropy(probability_BSE: Tensor) -> Tensor:
    """Mean entropy of the distributions of each sequence, from 0 (one expert) to log E (all alike)."""
    return torch.special.entr(probability_BSE).sum(dim=-1).mean(dim=-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
