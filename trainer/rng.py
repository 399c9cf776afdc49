"""Random numbers: keys that draws follow from, and the state of a rank's global generators for a checkpoint."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch

from trainer.scramble import scrambled


def get_state(device: torch.device) -> dict[str, Any]:
    """States of Python's, numpy's and torch's global generators, and of the rank's GPU if it has one."""
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_state(state: dict[str, Any], device: torch.device) -> None:
    """The reverse of ``get_state``. A GPU's state from a run without GPUs stays as it is."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed(*key: int) -> None:
    """Seed all global generators from a key, such as (seed, rank): other keys give unrelated streams."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "little"))
    torch.manual_seed(int.from_bytes(digest, "little", signed=True))


def sample_keys(seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """One key for each sample of a step: what is drawn for a sequence follows from (seed, step, sample) alone.

    Args:
        samples: int64 [n], indices of samples.

    Returns:
        int64 [n].
    """
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    base = np.frombuffer(digest, dtype=np.uint64)
    return scrambled(base + scrambled(np.asarray(samples, dtype=np.int64).view(np.uint64))).view(np.int64)
