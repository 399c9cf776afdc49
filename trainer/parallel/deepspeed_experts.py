"""Experts spread over ranks, told to DeepSpeed by the marks of its own mixture of experts.

With these it reduces and shards the parameters of experts over the ranks that hold the same ones. Its layer with its
gate, which decides capacity and balance loss per rank, is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

from trainer.model import Decoder
from trainer.model.experts import Experts
from trainer.parallel.exchange import Exchange

SIGN = "holds_experts"


class Spread:
    """How a layer's experts lie on the ranks: ``shared`` neighbouring ranks have a stretch of them each.

    Collective. With one rank to share, experts are parameters like others.
    """

    def __init__(self, shared: int) -> None:
        self.shared = shared
        self._rank = 0
        if shared > 1:
            from deepspeed.utils import groups

            groups._create_expert_and_data_parallel(shared)
            self._name = f"ep_size_{shared}"
            self._group = groups._get_expert_parallel_group(self._name)
            self._rank = dist.get_rank(self._group)

    def share_out(self, decoder: Decoder) -> None:
        """Leave this rank its experts only, in a decoder on the meta device, and let rows travel."""
        if self.shared == 1:
            return
        for experts in _experts(decoder):
            for name, whole in list(experts.named_parameters(recurse=False)):
                own = whole.new_empty(whole.shape[0] // self.shared, *whole.shape[1:])
                setattr(experts, name, nn.Parameter(own))
            exchange = Exchange(experts.forward, experts.up_EDF.shape[0], self._group)
            experts.forward = exchange.__call__  # pyright: ignore[reportAttributeAccessIssue]

    @contextlib.contextmanager
    def told(self, decoder: Decoder) -> Iterator[None]:
        """In which DeepSpeed sees that there are experts: it looks for marks on parameters, and a module of its own."""
        from deepspeed.moe.layer import MoE

        class Sign(MoE):
            def __init__(self, experts: int) -> None:
                nn.Module.__init__(self)
                self.num_experts = experts

            def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
                pass

        moe = decoder.config.moe
        if self.shared == 1 or moe is None:
            yield
            return
        for parameter in (p for experts in _experts(decoder) for p in experts.parameters()):
            marked: Any = parameter
            marked.allreduce, marked.group_name = False, self._name
        decoder.add_module(SIGN, Sign(moe.experts))
        yield
        delattr(decoder, SIGN)

    def split(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer's groups, with experts in groups of their own."""
        if self.shared > 1:
            from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

            groups = split_params_into_different_moe_groups_for_optimizer(groups)
        return [group for group in groups if group["params"]]

    def start(self, parameter: nn.Parameter) -> int:
        """First element that this rank has of a parameter, counted in that of the whole model."""
        return self._rank * parameter.numel() if self._spread(parameter) else 0

    def copies(self, parameter: nn.Parameter) -> int:
        """Ranks that hold the same of a parameter, were nothing sharded."""
        return dist.get_world_size() // (self.shared if self._spread(parameter) else 1)

    def _spread(self, parameter: nn.Parameter) -> bool:
        return not getattr(parameter, "allreduce", True)


def _experts(decoder: Decoder) -> list[Experts]:
    return [module for module in decoder.modules() if isinstance(module, Experts)]
