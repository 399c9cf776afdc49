"""The experts of an MoE layer, their matrices stacked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import Activation, ModelConfig
from trainer.model import kernels


class Experts(nn.Module):
    """E feed-forwards; with the activation and the biases of the model's dense ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        inner, outer = (moe.experts, config.d_model, moe.d_ff), (moe.experts, moe.d_ff, config.d_model)
        gated = config.activation is Activation.swiglu
        self.gate_EDF = nn.Parameter(torch.empty(inner)) if gated else None
        self.up_EDF = nn.Parameter(torch.empty(inner))
        self.down_EFD = nn.Parameter(torch.empty(outer))
        self.gate_bias_EF = nn.Parameter(torch.empty(moe.experts, moe.d_ff)) if gated and config.bias else None
        self.up_bias_EF = nn.Parameter(torch.empty(moe.experts, moe.d_ff)) if config.bias else None
        self.down_bias_ED = nn.Parameter(torch.empty(moe.experts, config.d_model)) if config.bias else None
        self.implementation = moe.implementation

    def forward(self, x_RD: Tensor, rows_E: Tensor | None) -> Tensor:
        """Send rows through their experts: expert e owns the next rows_E[e] rows, or all the same number (None)."""
        up_RF = self._product(x_RD, self.up_EDF, self.up_bias_EF, rows_E)
        if self.gate_EDF is None:
            hidden_RF = F.gelu(up_RF, approximate="tanh")
        else:
            hidden_RF = F.silu(self._product(x_RD, self.gate_EDF, self.gate_bias_EF, rows_E)) * up_RF
        return self._product(hidden_RF, self.down_EFD, self.down_bias_ED, rows_E)

    def _product(self, x_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, rows_E: Tensor | None) -> Tensor:
        y_RO = kernels.grouped(x_RI, weight_EIO.to(x_RI.dtype), rows_E, self.implementation)
        if bias_EO is None:
            return y_RO
        bias_EO = bias_EO.to(x_RI.dtype)
        if rows_E is None:
            return (y_RO.unflatten(0, (bias_EO.shape[0], -1)) + bias_EO.unsqueeze(1)).flatten(0, 1)
        return y_RO + _owner(rows_E, x_RI) @ bias_EO


def _owner(rows_E: Tensor, x_RI: Tensor) -> Tensor:
    """One-hot [R, E] of each row's expert: as a factor it adds biases, and sums their gradients in a fixed order."""
    row_R1 = torch.arange(x_RI.shape[0], device=x_RI.device).unsqueeze(1)
    end_E = rows_E.cumsum(dim=0)
    return ((row_R1 < end_E) & (row_R1 >= end_E - rows_E)).to(x_RI.dtype)
