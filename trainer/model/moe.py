"""A mixture of experts in place of a dense feed-forward: router, dispatch, experts, and the weighted sum."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.config import ModelConfig, Selection
from trainer.model.context import PLACES, SELECTION, Context, uniform
from trainer.model.dispatch import Dispatch, Gather, dropless, limited
from trainer.model.experts import Experts
from trainer.model.feedforward import FeedForward
from trainer.model.router import Router, Routing


class MoE(nn.Module):
    """y = sum over a token's experts of weight · expert(x), plus shared(x) where there are shared experts."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        self.router = Router(config.d_model, moe)
        self.experts = Experts(config)
        self.shared = FeedForward(config, moe.shared_experts * moe.d_ff) if moe.shared_experts else None
        self.config = moe
        self.number = number

    def forward(self, x_BSD: Tensor, context: Context) -> tuple[Tensor, Routing]:
        weight_BSK, expert_BSK, routing = self.router(x_BSD)
        top_k = self.config.top_k
        dispatch = self._dispatch(expert_BSK, routing, context)
        holes = dispatch.rows_E is None
        if holes:
            routing = routing._replace(dropped=(dispatch.slot_N < 0).sum())
        x_RD = Gather.apply(x_BSD.flatten(0, 1), dispatch.row_R, dispatch.slot_N, top_k, holes)
        y_RD = self.experts(x_RD, dispatch.rows_E)
        y_ND = Gather.apply(y_RD, dispatch.slot_N, dispatch.row_R, 1, holes)
        weight_TK = weight_BSK.flatten(0, 1)
        y_TD = (y_ND.unflatten(0, (-1, top_k)) * weight_TK.unsqueeze(-1)).sum(dim=1).to(x_BSD.dtype)
        y_BSD = y_TD.view_as(x_BSD)
        return (y_BSD if self.shared is None else y_BSD + self.shared(x_BSD)), routing

    def _dispatch(self, expert_BSK: Tensor, routing: Routing, context: Context) -> Dispatch:
        if self.config.capacity_factor is None:
            return dropless(expert_BSK.flatten(0, 1), routing.tokens_E)
        draw_BS = None
        if self.config.selection is Selection.random and context.key_B is not None:
            draw_BS = uniform(context.key_B, self.number * PLACES + SELECTION, (expert_BSK.shape[1],))
        return limited(expert_BSK, self.config, training=self.training, draw_BS=draw_BS)
