"""The router's scores, weights, losses and the bias that balances it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.config import MoEConfig, Scope, Score
from trainer.model.router import Router, balance_loss, entropy

D = 16


def router(**fields: object) -> Router:
    given = {"experts": 6, "top_k": 2, "d_ff": 8, **fields}
    module = Router(D, MoEConfig(**given)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        module.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    return module


def inputs(batch: int = 3, size: int = 7) -> Tensor:
    return torch.randn(batch, size, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", list(Score))
def test_weights_are_the_largest_scores(kind: Score, normalize: bool, scale: float) -> None:
    module, x_BSD = router(score=kind, normalize_weights=normalize, weight_scale=scale), inputs()
    weight_BSK, expert_BSK, _ = module(x_BSD)
    logits_BSE = x_BSD @ module.score.weight.T
    score_BSE = logits_BSE.softmax(-1) if kind is Score.softmax else 1 / (1 + (-logits_BSE).exp())
    ordered = score_BSE.sort(dim=-1, descending=True)
    assert expert_BSK.equal(ordered.indices[..., :2])
    expected = ordered.values[..., :2]
    if normalize:
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weight_BSK, expected * scale)


@pytest.mark.parametrize("kind", list(Score))
def test_the_record_counts_rows_and_measures_the_distribution(kind: Score) -> None:
    module, x_BSD = router(score=kind), inputs()
    _, expert_BSK, routing = module(x_BSD)
    assert routing.tokens_E.equal(expert_BSK.flatten().bincount(minlength=6))
    logits_BSE = x_BSD @ module.score.weight.T
    probability_BSE = logits_BSE.softmax(-1)
    if kind is Score.sigmoid:
        probability_BSE = logits_BSE.sigmoid() / logits_BSE.sigmoid().sum(-1, keepdim=True)
    plain = -(probability_BSE * probability_BSE.log()).sum(-1).mean(-1)
    torch.testing.assert_close(routing.entropy_B, plain)
    torch.testing.assert_close(routing.z_B, logits_BSE.exp().sum(-1).log().square().mean(-1))
    for b in range(3):
        counts = expert_BSK[b].flatten().bincount(minlength=6)
        expected = 6 * (counts / counts.sum() * probability_BSE[b].mean(0)).sum()
        torch.testing.assert_close(routing.balance_B[b], expected)


def test_entropy_goes_from_one_expert_to_all_alike() -> None:
    certain = torch.zeros(1, 4, 8)
    certain[..., 3] = 1
    torch.testing.assert_close(entropy(certain), torch.zeros(1))
    torch.testing.assert_close(entropy(torch.full((1, 4, 8), 1 / 8)), torch.full((1,), math.log(8)))


def test_the_balance_loss_of_a_rank_is_over_all_of_its_tokens() -> None:
    x_BSD = inputs()
    apart, together = router()(x_BSD)[2], router(scope=Scope.rank)(x_BSD)[2]
    torch.testing.assert_close(together.balance_B, together.balance_B[0].expand(3))
    logits = x_BSD @ router().score.weight.T
    expected = balance_loss(apart.tokens_E.unsqueeze(0), logits.softmax(-1).flatten(0, 1).unsqueeze(0))
    torch.testing.assert_close(together.balance_B[:1], expected)
    assert not torch.allclose(apart.balance_B, together.balance_B)
    torch.testing.assert_close(apart.z_B, together.z_B)


def test_the_bias_counts_in_the_choice_and_not_in_the_weights() -> None:
    module, x_BSD = router(bias_update=0.1, normalize_weights=False), inputs()
    plain_weight_BSK, plain_expert_BSK, _ = module(x_BSD)
    torch.testing.assert_close(plain_weight_BSK, router(normalize_weights=False)(x_BSD)[0])
    module.bias_E[4] = 10.0
    weight_BSK, expert_BSK, _ = module(x_BSD)
    assert expert_BSK[..., 0].eq(4).all()
    assert not plain_expert_BSK[..., 0].eq(4).all()
    score_BSE = (x_BSD @ module.score.weight.T).softmax(-1)
    torch.testing.assert_close(weight_BSK[..., 0], score_BSE[..., 4])
    assert not module.bias_E.requires_grad


@pytest.mark.parametrize("kind", list(Score))
def test_the_bias_moves_loads_towards_even(kind: Score) -> None:
    module = router(bias_update=0.01, score=kind)
    with torch.no_grad():
        module.score.weight *= 0.3
        module.score.weight[0] += 0.2  # most tokens prefer one expert
    x_BSD = inputs(8, 64) + 0.5

    def spread() -> float:
        tokens_E = module(x_BSD)[2].tokens_E.double()
        return (tokens_E.std() / tokens_E.mean()).item()

    before = spread()
    for _ in range(150):
        module.rebalance(module(x_BSD)[2].tokens_E)
    assert before > 0.4
    assert spread() < 0.1 * before + 0.03


def test_one_move_of_the_bias_is_by_the_update_and_never_more() -> None:
    module = router(bias_update=0.25, experts=4)
    module.rebalance(torch.tensor([10, 2, 6, 6]))  # the mean is 6
    torch.testing.assert_close(module.bias_E, torch.tensor([-0.25, 0.25, 0.0, 0.0], dtype=module.bias_E.dtype))
