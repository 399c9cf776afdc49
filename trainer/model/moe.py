"""A dropless mixture of experts: every token reaches all of its top-k experts, however uneven the load.

Tokens are sorted by expert, so that each expert multiplies one contiguous run of rows; all experts of a layer
are then one grouped matrix product, or a loop over experts, which is the reference it is tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ExpertsImplementation, MoEConfig


class Routing(NamedTuple):
    """What the router of one layer did in one pass.

    Both losses are kept per sequence, never averaged over the sequences that happen to share a pass: their
    weighted sum over a global batch is then the same for every micro-batch size and number of ranks.
    """

    tokens_E: Tensor  # int64: tokens sent to each expert, at most T each, T·K in all
    balance_B: Tensor  # load-balancing loss of each sequence, 1 when its load is even
    z_B: Tensor  # router z-loss of each sequence


class Router(nn.Module):
    """Chooses K of E experts for each token by the softmax over a linear score, computed in at least float32."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.score = nn.Linear(d_model, config.experts, bias=False)
        self.experts = config.experts
        self.top_k = config.top_k
        self.normalize_weights = config.normalize_weights

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """
        Returns:
            Routing weights of shape [B, S, K], the chosen experts [B, S, K] as int64, and the record of it.
        """
        logits_BSE = F.linear(_at_least_float32(x_BSD), _at_least_float32(self.score.weight))
        probability_BSE = logits_BSE.softmax(dim=-1)
        weight_BSK, expert_BSK = probability_BSE.topk(self.top_k, dim=-1)
        if self.normalize_weights:
            weight_BSK = weight_BSK / weight_BSK.sum(dim=-1, keepdim=True)
        count_BE = self._count(expert_BSK)
        routing = Routing(
            tokens_E=count_BE.sum(dim=0),
            balance_B=balance_loss(count_BE, probability_BSE),
            z_B=z_loss(logits_BSE),
        )
        return weight_BSK, expert_BSK, routing

    def _count(self, expert_BSK: Tensor) -> Tensor:
        # A comparison instead of bincount: no synchronisation with the host, deterministic on every device.
        expert_E = torch.arange(self.experts, device=expert_BSK.device)
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


class Experts(nn.Module):
    """E feed-forwards of the SwiGLU kind, their matrices stacked."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.gate_EDF = nn.Parameter(torch.empty(config.experts, d_model, config.d_ff))
        self.up_EDF = nn.Parameter(torch.empty(config.experts, d_model, config.d_ff))
        self.down_EFD = nn.Parameter(torch.empty(config.experts, config.d_ff, d_model))
        self.implementation = config.implementation

    def forward(self, x_RD: Tensor, tokens_E: Tensor) -> Tensor:
        """Send rows, sorted by expert, through their experts; expert e owns the next tokens_E[e] rows."""
        if self.implementation is ExpertsImplementation.grouped and self._can_group(x_RD):
            return self._grouped(x_RD, tokens_E)
        return self._loop(x_RD, tokens_E)

    def _can_group(self, x_RD: Tensor) -> bool:
        # The kernel takes no float64, and wants the rows of all its operands to start on 16 bytes.
        aligned = all(size * x_RD.element_size() % 16 == 0 for size in self.gate_EDF.shape[1:])
        return aligned and x_RD.dtype in (torch.float32, torch.bfloat16, torch.float16)

    def _grouped(self, x_RD: Tensor, tokens_E: Tensor) -> Tensor:
        end_E = tokens_E.cumsum(dim=0).to(torch.int32)
        gate_RF = F.grouped_mm(x_RD, self.gate_EDF, offs=end_E)
        up_RF = F.grouped_mm(x_RD, self.up_EDF, offs=end_E)
        return F.grouped_mm(F.silu(gate_RF) * up_RF, self.down_EFD, offs=end_E)

    def _loop(self, x_RD: Tensor, tokens_E: Tensor) -> Tensor:
        # unbind, because the gradient of an indexed matrix is a zero-filled copy of all of them.
        weights = zip(self.gate_EDF.unbind(), self.up_EDF.unbind(), self.down_EFD.unbind(), strict=True)
        rows = x_RD.split(tokens_E.tolist())
        return torch.cat(
            [
                (F.silu(x_ND @ gate_DF) * (x_ND @ up_DF)) @ down_FD
                for x_ND, (gate_DF, up_DF, down_FD) in zip(rows, weights, strict=True)
            ]
        )


class MoE(nn.Module):
    """Router and experts in place of a dense feed-forward."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.router = Router(d_model, config)
        self.experts = Experts(d_model, config)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Routing]:
        weight_BSK, expert_BSK, routing = self.router(x_BSD)
        weight_TK, expert_TK = weight_BSK.flatten(0, 1), expert_BSK.flatten(0, 1)
        top_k = expert_TK.shape[1]

        # Sorted row r is routed row order[r], which belongs to token order[r] // K. Stable, so that the rows of
        # an expert keep the order of their tokens on every device.
        order_R = expert_TK.flatten().argsort(stable=True)
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)

        x_RD = _Gather.apply(x_BSD.flatten(0, 1), order_R, place_R, top_k)
        y_RD = self.experts(x_RD, routing.tokens_E)
        y_TKD = _Gather.apply(y_RD, place_R, order_R, 1).unflatten(0, (-1, top_k))
        y_TD = (y_TKD * weight_TK.unsqueeze(-1)).sum(dim=1).to(x_BSD.dtype)
        return y_TD.view_as(x_BSD), routing


class _Gather(torch.autograd.Function):
    """x[index // copies] for a permutation ``index`` of the rows of x, each counted ``copies`` times.

    The gradient gathers too, through the inverse permutation: what autograd derives from indexing is a serial
    index_put on CPUs and is not deterministic on GPUs.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, index_R: Tensor, inverse_R: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.copies = copies
        return x_ND[index_R // copies] if copies > 1 else x_ND[index_R]

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_R,) = ctx.saved_tensors
        gradient_RD = gradients[0][inverse_R]
        if ctx.copies > 1:
            gradient_RD = gradient_RD.unflatten(0, (-1, ctx.copies)).sum(dim=1)
        return gradient_RD, None, None, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
