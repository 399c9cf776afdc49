"""Kernels against the plain formulas, in values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from trainer.config import ExpertsImplementation, ModelConfig
from trainer.model import Decoder, head, kernels, products, tiled
from trainer.model.head import cross_entropy
from trainer.model.initial import initial, start_of
from trainer.samples import IGNORED

FLOAT32, BFLOAT16, FLOAT64 = torch.float32, torch.bfloat16, torch.float64
NEAR = {FLOAT64: 1e-12, FLOAT32: 2e-5, BFLOAT16: 3e-2}


@pytest.fixture(autouse=True, scope="module", params=[1, 1 << 40], ids=["onednn", "default"])
def smallest(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test once with products by oneDNN, however small, where it is preferred, and once with torch's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SMALLEST", request.param)
        yield


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value and the gradients of a sum of it with uneven weights."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = compute(*leaves)
    weights = torch.linspace(-1, 1, value.numel(), dtype=FLOAT64).to(value.dtype).view_as(value)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)]


def agree(compute: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``compute`` in the inputs' type agrees with ``formula`` in float64, relative to the size of each result."""
    found = results(compute, *inputs)
    expected = results(formula, *(x.double() for x in inputs))
    for mine, reference in zip(found, expected, strict=True):
        assert mine.shape == reference.shape
        if mine.numel():
            largest = reference.abs().max().clamp(min=1e-30)
            assert ((mine.double() - reference).abs().max() / largest).item() <= NEAR[inputs[0].dtype]


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=FLOAT64).to(dtype)


# -- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 1), (3, 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    inputs = [normal(*shape, 13, dtype=dtype), normal(9, 13, dtype=dtype)]
    if bias:
        inputs.append(normal(9, dtype=dtype))
    agree(products.linear, F.linear, *inputs)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 9), k=st.integers(1, 70), n=st.integers(1, 9), layout=st.integers(0, 15))
