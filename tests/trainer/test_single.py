"""One rank without sharding, and the loss scale of fp16."""

from __future__ import annotations

import json
from typing import Any

import gradients
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.batch import Batch
from trainer.config import ActivationCheckpointing, Engine, LossScaleConfig, Precision, TrainerConfig
from trainer.parallel import build
from trainer.parallel.loss_scale import LossScale
from trainer.parallel.single import Single


def test_a_published_scale_is_that_of_the_mean_over_one_ranks_tokens() -> None:
    assert LossScale(LossScaleConfig(initial=2048.0), ranks=96).factor == 96 * 2048.0


def fp16(**fields: float) -> TrainerConfig:
    config = tiny.config(precision=Precision.fp16)
    config.parallel.engine = Engine.single
    for name, value in fields.items():
        setattr(config.train.loss_scale, name, value)
    return config


def made(config: TrainerConfig) -> Single:
    engine = build(config, tiny.CPU)
    assert isinstance(engine, Single)
    return engine


def accumulate(engine: Single, config: TrainerConfig) -> float:
    """One step's gradients; their norm."""
    gradients.accumulate(engine, config, tiny.Tokens())
    return engine.norm().item()


def values(engine: Single) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in engine.state().values()]


def test_the_loss_scale_changes_neither_the_norm_nor_the_step() -> None:
    found = []
    for initial in (1.0, 1024.0):
        config = fp16(initial=initial)
        engine = made(config)
        norm = accumulate(engine, config)
        engine.update(1e-2, norm=norm, max_norm=norm / 2)
        found.append((norm, {name: m.clone() for name, m in engine.state().items() if name.endswith("exp_avg")}))
    (norm, plain), (same, scaled) = found
    assert same == pytest.approx(norm, rel=1e-2)
    # After one step the first moment is a tenth of the clipped gradient.
    assert torch.stack([m.norm() for m in scaled.values()]).norm().item() == pytest.approx(norm / 20, rel=1e-2)
    for name, moment in plain.items():
        torch.testing.assert_close(scaled[name], moment, rtol=0.02, atol=norm * 1e-4)


def test_gradients_that_float16_rounds_to_zero_are_kept_by_the_loss_scale() -> None:
    norms = []
    for initial in (1.0, 2.0**16):
        config = fp16(initial=initial)
        engine = made(config)
        gradients.accumulate(engine, config, tiny.Tokens(), weight=1e-7)
        norms.append(engine.norm().item())
    config.train.precision = Precision.fp32
    engine = made(config)
    gradients.accumulate(engine, config, tiny.Tokens(), weight=1e-7)
    exact = engine.norm().item()
    assert norms[1] == pytest.approx(exact, rel=0.02)
    assert abs(norms[0] / exact - 1) > 0.05


def test_an_overflow_changes_nothing_but_the_scale() -> None:
    config = fp16(initial=2.0**40, hysteresis=1)
    engine = made(config)
    before = values(engine)
    assert not torch.tensor(accumulate(engine, config)).isfinite()
    engine.drop(overflow=True)
    assert engine.loss_scale() == 2.0**39
    assert all(a.equal(b) for a, b in zip(before, values(engine), strict=True))
    engine.drop(overflow=False)  # a bad batch is none of the scale's business
    assert engine.loss_scale() == 2.0**39
    while not torch.tensor(norm := accumulate(engine, config)).isfinite():
        engine.drop(overflow=True)
    engine.update(1e-2, norm=norm, max_norm=1.0)
    assert all(tensor.isfinite().all() for tensor in values(engine))


def test_the_scale_travels_with_a_checkpoint() -> None:
    config = fp16(initial=64.0, hysteresis=3)
    engine = made(config)
    engine.drop(overflow=True)
    other = made(config)
    other.load_values(json.loads(json.dumps(engine.values())))
    for each in (engine, other):
        for _ in range(2):
            each.drop(overflow=True)
    assert engine.loss_scale() == other.loss_scale() == 32.0


class Calls(TorchDispatchMode):
    """Counts how often operators run whose name has a word in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def of(self, word: str) -> int:
        return sum(word in name and "backward" not in name for name in self.names)


@pytest.mark.parametrize(
    ("kept", "attentions", "activations"),
    [
        (ActivationCheckpointing.none, 0, 0),
        (ActivationCheckpointing.selective, 0, 2),
        (ActivationCheckpointing.full, 2, 2),
    ],
)
def test_what_activation_checkpointing_computes_again(
    kept: ActivationCheckpointing, attentions: int, activations: int
) -> None:
    config = tiny.config()
    config.parallel.engine, config.parallel.activation_checkpointing = Engine.single, kept
    engine = made(config)
    batch = Batch.of(tiny.Tokens().batch(range(2)), tiny.CPU)
    output = engine.forward(batch)
    assert output.cross_entropy is not None
    with Calls() as calls:
        engine.backward(output.cross_entropy, last=True)
    # A dense layer and one of experts: each attends once and has one activation between its products.
    assert calls.of("scaled_dot_product") == attentions
    assert calls.of("aten::silu") == activations


@given(
    st.lists(st.booleans(), max_size=200),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([1.0, 0.25]),
    st.sampled_from([1.0, 4.0, 2.0**16]),
)
def test_the_scale_follows_its_history(
    overflows: list[bool], window: int, hysteresis: int, minimum: float, initial: float
) -> None:
    scale = LossScale(LossScaleConfig(initial=initial, window=window, hysteresis=hysteresis, minimum=minimum), ranks=1)
    for number, overflow in enumerate(overflows):
        before = scale.value
        scale.step(overflow=overflow)
        history = overflows[: number + 1]
        if overflow:
            # Halved once as many overflows came as the hysteresis, since it last was whole.
            spent = _overflows_since_whole(history, window)
            assert scale.value == (max(before / 2, minimum) if spent >= hysteresis else before)
        else:
            assert scale.value == (before * 2 if _good_run(history) % window == 0 else before)
        assert minimum <= scale.value
        again = LossScale(scale.config, ranks=1)
        again.load_values(scale.values())
        assert again.values() == scale.values()


def _good_run(history: list[bool]) -> int:
    """Steps without overflow at the end."""
    return next((n for n, overflow in enumerate(reversed(history)) if overflow), len(history))


def _overflows_since_whole(history: list[bool], window: int) -> int:
    """Overflows since ``window`` good steps in a row last gave the hysteresis back."""
    count = good = 0
    for overflow in history:
        count, good = (count + 1, 0) if overflow else (count, good + 1)
        if good == window:
            count = good = 0
    return count
