"""What the values of a request alone show to be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from trainer.problems import problems


def found(path: str = "", value: Any = None, world_size: int = 2) -> list[str]:
    config = tiny.config()
    if path:
        *parents, name = path.split(".")
        holder: Any = config
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, name, value)
    return [problem.field for problem in problems(config, world_size)]


def test_a_sound_request_has_no_problems() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.heads", 6),
        ("model.heads", 16),
        ("model.kv_heads", 3),
        ("model.moe.top_k", 5),
        ("model.moe.every", 3),
        ("model.heads", 7),
        ("optim.lr", 0.0),
        ("optim.min_lr", 0.5),
        ("optim.beta1", 1.0),
        ("optim.beta2", -0.1),
        ("optim.eps", -1e-8),
        ("optim.clip", -1.0),
        ("parallel.micro_batch", 0),
        ("parallel.threads", -1),
        ("train.batch_tokens", 100),
        ("train.seed", -1),
        ("train.experts_every", -1),
        ("train.ranks_every", -1),
        ("train.sample_tokens", -1),
        ("train.checkpoint.every_steps", -1),
        ("train.checkpoint.keep_latest", 0),
    ],
)
def test_a_value_that_cannot_be_is_one_problem_with_its_full_path(path: str, value: Any) -> None:
    assert found(path, value) == [path]
