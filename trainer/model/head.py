"""The language model's head: logits, or the cross-entropy without ever holding all logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.samples import IGNORED

ROWS = 1024  # tokens whose logits are held at a time


def cross_entropy(x_BSD: Tensor, weight_VD: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token, natural logarithm; logits are made and used ``ROWS`` tokens at a time.

    Computed in at least float32. Targets of ``IGNORED`` count nothing.

    Returns:
        Its sum over all targets, 0-dim, to be differentiated; and its sum over each sequence, [B], detached.
    """
    total, each_T = _CrossEntropy.apply(x_BSD.flatten(0, 1), weight_VD, targets_BS.flatten())  # type: ignore[misc]
    return total, each_T.view_as(targets_BS).sum(dim=1, dtype=torch.float64)


class _CrossEntropy(torch.autograd.Function):
    """The gradient of a sum is known up to a factor when the sum is: it is made in forward, chunk by chunk."""

    @staticmethod
    def forward(ctx, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        exact = torch.float32 if x_TD.dtype in (torch.bfloat16, torch.float16) else x_TD.dtype
        each_T = torch.empty(x_TD.shape[0], dtype=exact, device=x_TD.device)
        gradient_TD = torch.empty_like(x_TD) if wanted else None
        gradient_VD = torch.zeros_like(weight_VD, dtype=exact) if wanted else None
        for start in range(0, x_TD.shape[0], ROWS):
            x_CD, targets_C = x_TD[start : start + ROWS], targets_T[start : start + ROWS]
            logits_CV = F.linear(x_CD, weight_VD).to(exact)
            valid_C = targets_C != IGNORED
            index_C1 = targets_C.clamp(min=0).unsqueeze(1)
            log_sum_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            each_C = (log_sum_C1 - logits_CV.gather(1, index_C1)).squeeze(1)
            each_T[start : start + ROWS] = torch.where(valid_C, each_C, 0.0)
            if gradient_TD is not None and gradient_VD is not None:
                # softmax minus one-hot, in the memory of the logits.
                slope_CV = logits_CV.sub_(log_sum_C1).exp_()
                slope_CV.scatter_add_(1, index_C1, slope_CV.new_full(index_C1.shape, -1.0))
                slope_CV *= valid_C.unsqueeze(1)
                slope_CV = slope_CV.to(x_TD.dtype)
                gradient_TD[start : start + ROWS] = slope_CV @ weight_VD
                gradient_VD += slope_CV.T @ x_CD
        if wanted:
            ctx.save_for_backward(gradient_TD, gradient_VD)
            ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(each_T)
        return each_T.sum(), each_T

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient_TD, gradient_VD = ctx.saved_tensors
        scale = gradients[0]
        return gradient_TD * scale.to(gradient_TD.dtype), (gradient_VD * scale).to(ctx.weight_dtype), None
