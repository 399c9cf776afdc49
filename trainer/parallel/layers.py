"""What is done to each layer whatever lays it over ranks: activation checkpointing and compiling.

Both replace a layer's ``forward`` and leave the module as it is, so names, types and hooks stay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from trainer.config import ActivationCheckpointing, ParallelConfig
from trainer.model import Decoder
from trainer.model.context import Context
from trainer.model.decoder import Layer

Forward = Callable[[Tensor, Context], Any]


def prepare(decoder: Decoder, parallel: ParallelConfig) -> None:
    """Make each layer compute as ``parallel`` says. To be called before layers are sharded."""
    decoder.compiled = parallel.compile
    recompute = parallel.activation_checkpointing
    if parallel.compile:
        # Layers that draw differ in their number. Left a constant, each would be compiled by itself, up to a limit.
        torch._dynamo.config.allow_unspec_int_on_nn_module = True  # pyright: ignore[reportAttributeAccessIssue]
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        forward: Forward = layer.forward
        # Where rows travel, the host reads how many, which ends a compiled graph; a recomputed one has to be whole.
        split = False
        if layer.moe is not None and parallel.expert_parallel > 1:
            split = True
            experts = layer.moe.experts
            experts.forward = torch.compiler.disable(experts.forward)  # pyright: ignore[reportAttributeAccessIssue]
        if parallel.compile and split:
            forward = torch.compile(forward)
        if recompute is not ActivationCheckpointing.none:
            forward = recomputed(forward, selective=recompute is ActivationCheckpointing.selective)
        if parallel.compile and not split:
            forward = torch.compile(forward)
        layer.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def recomputed(forward: Forward, *, selective: bool) -> Forward:
    """``forward``, whose intermediate results are computed again in backward.

    Args:
        selective: keep those of matrix products, attention and exchanges between ranks.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    # Draws are functions of the sample: no generator's state has to be put back.
    options["preserve_rng_state"] = False
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def run(x_BSD: Tensor, context: Context) -> Any:
        if not torch.is_grad_enabled():
            return forward(x_BSD, context)
        return checkpoint(forward, x_BSD, context, **options)

    return run


_KEPT = frozenset(
    (
        *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
        *("trainer::product", "trainer::grouped", "trainer::attend"),
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_attention_math",
        *("flex_attention", "_c10d_functional::all_to_all_single"),
    )
)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = op.name() if callable(getattr(op, "name", None)) else str(op)
    kept = name.partition(".")[0] in _KEPT or name.startswith("trainer::")  # our own operators are products too
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
