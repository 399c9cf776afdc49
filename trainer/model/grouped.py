"""The product of each expert's rows with its matrix on CPUs: a loop over experts behind one operator.

As an operator it is opaque to the compiler, which would otherwise start anew for each distribution of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.model.products import multiply, rows_of, takes_onednn


@torch.library.custom_op("trainer::grouped", mutates_args=())
def grouped(x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None) -> Tensor:
    """Expert e multiplies the next rows_E[e] rows, or the same number as every other (None)."""
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_EIO.shape[2])
    _multiply(x_RI, weight_EIO, rows_E, y_RO)
    return y_RO


@grouped.register_fake
def _(x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None) -> Tensor:
    return x_RI.new_empty(x_RI.shape[0], weight_EIO.shape[2])


@torch.library.custom_op("trainer::grouped_backward", mutates_args=())
def _backward(gradient_RO: Tensor, x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None) -> tuple[Tensor, Tensor]:
    gradient_RO = gradient_RO.contiguous()
    slope_RI, slope_EIO = torch.empty_like(x_RI), torch.empty_like(weight_EIO)
    _multiply(gradient_RO, weight_EIO.mT, rows_E, slope_RI)
    for expert, (begin, end) in enumerate(_stretches(x_RI, weight_EIO, rows_E)):
        _correlate(x_RI, gradient_RO, begin, end, slope_EIO[expert])
    return slope_RI, slope_EIO


@_backward.register_fake
def _(gradient_RO: Tensor, x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_RI), torch.empty_like(weight_EIO)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward(gradient_RO, *ctx.saved_tensors), None


grouped.register_autograd(_gradients, setup_context=_save)


def _stretches(x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each expert."""
    experts = weight_EIO.shape[0]
    counts = [x_RI.shape[0] // experts] * experts if rows_E is None else rows_E.tolist()
    begin = 0
    for count in counts:
        yield begin, begin + count
        begin += count


def _multiply(x_RI: Tensor, weight_EIO: Tensor, rows_E: Tensor | None, y_RO: Tensor) -> None:
    for (begin, end), weight_IO in zip(_stretches(x_RI, weight_EIO, rows_E), weight_EIO.unbind(), strict=True):
        first, last = _window(x_RI, weight_IO, begin, end)
        if (first, last) == (begin, end) and not takes_onednn(x_RI[begin:end], weight_IO):
            torch.mm(x_RI[begin:end], weight_IO, out=y_RO[begin:end])
        else:
            # Rows of the neighbours are multiplied for nothing, so that few shapes occur.
            y_RO[begin:end] = multiply(x_RI[first:last], weight_IO)[begin - first : end - first]


def _correlate(x_RI: Tensor, gradient_RO: Tensor, begin: int, end: int, slope_IO: Tensor) -> None:
    """slope = x' · gradient over an expert's rows; of the neighbours' rows in the window x counts as zero."""
    first, last = _window(x_RI, slope_IO, begin, end)
    if (first, last) == (begin, end):
        slope_IO.copy_(multiply(x_RI[begin:end].mT, gradient_RO[begin:end]))
        return
    inner, outer = slope_IO.shape
    if inner <= outer:
        slope_IO.copy_(multiply(_apart(x_RI, begin, end, first, last), gradient_RO[first:last]))
    else:
        slope_IO.copy_(multiply(_apart(gradient_RO, begin, end, first, last), x_RI[first:last]).mT)


def _apart(x_RI: Tensor, begin: int, end: int, first: int, last: int) -> Tensor:
    """Rows first to last, transposed, zero outside of begin to end."""
    part_IR = x_RI.new_empty(x_RI.shape[1], last - first)
    part_IR[:, : begin - first] = 0
    part_IR[:, end - first :] = 0
    part_IR[:, begin - first : end - first] = x_RI[begin:end].mT
    return part_IR


def _window(x_RI: Tensor, weight_IO: Tensor, begin: int, end: int) -> tuple[int, int]:
    """Rows to multiply for the sake of begin to end: as many as there is a kernel for, where there are so many."""
    rows = rows_of(x_RI, weight_IO, end - begin)
    if rows > x_RI.shape[0]:
        return begin, end
    first = min(begin, x_RI.shape[0] - rows)
    return first, first + rows
