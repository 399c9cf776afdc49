"""The mixture of experts against plain references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.batch import keys
from trainer.config import Activation, ExpertsImplementation, ModelConfig, MoEConfig, Scope, Selection
from trainer.model.context import PLACES, SELECTION, Context, uniform
from trainer.model.dispatch import limited
from trainer.model.moe import MoE
from trainer.model.router import Router, balance_loss, z_loss

NOTHING = Context(None, None, None, None)


def moe(config: MoEConfig, d_model: int = 16, dtype: torch.dtype = torch.float32, **model: Any) -> MoE:
    torch.manual_seed(0)
    module = MoE(ModelConfig(d_model=d_model, moe=config, **model), 1).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def gradients(module: MoE, x_BSD: Tensor) -> dict[str, Tensor]:
    x_BSD = x_BSD.detach().requires_grad_()
    y_BSD, routing = module(x_BSD, NOTHING)
    weights = torch.linspace(-1, 1, y_BSD.numel(), dtype=x_BSD.dtype).view_as(y_BSD)
    ((y_BSD * weights).sum() + routing.balance_B.sum() + routing.z_B.sum()).backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    return {"y": y_BSD.detach(), "x": x_BSD.grad, **found}  # type: ignore[dict-item]


def dense(module: MoE, x_BSD: Tensor) -> Tensor:
    """Every expert on every token, weighted by zero where it was not chosen."""
    weight_BSK, expert_BSK, _ = module.router(x_BSD)
    weight_BSE = torch.zeros(*x_BSD.shape[:2], module.config.experts, dtype=x_BSD.dtype)
    weight_BSE = weight_BSE.scatter(-1, expert_BSK, weight_BSK.to(x_BSD.dtype))
    e = module.experts
    hidden = torch.nn.functional.silu(torch.einsum("bsd,edf->bsef", x_BSD, e.gate_EDF))
    hidden = hidden * torch.einsum("bsd,edf->bsef", x_BSD, e.up_EDF)
    return torch.einsum("bsef,efd,bse->bsd", hidden, e.down_EFD, weight_BSE)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_float64_loop_agrees_with_every_expert_on_every_token(top_k: int, normalize: bool) -> None:
    module = moe(MoEConfig(experts=5, top_k=top_k, d_ff=6, normalize_weights=normalize), dtype=torch.float64)
    x_BSD = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    expected = dense(module, x_BSD)
    y_BSD, _ = module(x_BSD, NOTHING)
    torch.testing.assert_close(y_BSD, expected, rtol=1e-12, atol=1e-12)
    inputs = [x_BSD, *module.parameters()]
    ours = torch.autograd.grad(y_BSD.sin().sum(), inputs)
    theirs = torch.autograd.grad(expected.sin().sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_and_loop_agree_in_values_and_gradients(dtype: torch.dtype) -> None:
    config = MoEConfig(experts=6, top_k=2, d_ff=24)
    x_BSD = torch.randn(3, 16, 16).to(dtype)
    grouped = gradients(moe(config, dtype=dtype), x_BSD)
    config.implementation = ExpertsImplementation.loop
    loop = gradients(moe(config, dtype=dtype), x_BSD)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for name in loop:
        torch.testing.assert_close(grouped[name], loop[name], rtol=tolerance, atol=tolerance)


def test_shapes_that_the_grouped_product_cannot_take_go_through_the_loop() -> None:
    module = moe(MoEConfig(experts=4, top_k=2, d_ff=6), d_model=10)  # rows of 40 and 24 bytes
    found = gradients(module, torch.randn(2, 5, 10))
    assert all(value.isfinite().all() for value in found.values())


def test_experts_without_tokens_have_zero_gradients() -> None:
    module = moe(MoEConfig(experts=8, top_k=1, d_ff=8))
    _, routing = module(x_BSD := torch.randn(1, 3, 16), NOTHING)
    idle = (routing.tokens_E == 0).nonzero().flatten()
    assert len(idle) >= 5
    found = gradients(module, x_BSD)
    assert found["experts.gate_EDF"][idle].eq(0).all()
    assert found["experts.gate_EDF"].abs().sum() > 0


@settings(max_examples=25, deadline=None)
@given(
    sequences=st.integers(1, 5),
    length=st.integers(1, 9),
    experts=st.integers(1, 6),
    top_k=st.integers(1, 6),
    split=st.integers(1, 4),
)
def test_losses_of_a_sequence_do_not_depend_on_the_sequences_beside_it(
    sequences: int, length: int, experts: int, top_k: int, split: int
) -> None:
    config = MoEConfig(experts=experts, top_k=min(top_k, experts), d_ff=8)
    router = moe(config, dtype=torch.float64).router
    x_BSD = torch.randn(sequences, length, 16, dtype=torch.float64)
    _, _, whole = router(x_BSD)
    parts = [router(part)[2] for part in x_BSD.split(split)]
    torch.testing.assert_close(whole.balance_B, torch.cat([p.balance_B for p in parts]))
    torch.testing.assert_close(whole.z_B, torch.cat([p.z_B for p in parts]))
    assert whole.tokens_E.equal(sum(p.tokens_E for p in parts))  # type: ignore[arg-type]
    assert whole.tokens_E.dtype == torch.int64
    assert whole.tokens_E.sum() == sequences * length * config.top_k


def test_balance_loss_is_one_for_an_even_load_and_the_number_of_experts_for_collapse() -> None:
    even_BE = torch.full((2, 4), 6)
    uniform_BSE = torch.full((2, 12, 4), 0.25)
    torch.testing.assert_close(balance_loss(even_BE, uniform_BSE), torch.ones(2))
    collapsed_BSE = torch.zeros(2, 12, 4)
    collapsed_BSE[..., 1] = 1
    torch.testing.assert_close(balance_loss(torch.tensor([[0, 24, 0, 0]] * 2), collapsed_BSE), torch.full((2,), 4.0))


def test_z_loss_is_the_mean_square_of_logsumexp() -> None:
    logits_BSE = torch.tensor([[[0.0, 0.0], [3.0, 3.0]]])
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(z_loss(logits_BSE), ((log2**2 + (3 + log2) ** 2) / 2).view(1))


def test_routing_weights_sum_to_one_only_when_normalized_and_are_float32_in_bf16() -> None:
    for normalize in (True, False):
        config = MoEConfig(experts=6, top_k=2, d_ff=8, normalize_weights=normalize)
        router = Router(16, config).to(torch.bfloat16)
        weight_BSK, _, _ = router(torch.randn(2, 8, 16, dtype=torch.bfloat16))
        assert weight_BSK.dtype == torch.float32
        assert bool((weight_BSK.sum(-1) - 1).abs().max() < 1e-6) is normalize


GPT = {"activation": Activation.gelu, "bias": True}


def one_by_one(module: MoE, x_BSD: Tensor, kept_BSK: Tensor) -> Tensor:
    """Each token through each of its experts that kept it, by the formulas."""
    weight_BSK, expert_BSK, _ = module.router(x_BSD)
    e = module.experts
    y_BSD = torch.zeros_like(x_BSD)
    for b, s, k in kept_BSK.nonzero().tolist():
        i = int(expert_BSK[b, s, k])
        x_D = x_BSD[b, s]
        up_F = x_D @ e.up_EDF[i] + (0 if e.up_bias_EF is None else e.up_bias_EF[i])
        if e.gate_EDF is None:
            hidden_F = torch.nn.functional.gelu(up_F, approximate="tanh")
        else:
            gate_F = x_D @ e.gate_EDF[i] + (0 if e.gate_bias_EF is None else e.gate_bias_EF[i])
            hidden_F = gate_F * gate_F.sigmoid() * up_F
        down_D = hidden_F @ e.down_EFD[i] + (0 if e.down_bias_ED is None else e.down_bias_ED[i])
        y_BSD[b, s] = y_BSD[b, s] + weight_BSK[b, s, k] * down_D
    return y_BSD


@pytest.mark.parametrize("model", [{}, {"bias": True}, GPT])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("selection", list(Selection))
def test_experts_with_a_capacity_agree_with_one_token_after_the_other(
    model: dict[str, Any], top_k: int, scope: Scope, selection: Selection
) -> None:
    config = MoEConfig(
        experts=4, top_k=top_k, d_ff=8, capacity_factor=0.75, min_capacity=1, scope=scope, selection=selection
    )
    module = moe(replace(config, normalize_weights=top_k > 1), dtype=torch.float64, **model)
    key_B = keys(0, 1, range(3))
    x_BSD = torch.randn(3, 9, 16, dtype=torch.float64, requires_grad=True)
    y_BSD, routing = module(x_BSD, Context(None, None, None, key_B))
    drawn = uniform(key_B, PLACES + SELECTION, (9,)) if selection is Selection.random else None
    dispatch = limited(module.router(x_BSD)[1], config, training=True, draw_BS=drawn)
    kept_BSK = (dispatch.slot_N >= 0).view(3, 9, top_k)
    assert 0 < routing.dropped == (~kept_BSK).sum()
    assert routing.tokens_E.sum() == 3 * 9 * top_k  # the dropped ones included
    expected = one_by_one(module, x_BSD, kept_BSK)
    torch.testing.assert_close(y_BSD, expected)
    inputs = [x_BSD, *module.parameters()]
    ours = torch.autograd.grad(y_BSD.sin().sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad(expected.sin().sum(), inputs, allow_unused=True)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("model", [{}, {"bias": True}, GPT])
def test_grouped_loop_and_room_for_all_are_the_same(model: dict[str, Any]) -> None:
    config = MoEConfig(experts=4, top_k=2, d_ff=24)
    x_BSD = torch.randn(2, 16, 16)
    grouped = gradients(moe(config, **model), x_BSD)
    loop = gradients(moe(replace(config, implementation=ExpertsImplementation.loop), **model), x_BSD)
    roomy = gradients(moe(replace(config, capacity_factor=2.0), **model), x_BSD)
    for name in loop:
        torch.testing.assert_close(grouped[name], loop[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(roomy[name], loop[name], rtol=1e-4, atol=1e-5)


def test_evaluation_has_a_capacity_of_its_own_and_draws_nothing() -> None:
    config = MoEConfig(
        experts=4,
        top_k=1,
        d_ff=8,
        capacity_factor=0.5,
        eval_capacity_factor=4.0,
        min_capacity=1,
        selection=Selection.random,
    )
    module, x_BSD = moe(config), torch.randn(2, 16, 16)
    context = Context(None, None, None, keys(0, 0, range(2)))
    assert module(x_BSD, context)[1].dropped > 0
    module.eval()
    assert module(x_BSD, NOTHING)[1].dropped == 0


def test_a_dropped_token_passes_by() -> None:
    module = moe(MoEConfig(experts=2, top_k=1, d_ff=8, capacity_factor=0.1, min_capacity=1))
    y_BSD, routing = module(torch.randn(1, 12, 16), NOTHING)
    assert y_BSD.eq(0).all(dim=-1).sum() == routing.dropped >= 10


@pytest.mark.parametrize("model", [{}, GPT])
def test_shared_experts_see_every_token(model: dict[str, Any]) -> None:
    config = MoEConfig(experts=4, top_k=2, d_ff=8, shared_experts=2)
    module, x_BSD = moe(config, dtype=torch.float64, **model), torch.randn(2, 5, 16, dtype=torch.float64)
    shared = module.shared
    assert shared is not None
    assert shared.up.out_features == 16
    kept_BSK = torch.ones(2, 5, 2, dtype=torch.bool)
    torch.testing.assert_close(module(x_BSD, NOTHING)[0], one_by_one(module, x_BSD, kept_BSK) + shared(x_BSD))
