"""Text from a model: sampling token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.parallel import Engine


def generate(
    engine: Engine,
    prompt: Sequence[int],
    *,
    tokens: int,
    max_seq_len: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Continue a prompt by ``tokens`` ids; a pure function of the parameters, the prompt and the seed.

    Collective: every rank passes the same arguments and computes the same, since the model is spread over them.

    Args:
        max_seq_len: of the model; of a longer text, only the end is looked at.
        temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.

    Returns:
        Prompt and continuation.

    Raises:
        ValueError: for an empty prompt.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens")
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(tokens):
        tokens_BS = torch.tensor([ids[-max_seq_len:]], device=engine.device)
        ids.append(_choose(engine.logits(tokens_BS)[0, -1].float().cpu(), temperature, generator))
    return ids


def _choose(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(dim=-1), 1, generator=generator))
