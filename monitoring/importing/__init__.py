"""Runs that other programs recorded, as attempts and steps; one module a format. Files are read in pieces, once.

A format's ``read`` yields, for each attempt in turn, a ``Begin``, its ``Step``s in ascending order, and an ``End``. It
counts what it could not read, and notes what it learned beside the steps, in a ``Tally``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

FORMATS = {"megatron": "logs", "deepspeed": "logs", "tensorboard": "tensorboard", "lit-gpt": "litgpt", "csv": "csv"}


class Unreadable(Exception):
    """What was given is not in the format; says what is expected."""


@dataclass(frozen=True)
class Begin:
    """A new attempt."""

    t: float  # unix seconds
    source: str  # file that it is of
    resumed_from: int | None = None  # step of the checkpoint it went on from, where it says so


@dataclass(frozen=True)
class Step:
    """What was recorded of a step; several of one step are one record."""

    step: int
    t: float
    metrics: Mapping[str, float]
    tokens: int | None = None  # consumed since the first attempt; None: nobody says


@dataclass(frozen=True)
class End:
    """How the attempt ended, as far as its records say."""

    t: float
    cause: str = "unknown"
    evidence: str = ""
    job_id: str = ""  # "": nobody says


Item = Begin | Step | End


@dataclass
class Tally:
    """What is learned beside the steps."""

    damaged: int = 0  # lines or records that could not be read
    first_damaged: str = ""  # where, and what
    steps: int | None = None  # that the program was to do in all
    world_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)  # its own configuration
    without_steps: list[str] = field(default_factory=list)  # files in which there is no step
    clock: str = "recorded"  # where times are from

    def bad(self, where: str) -> None:
        self.damaged += 1
        self.first_damaged = self.first_damaged or where


def read(to: str, paths: list[Path], tally: Tally) -> Iterator[Item]:
    """The attempts in files of the format ``to``, a key of ``FORMATS``.

    Raises:
        Unreadable: if there is nothing of that format.
        OSError: if a file cannot be read.
    """
    module = import_module(f"monitoring.importing.{FORMATS[to]}")
    return module.read(paths, tally, to)


def natural(path: Path) -> list[Any]:
    """Orders names as people do: slurm-9 before slurm-10."""
    parts = re.split("([0-9]+)", str(path))  # text and digits in turn
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def files_of(paths: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """The files themselves, in the order given, and of folders those that fit one of the patterns, by name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = {file for name in names for file in path.rglob(name) if file.is_file()}
            found += sorted((file for file in inside if not file.name.startswith(".")), key=natural)
        else:
            found.append(path)
    return list(dict.fromkeys(found))


_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")


def stamp(text: str) -> float | None:
    """The first time of day with a date in a text, such as 2023-07-25T20:03:49, taken as local time; unix seconds."""
    if (match := _STAMP.search(text)) is None:
        return None
    try:
        whole = datetime.fromisoformat(f"{match[1]} {match[2]}").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return whole + float(f"0.{match[3] or 0}")


# Names that several programs have for the same thing, lower case; the keys are ours.
_ALIASES = {
    "loss": ("train_loss", "train/loss", "metric/train_loss", "training_loss", "lm loss", "lm-loss-training/lm loss"),
    "validation_loss": (
        *("val_loss", "val/loss", "valid_loss", "eval_loss", "eval/loss", "metric/val_loss", "validation/loss"),
        *("lm loss validation", "lm-loss-validation/lm loss validation", "val loss"),
    ),
    "lr": (
        "learning_rate",
        "learning-rate",
        "train/lr",
        "train/learning_rate",
        "metric/lr",
        "learning-rate/learning-rate",
    ),
    "grad_norm": ("grad-norm", "train/grad_norm", "grad_norm/grad_norm", "gradient_norm"),
    "tokens_per_s": ("throughput/tokens_per_sec", "tokens_per_sec", "tokens_per_second"),
    "step_s": ("iteration-time", "iteration-time/iteration-time", "iter_time", "step_time"),
    "loss_scale": ("loss-scale", "loss-scale/loss-scale"),
    "tokens": ("total_tokens", "metric/total_tokens", "consumed_tokens", "num_tokens", "train/total_tokens"),
    "step": ("iteration", "global_step", "trainer/global_step", "_step", "iter", "steps", "metric/iter"),
    "t": ("wall_time", "wall time", "timestamp", "_timestamp", "unix_time", "time"),
}
_NAMES = {other: ours for ours, others in _ALIASES.items() for other in (ours, *others)}


def name_of(given: str) -> str:
    """A metric, or ``step``, ``tokens``, ``t``, as this project calls it; what it has no name for keeps its own."""
    given = given.strip()
    return _NAMES.get(given.lower(), given)
