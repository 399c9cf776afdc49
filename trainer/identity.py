"""What makes a checkpoint one of a run: what both must have in common, and where they differ. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol

from trainer.config import DataConfig, ModelConfig, Positions, TrainerConfig

ORDER = 2  # changes with what index gives which tokens, so that no run goes on in another order than it began


class Fingerprinted(Protocol):
    """Prepared data, or what reads it."""

    @property
    def fingerprint(self) -> str: ...  # of the tokens themselves


def identity(config: TrainerConfig, data: Fingerprinted) -> dict[str, Any]:
    """What a checkpoint and a run must have in common, as JSON values at the paths that they have in the config.

    Values that may change during a run are left out. ``data`` holds all that decides which tokens a sample has, so
    that a run goes on with the samples it would have had; ``train.tokens`` only says where the run ends, and where
    phases of a mixture begin.
    """
    return {
        "model": of_model(config.model),
        "data": {
            "fingerprint": data.fingerprint,
            "order": ORDER,
            "seq_len": config.data.seq_len,
            "packing": config.data.packing.name,
            "document_mask": config.data.document_mask,
            "mixture": _mixture(config.data, config.train.tokens),
        },
        "train": {"seed": config.train.seed},
    }


def of_model(config: ModelConfig) -> dict[str, Any]:
    """The part that weights alone depend on."""
    model = asdict(config, dict_factory=_plain)
    free = ["init_std", "init_truncate", "init_attention_output_std", "init_down_std", "dropout", "attention_dropout"]
    if config.positions is Positions.rotary:
        free.append("max_seq_len")
    for name in free:
        del model[name]
    if config.moe is not None:
        for name in _FREE_OF_MOE:
            del model["moe"][name]
    return model


@dataclass(frozen=True)
class Difference:
    """A value that is another one than that of the checkpoint."""

    field: str  # full path in the config, such as "data.packing"
    now: Any
    before: Any

    def __str__(self) -> str:
        return f"{self.field} is {typed(self.now)}, was {typed(self.before)}"

    @property
    def fix(self) -> str:
        """An override that gives the value of the checkpoint; empty where none does."""
        none = ("data.fingerprint", "data.order")
        if isinstance(self.before, Mapping) or self.field in none or self.field.startswith("data.mixture.phases["):
            return ""
        if self.field == "data.mixture.weights":
            return f"'{self.field}={self.before}'" if self.before else ""
        return f"{self.field}={typed(self.before)}"


def differences(saved: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """In which values two nested mappings differ, by field."""
    found: list[Difference] = []
    for key in sorted({*saved, *mine}):
        before, now = saved.get(key), mine.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(Difference(f"{prefix}{key}", now, before))
    return found


def typed(value: Any) -> str:
    """A value as it is typed in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def phase_starts(marker: Mapping[str, Any]) -> list[int]:
    """The first samples of the phases that a checkpoint was trained with; empty where it had none."""
    phases = marker["identity"]["data"]["mixture"]
    return [phases[f"phases[{i}]"]["first_sample"] for i in range(len(phases)) if f"phases[{i}]" in phases]


def _mixture(data: DataConfig, tokens: int) -> dict[str, Any]:
    from trainer.data import mixture  # here, for it brings numpy, which a look at a model does without

    given = data.mixture
    found: dict[str, Any] = {"weights": _weights(given.weights), "temperature": given.temperature}
    starts = mixture.first_samples(given.phases, -(-tokens // data.seq_len))
    for number, (first, phase) in enumerate(zip(starts, given.phases, strict=True)):
        found[f"phases[{number}]"] = {"first_sample": first, "weights": _weights(phase.weights)}
    return found


def _weights(weights: Mapping[str, float]) -> str:
    """Weights in one spelling: the order of names means nothing, that of patterns decides which of them holds."""
    names = sorted(name for name in weights if not set("*?[") & set(name))
    patterns = [name for name in weights if name not in names]
    texts = [f"{name}: {float(weights[name])!r}".removesuffix(".0") for name in [*names, *patterns]]
    return f"{{{', '.join(texts)}}}" if texts else ""


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.name if isinstance(value, Enum) else value for name, value in items}


# What may change in a run's MoE layers.
_FREE_OF_MOE = (
    *("balance_loss", "z_loss", "implementation", "capacity_factor", "eval_capacity_factor", "min_capacity"),
    *("selection", "scope"),
)
