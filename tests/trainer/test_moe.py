"""The mixture of experts against plain references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.config import ExpertsImplementation, ModelConfig, MoEConfig
from trainer.model.context import Context
from trainer.model.moe import MoE
from trainer.model.router import Router, balance_loss, z_loss

NOTHING = Context(None, None, None, None)


def moe(config: MoEConfig, d_model: int = 16, dtype: torch.dtype = torch.float32) -> MoE:
    torch.manual_seed(0)
    module = MoE(ModelConfig(d_model=d_model, moe=config), 1).to(dtype)
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
