"""The language model's head: logits, or the cross-entropy without ever holding all logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.model.products import multiply
from trainer.samples import IGNORED

ROWS = 512  # tokens whose logits are held at a time on CPUs, where they should stay in a cache
ROWS_ON_GPU = 4096


def cross_entropy(
    x_BSD: Tensor, weight_VD: Tensor, targets_BS: Tensor, *, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token, natural logarithm; logits are made and used ``ROWS`` tokens at a time.

    Computed in at least float32. Targets of ``IGNORED`` count nothing.

    Args:
        compiled: leave the passes over the logits to the compiler, where they cost more than the products allow.

    Returns:
        Its sum over all targets, 0-dim, to be differentiated; and its sum over each sequence, [B], detached.
    """
    slopes = _compiled() if compiled and x_BSD.device.type == "cuda" else _slopes
    total, each_T = _CrossEntropy.apply(  # type: ignore[misc]
        x_BSD.flatten(0, 1), weight_VD, targets_BS.flatten(), slopes, torch.is_grad_enabled()
    )
    return total, each_T.view_as(targets_BS).sum(dim=1, dtype=torch.float64)


Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _CrossEntropy(torch.autograd.Function):
    """The gradient of a sum is known up to a factor when the sum is: it is made in forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, slopes: Slopes, learning: bool
    ) -> tuple[Tensor, Tensor]:
        # A parameter needs its gradient also where none is recorded, as in an evaluation.
        wanted = learning and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        exact = _exact(x_TD)
        each_T = torch.empty(x_TD.shape[0], dtype=exact, device=x_TD.device)
        gradient_TD = torch.empty_like(x_TD) if wanted else None
        # Lies transposed: of its product's two operands, the smaller is then the one to be copied.
        gradient_DV: Tensor | None = None
        rows = ROWS if x_TD.device.type == "cpu" else ROWS_ON_GPU
        for start in range(0, x_TD.shape[0], rows):
            part = slice(start, start + rows)
            each_T[part], slope_CV = slopes(multiply(x_TD[part], weight_VD.mT), targets_T[part])
            if gradient_TD is not None:
                gradient_TD[part] = multiply(slope_CV, weight_VD)
                part_DV = multiply(x_TD[part].mT, slope_CV)
                gradient_DV = part_DV.to(exact) if gradient_DV is None else gradient_DV.add_(part_DV)
        if gradient_DV is not None:
            ctx.save_for_backward(gradient_TD, gradient_DV.mT)
            ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(each_T)
        return each_T.sum(), each_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gradient_TD, gradient_VD = ctx.saved_tensors
        scale = gradients[0]
        return gradient_TD * scale.to(gradient_TD.dtype), (gradient_VD * scale).to(ctx.weight_dtype), None, None, None


def _slopes(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row and its gradient, softmax minus one-hot, in the type of the logits."""
    valid_C = targets_C != IGNORED
    index_C1 = targets_C.clamp(min=0).unsqueeze(1)
    given = logits_CV.dtype
    logits_CV = logits_CV.to(_exact(logits_CV))
    slope_CV = logits_CV.softmax(dim=1)
    # The largest probability is 1 / sum of exp(logit - largest), so this is logsumexp without another exponential.
    log_sum_C = logits_CV.amax(dim=1) - slope_CV.amax(dim=1).log()
    each_C = torch.where(valid_C, log_sum_C - logits_CV.gather(1, index_C1).squeeze(1), 0.0)
    if torch.compiler.is_compiling():  # fused into the pass before
        slope_CV = slope_CV - (torch.arange(slope_CV.shape[1], device=slope_CV.device) == index_C1).to(slope_CV.dtype)
    else:
        slope_CV.scatter_add_(1, index_C1, slope_CV.new_full(index_C1.shape, -1.0))
    if slope_CV.device.type == "cpu":
        slope_CV[~valid_C] = 0.0  # rows to be cleared are few; finding them would make a GPU wait
    else:
        slope_CV.mul_(valid_C.unsqueeze(1))
    return each_C, slope_CV.to(given)


@functools.cache
def _compiled() -> Slopes:
    return torch.compile(_slopes)


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