def test_matrices_of_any_strides_multiply(m: int, k: int, n: int, layout: int) -> None:
    def laid(rows: int, columns: int, kind: int) -> Tensor:
        whole = normal(2 * rows, 2 * columns, dtype=FLOAT32)
        x = (whole.mT.contiguous().mT if kind & 1 else whole)[:rows, :columns]
        return x if kind & 2 else x.clone()

    a, b = laid(m, k, layout & 3), laid(k, n, layout >> 2)
    torch.testing.assert_close(products.multiply(a, b), (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)


# -- attention -----------------------------------------------------------------------------------------------------


def outright(query_BHSC: Tensor, key_BGSC: Tensor, value_BGSC: Tensor) -> Tensor:
    copies = query_BHSC.shape[1] // key_BGSC.shape[1]
    key_BHSC, value_BHSC = (x.repeat_interleave(copies, dim=1) for x in (key_BGSC, value_BGSC))
    score_BHSS = query_BHSC @ key_BHSC.mT / math.sqrt(query_BHSC.shape[-1])
    future = torch.ones(score_BHSS.shape[-2:], dtype=torch.bool).triu(1)
    return score_BHSS.masked_fill(future, -math.inf).softmax(-1) @ value_BHSC


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("size", [1, 7, 8, 19, 32])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_tiles(groups: int, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE", 8)
    # As projections leave them: positions before heads.
    query, key, value = (normal(2, size, heads, 6, dtype=dtype).transpose(1, 2) for heads in (4, groups, groups))
    agree(tiled.causal_attention, outright, query, key, value)


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("size", [4, tiled.SHORTEST, tiled.SHORTEST + 33])
def test_attention_by_the_kernel_of_choice(size: int, dtype: torch.dtype) -> None:
    query, key, value = (normal(1, heads, size, 8, dtype=dtype) for heads in (2, 1, 1))
    agree(kernels.causal_attention, outright, query, key, value)


# -- experts -------------------------------------------------------------------------------------------------------


def by_turns(rows: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x_RI, weight_EIO: torch.cat(
        [x_NI @ weight_IO for x_NI, weight_IO in zip(x_RI.split(rows), weight_EIO, strict=True)]
    )


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    inner=st.integers(1, 24),
    outer=st.integers(1, 24),
)
def test_experts_with_any_numbers_of_rows(dtype: torch.dtype, rows: list[int], inner: int, outer: int) -> None:
    x_RI, weight_EIO = normal(sum(rows), inner, dtype=dtype), normal(len(rows), inner, outer, dtype=dtype)
    rows_E = torch.tensor(rows)
    for implementation in ExpertsImplementation:
        agree(lambda x, w, i=implementation: kernels.grouped(x, w, rows_E, i), by_turns(rows), x_RI, weight_EIO)


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
def test_experts_with_equal_numbers_of_rows(dtype: torch.dtype) -> None:
    x_RI, weight_EIO = normal(3 * 70, 12, dtype=dtype), normal(3, 12, 20, dtype=dtype)
    grouped = ExpertsImplementation.grouped
    agree(lambda x, w: kernels.grouped(x, w, None, grouped), by_turns([70] * 3), x_RI, weight_EIO)


def test_rows_of_an_expert_are_told_from_its_neighbours_of_which_some_are_multiplied_along() -> None:
    x_RI, weight_EIO = normal(140, 16, dtype=FLOAT32), normal(2, 16, 24, dtype=FLOAT32)
    rows_E = torch.tensor([65, 75])
    alone = results(by_turns([65]), x_RI[:65], weight_EIO[:1])
    both = results(lambda x, w: kernels.grouped(x, w, rows_E, ExpertsImplementation.grouped)[:65], x_RI, weight_EIO)
    torch.testing.assert_close(both[0], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[2][:1], alone[2], rtol=1e-5, atol=1e-5)
    assert both[1][65:].eq(0).all()
    assert both[2][1].eq(0).all()


# -- head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("rows", [3, 8, 100])
def test_cross_entropy_in_chunks(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ROWS", rows)
    targets_BS = torch.arange(2 * 11).view(2, 11) % 17
    targets_BS[1, 3:7] = IGNORED

    def formula(x_BSD: Tensor, weight_VD: Tensor) -> Tensor:
        logits = F.linear(x_BSD, weight_VD).flatten(0, 1)
        return F.cross_entropy(logits, targets_BS.flatten(), ignore_index=IGNORED, reduction="sum")

    x_BSD, weight_VD = normal(2, 11, 6, dtype=dtype), normal(17, 6, dtype=dtype)
    agree(lambda x, w: cross_entropy(x, w, targets_BS)[0], formula, x_BSD, weight_VD)
    _, each_B = cross_entropy(x_BSD, weight_VD, targets_BS)
    alone = [cross_entropy(x_BSD[b : b + 1], weight_VD, targets_BS[b : b + 1])[0].double() for b in range(2)]
    torch.testing.assert_close(each_B, torch.stack(alone), rtol=1e-6, atol=1e-6)


def test_an_evaluation_makes_the_logits_and_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    monkeypatch.setattr(head, "multiply", lambda a, b: products.append(b.shape) or a @ b)
    table_VD = torch.nn.Parameter(torch.randn(32, 8))
    with torch.no_grad():
        head.cross_entropy(torch.randn(2, 4, 8), table_VD, torch.zeros(2, 4, dtype=torch.int64))
    assert products == [(8, 32)]


def test_cross_entropy_of_a_certain_mistake_is_the_distance_of_the_logits() -> None:
    weight_VD = torch.tensor([[0.0], [1.0]])
    total, _ = cross_entropy(torch.full((1, 1, 1), 1000.0), weight_VD, torch.zeros(1, 1, dtype=torch.int64))
    assert total.item() == 1000.0


# -- all of them ---------------------------------------------------------------------------------------------------


def cases(dtype: torch.dtype) -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    rows_E, targets_BS = torch.tensor([70, 0, 58]), torch.arange(24).view(2, 12) % 17
    grouped = ExpertsImplementation.grouped
    attention = tuple(normal(1, heads, 300, 8, dtype=dtype) for heads in (4, 2, 2))
    return [
        (products.linear, (normal(5, 13, dtype=dtype), normal(9, 13, dtype=dtype))),
        (tiled.causal_attention, attention),
        (
            lambda x, w: kernels.grouped(x, w, rows_E, grouped),
            (normal(128, 16, dtype=dtype), normal(3, 16, 24, dtype=dtype)),
        ),
        (lambda x, w: cross_entropy(x, w, targets_BS)[0], (normal(2, 12, 6, dtype=dtype), normal(17, 6, dtype=dtype))),
    ]


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_the_same_bits_again(dtype: torch.dtype) -> None:
    for compute, inputs in cases(dtype):
        first, again = results(compute, *inputs), results(compute, *inputs)
        assert all(one.equal(other) for one, other in zip(first, again, strict=True))


def test_operators_describe_themselves_to_the_compiler() -> None:
    """Shapes and strides without data, gradients, and no memory shared with inputs: torch's own check of operators."""
    query, key = normal(2, 9, 4, 6, dtype=FLOAT32).transpose(1, 2), normal(2, 9, 2, 6, dtype=FLOAT32).transpose(1, 2)
    x_RI, weight_EIO = normal(9, 6, dtype=FLOAT32), normal(2, 6, 5, dtype=FLOAT32)
    for operator, inputs in (
        (products._product, (normal(3, 4, dtype=FLOAT32), normal(5, 4, dtype=FLOAT32).mT)),
        (tiled.attend, (query, key, key.clone())),
        (kernels.grouped_on_cpu, (x_RI, weight_EIO, torch.tensor([4, 5]))),
        (kernels.grouped_on_cpu, (x_RI[:8], weight_EIO, None)),
    ):
        inputs = tuple(x.requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs)
        torch.library.opcheck(operator, inputs)


# -- in the decoder ------------------------------------------------------------------------------------------------


def small() -> ModelConfig:
    config = tiny.config().model
    config.qk_norm = True
    return config


def losses_and_gradients(model: Decoder) -> dict[str, Tensor]:
    tokens_BS = torch.arange(2 * 25).view(2, 25) * 7 % tiny.VOCABULARY
    output = model(tokens_BS[:, :-1], tokens_BS[:, 1:])
    assert output.cross_entropy is not None
    loss = output.cross_entropy + sum(r.balance_B.sum() + r.z_B.sum() for r in output.routing.values())
    names, parameters = zip(*model.named_parameters(), strict=True)
    return {"loss": loss.detach(), **dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))}


def decoder(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            begin = start_of(name, replace(config, init_std=0.2))
            parameter.copy_(initial(name, shape, begin=begin, seed=1, start=(0,) * len(shape), size=shape))
    return model.to(dtype)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "SHORTEST", 1)
    monkeypatch.setattr(tiled, "TILE", 8)
    torch.compiler.reset()


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize("way", ["plain", "whole graphs", "recomputed", "recomputed whole graphs"])
def test_a_decoder_learns_as_it_does_in_float64(short: None, way: str, capacity: float | None) -> None:
    config = small()
    assert config.moe is not None
    config.moe.capacity_factor = capacity
    expected = losses_and_gradients(decoder(config, FLOAT64))
    model = decoder(config, FLOAT32)
    for layer in model.layers:
        forward: Any = layer.forward
        if "recomputed" in way:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        if "graphs" in way:
            forward = torch.compile(forward, backend="aot_eager", fullgraph=True)
        layer.forward = forward
    for name, found in losses_and_gradients(model).items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_decoder_can_be_traced_without_memory(short: None) -> None:
    with FakeTensorMode():
        model = Decoder(small())
        found = losses_and_gradients(model)
    assert {name: value.shape for name, value in found.items() if name != "loss"} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
