"""Which kernel computes what: the one place where shape, type and device decide.

| | GPU | CPU |
|---|---|---|
| products | torch | oneDNN or torch's default, ``trainer.model.products`` |
| experts, rows vary | grouped_mm; a loop where it cannot | a loop behind one operator, ``trainer.model.grouped`` |
| experts, capacity | bmm | the same loop, bmm where products are small |
| causal attention | SDPA: FlashAttention | ``trainer.model.tiled``, SDPA for short sequences and many threads |

All of them agree with the plain formulas; float64, the reference, takes torch's own products everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import ExpertsImplementation
from trainer.model import products, tiled
from trainer.model.grouped import grouped as grouped_on_cpu

linear = products.linear


def grouped(x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None, implementation: ExpertsImplementation) -> Tensor:
    """Expert e multiplies the next rows_E[e] rows with its matrix, or the same number as every other (None)."""
    experts = weight_EIO.shape[0]
    on_cpu = x_RI.device.type == "cpu"
    if rows_E is None:
        x_ENI = x_RI.unflatten(0, (experts, -1))
        if on_cpu and products.takes_onednn(x_ENI[0], weight_EIO):
            return grouped_on_cpu(x_RI, weight_EIO, None)
        return torch.bmm(x_ENI, weight_EIO).flatten(0, 1)
    if implementation is ExpertsImplementation.loop:
        # unbind, because the gradient of an indexed matrix is a zero-filled copy of all of them.
        rows = x_RI.split(rows_E.tolist())
        return torch.cat([x_NI @ weight_IO for x_NI, weight_IO in zip(rows, weight_EIO.unbind(), strict=True)])
    if on_cpu or not _can_group(x_RI, weight_EIO):
        return grouped_on_cpu(x_RI, weight_EIO, rows_E)
    return F.grouped_mm(x_RI, weight_EIO, offs=rows_E.cumsum(dim=0).to(torch.int32))


def causal_attention(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    """softmax(query · key / sqrt(C)) · value over the positions up to the query's own."""
    if tiled.suits(query_BHSC):
        return tiled.causal_attention(query_BHSC, key_BGSC, value_BGSC)
    shared = query_BHSC.shape[1] != key_BGSC.shape[1]
    return F.scaled_dot_product_attention(query_BHSC, key_BGSC, value_BGSC, is_causal=True, enable_gqa=shared)


def _can_group(x_RI: Tensor, weight_EIO: Tensor) -> bool:
    # The kernel takes no float64, wants the rows of all operands to start on 16 bytes, and the compiler knows it in
    # bfloat16 only.
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EIO.shape[1:])
    known = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.float32, torch.bfloat16, torch.float16)
    return aligned and x_RI.dtype in known
