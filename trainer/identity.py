"""What makes a checkpoint one of a run."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Any

from trainer.config import Positions, TrainerConfig
from trainer.step import Dataset


def identity(config: TrainerConfig, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint and a run must have in common. Values that may change during a run are left out."""
    model = asdict(config.model, dict_factory=_plain)
    free = ["init_std", "init_truncate", "init_attention_output_std", "init_down_std", "dropout", "attention_dropout"]
    if config.model.positions is Positions.rotary:
        free.append("max_seq_len")
    for name in free:
        del model[name]
    if config.model.moe is not None:
        for name in _FREE_OF_MOE:
            del model["moe"][name]
    return {
        "model": model,
        "data": {"seq_len": config.data.seq_len, "fingerprint": dataset.fingerprint},
        "seed": config.train.seed,
    }


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in items}


# What may change in a run's MoE layers.
_FREE_OF_MOE = (
    *("balance_loss", "z_loss", "implementation", "capacity_factor", "eval_capacity_factor", "min_capacity"),
    *("selection", "scope"),
)
