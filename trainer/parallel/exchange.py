"""Expert parallelism: rows travel to the ranks that own their experts, and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.model.dispatch import Gather

Experts = Callable[[Tensor, Tensor | None], Tensor]


class Exchange:
    """Stands in for the ``forward`` of a layer's experts, of which each rank of a group owns an equal stretch.

    Rank r of the group owns experts r·L ... (r+1)·L - 1. All ranks of the group call it together. Where experts
    have a capacity, all bring the same number of rows; otherwise they tell each other how many they bring, and
    the host waits for these numbers.

    Suffixes beyond those of the model: P ranks of the group, L experts of one rank, M rows that meet on a rank.

    Args:
        experts: the computation, with the experts of this rank only.
        own: L.
    """

    def __init__(self, experts: Experts, own: int, group: dist.ProcessGroup) -> None:
        self.experts = experts
        self.own = own
        self.ranks = dist.get_world_size(group)
        self.group = group.group_name

    def __call__(self, x_RD: Tensor, rows_E: Tensor | None) -> Tensor:
        return self._limited(x_RD) if rows_E is None else self._dropless(x_RD, rows_E)

    def _limited(self, x_RD: Tensor) -> Tensor:
        even = [x_RD.shape[0] // self.ranks] * self.ranks
        x_MD = _Swap.apply(x_RD, even, even, self.group)
        x_MD = x_MD.unflatten(0, (self.ranks, self.own, -1)).transpose(0, 1).flatten(0, 2)
        y_MD = self.experts(x_MD, None)
        y_MD = y_MD.unflatten(0, (self.own, self.ranks, -1)).transpose(0, 1).flatten(0, 2)
        return _Swap.apply(y_MD, even, even, self.group)

    def _dropless(self, x_RD: Tensor, rows_E: Tensor) -> Tensor:
        rows_PL = rows_E.view(self.ranks, self.own)
        even = [1] * self.ranks
        received_PL = _swap(rows_PL, even, even, self.group)
        sent, received = torch.stack((rows_PL.sum(dim=1), received_PL.sum(dim=1))).tolist()
        x_MD = _Swap.apply(x_RD, received, sent, self.group)
        # Rows arrive by rank and, within a rank, by expert. An expert wants all of its rows together.
        expert_N = torch.arange(self.own, device=x_RD.device).repeat(self.ranks)
        expert_M = expert_N.repeat_interleave(received_PL.flatten(), output_size=sum(received))
        row_M = expert_M.argsort(stable=True)
        slot_M = torch.empty_like(row_M)
        slot_M[row_M] = torch.arange(row_M.numel(), device=row_M.device)
        x_MD = Gather.apply(x_MD, row_M, slot_M, 1, False)
        y_MD = self.experts(x_MD, received_PL.sum(dim=0))
        y_MD = Gather.apply(y_MD, slot_M, row_M, 1, False)
        return _Swap.apply(y_MD, sent, received, self.group)


class _Swap(torch.autograd.Function):
    """``_swap``; gradients travel back the way their rows came."""

    @staticmethod
    def forward(ctx, x_RD: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
        ctx.way_back = sent, received, group
        return _swap(x_RD, received, sent, group)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _swap(gradients[0], *ctx.way_back), None, None, None


def _swap(x: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
    """Send the next ``sent[r]`` rows to each rank r of the group; what all ranks sent to this one, rank by rank."""
    # The functional form, of which selective recomputation can keep the result.
    result = torch.ops._c10d_functional.all_to_all_single(x.contiguous(), received, sent, group)
    return torch.ops._c10d_functional.wait_tensor(result)
