"""What one rank computes in one pass: some sequences, on its device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.rng import sample_keys
from trainer.samples import Samples


class Batch(NamedTuple):
    """Sequences on a rank's device, as ``Decoder.forward`` takes them."""

    tokens_BS: Tensor
    targets_BS: Tensor
    documents_BS: Tensor | None
    key_B: Tensor | None

    @staticmethod
    def of(samples: Samples, device: torch.device, key_B: Tensor | None = None) -> Batch:
        documents = samples.documents
        return Batch(
            tokens_BS=_moved(samples.tokens, device),
            targets_BS=_moved(samples.targets, device),
            documents_BS=None if documents is None else _moved(documents, device),
            key_B=None if key_B is None else key_B.to(device),
        )


def keys(seed: int, step: int, samples: range) -> Tensor:
    """Where the random draws of each sample in a step begin, as ``Batch.key_B``."""
    return torch.from_numpy(sample_keys(seed, step, np.arange(samples.start, samples.stop)))


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    # From pinned memory the copy runs beside the computation.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
