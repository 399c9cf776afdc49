"""Products of matrices on CPUs, by the library that is fastest for the processor.

torch hands float32 products to MKL. On processors not made by Intel MKL leaves AVX-512 unused and reaches half of
what they can do; oneDNN, which torch brings too, uses it on all of them. bfloat16 goes to oneDNN anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1 << 21  # multiplications below which the longer way to oneDNN is not worth it
ROWS = 64  # oneDNN compiles a kernel for every new shape: where rows vary, they are rounded up to multiples of this


def _prefers_onednn() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and cpuinfo.exists()
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return known and avx512 and "GenuineIntel" not in cpuinfo.read_text()


ONEDNN = _prefers_onednn()


def multiply(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b of two matrices with any strides; not differentiable by itself."""
    if takes_onednn(a_MK, b_KN):
        # Its second operand is [N, K]. Strides that are not those of a matrix or its transpose take it to a reference
        # implementation, a hundred times slower; the first operand it copies by itself.
        b_NK = b_KN.mT
        if not (b_KN.is_contiguous() or b_NK.is_contiguous()):
            b_NK = b_NK.contiguous()
        return torch.ops.mkldnn._linear_pointwise.default(a_MK, b_NK, None, "none", [], "")
    return a_MK @ b_KN


def takes_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether a @ b, a flattened to a matrix, goes to oneDNN by hand."""
    plain = ONEDNN and a.dtype is torch.float32 and b.dtype is torch.float32 and a.device.type == "cpu"
    return plain and a.numel() * b.shape[-1] >= SMALLEST


def rows_of(x_RI: Tensor, weight_IO: Tensor, rows: int) -> int:
    """How many rows of x are best multiplied for the sake of ``rows`` of them."""
    inner, outer = weight_IO.shape
    by_onednn = x_RI.dtype in (torch.bfloat16, torch.float16) or (ONEDNN and x_RI.dtype is torch.float32)
    if not by_onednn or rows * inner * outer < SMALLEST:
        return rows
    return -(-rows // ROWS) * ROWS


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """As ``torch.nn.functional.linear``."""
    if not takes_onednn(x, weight_OI.mT):
        return F.linear(x, weight_OI, bias_O)
    y = _product(x.reshape(-1, x.shape[-1]), weight_OI.mT).view(*x.shape[:-1], -1)
    return y if bias_O is None else y + bias_O


@torch.library.custom_op("trainer::product", mutates_args=())
def _product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    # An operator of its own, so that the compiler neither looks into it nor copies its operands.
    return multiply(a_MK, b_KN)


@_product.register_fake
def _(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    return a_MK.new_empty(a_MK.shape[0], b_KN.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient_MN: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a_MK, b_KN = ctx.saved_tensors
    wanted_a, wanted_b = ctx.needs_input_grad
    # The second as the transpose of a contiguous matrix, since b is that of a weight.
    return (
        _product(gradient_MN, b_KN.mT) if wanted_a else None,
        # Laid out here, where the compiler fuses it into what made the gradient; oneDNN would copy it in one thread.
        _product(gradient_MN.mT.contiguous(), a_MK).mT if wanted_b else None,
    )


_product.register_autograd(_gradients, setup_context=_save)
