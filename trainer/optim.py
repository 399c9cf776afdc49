"""AdamW over two groups of parameters, and the learning rate as a function of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainer.config import OptimConfig, TrainConfig


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) that decays matrices and spares vectors, its state allocated at once.

    State that is there from the start can be loaded into in place before the first step.
    """
    decayed, spared = [], []
    for _, parameter in parameters:
        (decayed if parameter.ndim >= 2 else spared).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for parameter in (*decayed, *spared):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def learning_rate(tokens: int, optim: OptimConfig, train: TrainConfig) -> float:
    """The rate of the step that ends at ``tokens`` consumed: linear warm-up, then a cosine to ``min_lr``.

    The cosine (arXiv:1608.03983, without restarts) begins where the warm-up ends and reaches ``min_lr`` at
    ``decay_tokens``, by default the end of the run, and stays there.
    """
    if tokens < optim.warmup_tokens:
        return optim.lr * tokens / optim.warmup_tokens
    end = train.tokens if optim.decay_tokens is None else optim.decay_tokens
    span = end - optim.warmup_tokens
    share = 1.0 if span <= 0 else min(1.0, (tokens - optim.warmup_tokens) / span)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))
