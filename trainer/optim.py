"""AdamW over two groups of parameters, and the learning rate as a function of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.config import Decayed, OptimConfig, Schedule, TrainConfig


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) that decays what ``optim.decayed`` says, its state allocated at once.

    State that is there from the start can be loaded into in place before the first step.
    """
    decayed, spared = [], []
    for name, parameter in parameters:
        (decayed if is_decayed(name, parameter, config) else spared).append(parameter)
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
        optimizer.state[parameter] = first_state(parameter)
    return optimizer


def first_state(parameter: Tensor) -> dict[str, Tensor]:
    """What AdamW remembers of a parameter, before the first step."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }


def is_decayed(name: str, parameter: Tensor, config: OptimConfig) -> bool:
    """Whether weight decay pulls on a parameter of the decoder. Stacked biases of experts are no matrices."""
    return config.decayed is Decayed.all or (parameter.ndim >= 2 and "bias" not in name.rpartition(".")[2])


def learning_rate(tokens: int, optim: OptimConfig, train: TrainConfig) -> float:
    """The rate of the step that ends at ``tokens`` consumed: linear warm-up, then the schedule to ``min_lr``.

    The decay begins where the warm-up ends (for ``wsd``: at ``stable_until`` of its end), reaches ``min_lr`` at
    ``decay_tokens``, by default the end of the run, and stays there. Cosine: arXiv:1608.03983, without restarts;
    warm-up, stable, decay: arXiv:2404.06395, section 4.
    """
    warmup = optim.warmup_tokens if optim.warmup_steps is None else optim.warmup_steps * train.batch_tokens
    if tokens < warmup:
        return optim.lr * tokens / warmup
    end = train.tokens if optim.decay_tokens is None else optim.decay_tokens
    if optim.decay_steps is not None:
        end = optim.decay_steps * train.batch_tokens
    begin = max(warmup, optim.stable_until * end) if optim.schedule is Schedule.wsd else warmup
    share = 1.0 if end <= begin else min(1.0, max(0.0, (tokens - begin) / (end - begin)))
    match optim.schedule:
        case Schedule.cosine:
            left = 0.5 * (1.0 + math.cos(math.pi * share))
        case Schedule.linear | Schedule.wsd:
            left = 1.0 - share
        case Schedule.constant:
            left = 1.0
    return optim.min_lr + (optim.lr - optim.min_lr) * left
