"""Parts of a kernel on a core each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainer.model import cores, tiled


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_part_is_computed_once_whatever_the_number_of_threads(number: int) -> None:
    torch.set_num_threads(number)
    counts = [0] * 50

    def compute(part: int) -> None:
        assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        counts[part] += 1

    cores.each(compute, len(counts))
    assert counts == [1] * 50
    assert torch.get_num_threads() == number


@pytest.mark.usefixtures("threads")
def test_a_mistake_in_a_part_reaches_the_caller() -> None:
    torch.set_num_threads(2)

    def compute(part: int) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError):
        cores.each(compute, 4)


@pytest.mark.usefixtures("threads")
def test_attention_has_the_same_bits_whichever_core_computes_a_head() -> None:
    query, key, value, gradient = torch.randn(4, 2, 4, 300, 16, generator=torch.Generator().manual_seed(1)).unbind()
    torch.set_num_threads(2)
    results = []
    for _ in range(3):
        query.grad = None
        mixed = tiled.causal_attention(query.requires_grad_(), key, value)
        mixed.backward(gradient)
        assert query.grad is not None
        results.append((mixed.detach(), query.grad))
    for mixed, slope in results[1:]:
        assert torch.equal(mixed, results[0][0])
        assert torch.equal(slope, results[0][1])
