"""The decoder's behaviour, and its first values."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import keys
from trainer.config import Activation, ModelConfig, Norm, Positions
from trainer.model import Decoder
from trainer.model.attention import rotary_angles, rotate
from trainer.model.head import cross_entropy
from trainer.model.initial import BLOCK, Start, initial, start_of
from trainer.samples import IGNORED
from trainer.size import moe_layers, parameter_count


def decoder(config: ModelConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    model = Decoder(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            shape = tuple(p.shape)
            begin = start_of(name, replace(config, init_std=0.2))
            p.copy_(initial(name, shape, begin=begin, seed=1, start=(0,) * p.ndim, size=shape))
    return model.to(dtype)


def plain(model: Decoder, tokens_S: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of one sequence through a dense decoder, by the formulas, one position and head at a time."""
    config = model.config
    size, shared = config.d_model // config.heads, config.heads // config.kv_heads

    def norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * scale

    def turn(x_C: torch.Tensor, position: int) -> torch.Tensor:
        # Channels i and i + C/2 as a complex number, times exp(i · position · theta^(-2i/C)).
        pairs = torch.complex(x_C[: size // 2], x_C[size // 2 :])
        angle = position * config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag))

    x_SD = model.embedding.weight[tokens_S]
    for layer in model.layers:
        h_SD = norm(x_SD, layer.attention_norm.weight)  # type: ignore[arg-type,union-attr]
        a = layer.attention
        query, key, value = (h_SD @ w.weight.T for w in (a.query, a.key, a.value))  # type: ignore[union-attr]
        if config.qk_norm:
            query, key = norm(query, a.query_norm.weight), norm(key, a.key_norm.weight)  # type: ignore[arg-type,union-attr]
        rows = []
        for s in range(len(tokens_S)):
            heads = []
            for head in range(config.heads):
                g = slice(head // shared * size, (head // shared + 1) * size)
                q = turn(query[s, head * size : (head + 1) * size], s)
                scores = torch.stack([q @ turn(key[t, g], t) for t in range(s + 1)]) / math.sqrt(size)
                heads.append(scores.softmax(0) @ value[: s + 1, g])
            rows.append(torch.cat(heads))
        x_SD = x_SD + torch.stack(rows) @ a.output.weight.T  # type: ignore[union-attr]
        f = layer.feedforward
        h_SD = norm(x_SD, layer.feedforward_norm.weight)  # type: ignore[arg-type,union-attr]
        gate_SF = h_SD @ f.gate.weight.T  # type: ignore[union-attr]
        up_SF = h_SD @ f.up.weight.T  # type: ignore[union-attr]
        x_SD = x_SD + (gate_SF * gate_SF.sigmoid() * up_SF) @ f.down.weight.T  # type: ignore[union-attr]
    head_VD = (model.embedding if model.head is None else model.head).weight
    return norm(x_SD, model.norm.weight) @ head_VD.T


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_agree_with_the_formulas(kv_heads: int, qk_norm: bool) -> None:
    config = tiny.config().model
    config.moe, config.kv_heads, config.tie_embeddings, config.qk_norm = None, kv_heads, kv_heads == 1, qk_norm
    model = decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
        tokens_S = torch.randint(tiny.VOCABULARY, (12,))
        logits_BSV = model(tokens_S.unsqueeze(0)).logits_BSV
        # The angles are float32, so that bf16 models and exports turn alike.
        torch.testing.assert_close(logits_BSV[0], plain(model, tokens_S), rtol=1e-5, atol=1e-6)


def test_a_token_changes_no_logits_before_it_and_some_after_it() -> None:
    model = decoder(tiny.config().model)
    tokens_BS = torch.randint(tiny.VOCABULARY, (2, 16))
    before = model(tokens_BS).logits_BSV
    changed = tokens_BS.clone()
    changed[:, 9] = (changed[:, 9] + 1) % tiny.VOCABULARY
    after = model(changed).logits_BSV
    torch.testing.assert_close(after[:, :9], before[:, :9], rtol=0, atol=1e-12)
    assert (after[:, 9:] - before[:, 9:]).abs().amax(-1).min() > 1e-9


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = decoder(tiny.config().model)
    tokens_BS = torch.randint(tiny.VOCABULARY, (3, 8))
    together = model(tokens_BS).logits_BSV
    alone = torch.cat([model(row.unsqueeze(0)).logits_BSV for row in tokens_BS])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("every", "layers"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_every_nth_layer_from_one_is_moe_and_reports_its_routing(every: int, layers: list[int]) -> None:
    config = tiny.config().model
    config.layers = 4
    assert config.moe is not None
    config.moe.every = every
    model = decoder(config)
    routing = model(torch.randint(tiny.VOCABULARY, (2, 8))).routing
    assert list(routing) == layers == moe_layers(config)
    assert all(r.tokens_E.sum() == 2 * 8 * config.moe.top_k for r in routing.values())


def test_tied_head_shares_the_embedding() -> None:
    config = tiny.config().model
    untied, _ = parameter_count(config)
    config.tie_embeddings = True
    assert parameter_count(config)[0] == untied - config.vocab_size * config.d_model
    logits_BSV = decoder(config)(torch.randint(tiny.VOCABULARY, (1, 4))).logits_BSV
    assert logits_BSV.shape == (1, 4, config.vocab_size)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    angle_SC = rotary_angles(12, 8, 10000.0, tiny.CPU).double()
    query, key = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    rotated = [rotate(x.expand(1, 1, 12, 8), angle_SC.cos(), angle_SC.sin())[0, 0] for x in (query, key)]
    products = rotated[0] @ rotated[1].T
    for a, b in itertools.product(range(8), repeat=2):
        torch.testing.assert_close(products[a, b], products[a + 4, b + 4], rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_region_of_a_parameter_starts_as_that_region_of_the_whole(
    data: st.DataObject, rows: int, columns: int, seed: int
) -> None:
    depth = data.draw(st.sampled_from([3, BLOCK // 4, BLOCK]))
    shape = (rows, columns, max(1, depth // columns))
    whole = initial("w", shape, begin=Start(std=0.5), seed=seed, start=(0, 0, 0), size=shape)
    start = tuple(data.draw(st.integers(0, n)) for n in shape)
    size = tuple(data.draw(st.integers(0, n - s)) for n, s in zip(shape, start, strict=True))
    region = initial("w", shape, begin=Start(std=0.5), seed=seed, start=start, size=size)
    assert region.equal(whole[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))])


def test_first_values_have_their_deviation_and_differ_by_name_and_seed() -> None:
    shape = (300, 400)
    values = {
        key: initial(key[0], shape, begin=Start(std=0.02), seed=key[1], start=(0, 0), size=shape)
        for key in itertools.product(("a", "b"), (0, 1))
    }
    for one, other in itertools.combinations(values.values(), 2):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.02
    for value in values.values():
        assert math.isclose(value.std().item(), 0.02, rel_tol=0.02)


def test_norms_start_with_one_biases_with_zero_and_ends_of_blocks_with_a_deviation_of_their_own() -> None:
    config = replace(tiny.config().model, init_std=0.3, init_attention_output_std=0.2, init_down_std=0.1, bias=True)
    config.norm, config.qk_norm = Norm.layer, True
    starts = {name: start_of(name, config) for name, _ in Decoder(config).named_parameters()}
    assert starts["layers.0.attention_norm.weight"] == starts["layers.1.attention.key_norm.weight"] == Start(value=1.0)
    assert starts["norm.weight"] == Start(value=1.0)
    zeros = ["norm.bias", "layers.0.attention.query.bias", "layers.1.moe.experts.up_bias_EF"]
    assert all(starts[name] == Start(value=0.0) for name in zeros)
    deviations = {name: start.std for name, start in starts.items() if start.value is None}
    assert {n for n, std in deviations.items() if std == 0.2} == {f"layers.{i}.attention.output.weight" for i in (0, 1)}
    ends = {"layers.0.feedforward.down.weight", "layers.1.moe.experts.down_EFD"}
    assert {name for name, std in deviations.items() if std == 0.1} == ends


def test_truncated_first_values_stay_within_their_bound() -> None:
    values = initial("w", (300, 400), begin=Start(std=0.02, truncate=1.5), seed=0, start=(0, 0), size=(300, 400))
    assert values.abs().max() <= 0.03
    assert values.abs().max() > 0.0295


def gpt() -> ModelConfig:
    config = replace(tiny.config().model, moe=None, kv_heads=4, bias=True, tie_embeddings=True)
    return replace(config, positions=Positions.learned, norm=Norm.layer, activation=Activation.gelu)


def plain_gpt(model: Decoder, tokens_S: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of one sequence through a decoder of GPT-2's shape, by the formulas."""
    config = model.config
    size = config.d_model // config.heads
    values = dict(model.named_parameters())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return scaled * values[f"{name}.weight"] + values[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ values[f"{name}.weight"].T + values[f"{name}.bias"]

    x_SD = values["embedding.weight"][tokens_S] + values["positions.weight"][: len(tokens_S)]
    future_SS = torch.ones(len(tokens_S), len(tokens_S)).triu(1).bool()
    for number in range(config.layers):
        layer = f"layers.{number}"
        h_SD = norm(x_SD, f"{layer}.attention_norm")
        query, key, value = (linear(h_SD, f"{layer}.attention.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in range(config.heads):
            h = slice(head * size, (head + 1) * size)
            score_SS = (query[:, h] @ key[:, h].T / math.sqrt(size)).masked_fill(future_SS, -math.inf)
            heads.append(score_SS.softmax(-1) @ value[:, h])
        x_SD = x_SD + linear(torch.cat(heads, -1), f"{layer}.attention.output")
        u_SF = linear(norm(x_SD, f"{layer}.feedforward_norm"), f"{layer}.feedforward.up")
        gelu_SF = 0.5 * u_SF * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u_SF + 0.044715 * u_SF**3)))
        x_SD = x_SD + linear(gelu_SF, f"{layer}.feedforward.down")
    return norm(x_SD, "norm") @ values["embedding.weight"].T


def test_logits_of_a_gpt_agree_with_the_formulas() -> None:
    model = decoder(gpt())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or name.endswith("norm.weight"):
                parameter.normal_(1 if "norm.weight" in name else 0, 0.3)
        tokens_S = torch.randint(tiny.VOCABULARY, (12,))
        logits_BSV = model(tokens_S.unsqueeze(0)).logits_BSV
        torch.testing.assert_close(logits_BSV[0], plain_gpt(model, tokens_S), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.2])
def test_dropout_of_a_sequence_is_the_same_wherever_it_lies_and_whenever(attention_dropout: float) -> None:
    config = replace(tiny.config().model, dropout=0.2, attention_dropout=attention_dropout)
    model = decoder(config)
    tokens_BS = torch.randint(tiny.VOCABULARY, (4, 12))
    key_B = keys(5, 3, range(40, 44))
    expected = model(tokens_BS, key_B=key_B).logits_BSV
    turned = torch.tensor([2, 0, 3, 1])
    found = model(tokens_BS[turned], key_B=key_B[turned]).logits_BSV
    torch.testing.assert_close(found, expected[turned], rtol=1e-10, atol=1e-12)
    alone = model(tokens_BS[1:2], key_B=key_B[1:2]).logits_BSV
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-10, atol=1e-12)
    for other in (keys(5, 4, range(40, 44)), keys(6, 3, range(40, 44)), keys(5, 3, range(41, 45))):
        assert not torch.allclose(model(tokens_BS, key_B=other).logits_BSV, expected)


def test_nothing_is_dropped_in_evaluation() -> None:
    config = replace(tiny.config().model, dropout=0.5, attention_dropout=0.5)
    model, tokens_BS = decoder(config).eval(), torch.randint(tiny.VOCABULARY, (2, 8))
    expected = decoder(tiny.config().model)(tokens_BS).logits_BSV
    found = model(tokens_BS, key_B=keys(0, 0, range(2))).logits_BSV
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_attention_with_its_weights_dropped_keeps_its_mean() -> None:
    config = replace(tiny.config().model, attention_dropout=0.3, layers=1, moe=None)
    model, tokens_BS = decoder(config), torch.randint(tiny.VOCABULARY, (1, 6)).expand(4000, 6)
    [layer] = model.layers
    hidden_BSD = layer.attention_norm(model.embedding(tokens_BS))  # type: ignore[operator,union-attr]
    context = model._context(tokens_BS, None, keys(0, 0, range(4000)))
    drawn_BSD = layer.attention(hidden_BSD, context)  # type: ignore[operator,union-attr]
    expected_BSD = layer.attention(hidden_BSD[:1], context._replace(key_B=None))  # type: ignore[operator,union-attr]
    error = drawn_BSD.std(0) / math.sqrt(4000)
    assert ((drawn_BSD.mean(0) - expected_BSD[0]).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("attention_dropout", [0.0, 0.2])
def test_documents_of_a_sequence_do_not_see_each_other(attention_dropout: float) -> None:
    """Rotary positions are differences, so a document reads alike wherever in the sequence it begins."""
    model = decoder(replace(tiny.config().model, attention_dropout=attention_dropout)).eval()
    tokens_BS = torch.randint(tiny.VOCABULARY, (2, 12))
    documents_BS = torch.tensor([[0] * 5 + [1] * 7, [7] * 3 + [8] * 8 + [9]])
    together = model(tokens_BS, documents_BS=documents_BS).logits_BSV
    for b, s, e in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 11), (1, 11, 12)):
        alone = model(tokens_BS[b : b + 1, s:e]).logits_BSV[0]
        torch.testing.assert_close(together[b, s:e], alone, rtol=1e-5, atol=1e-6)  # angles are float32


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 70), vocabulary=st.integers(2, 40), ignored=st.floats(0, 1), rows=st.sampled_from([8, 64]))
def test_cross_entropy_in_pieces_is_that_of_all_logits(tokens: int, vocabulary: int, ignored: float, rows: int) -> None:
    from trainer.model import head

    x_BSD = torch.randn(2, tokens, 8, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(vocabulary, 8, dtype=torch.float64, requires_grad=True)
    targets_BS = torch.randint(vocabulary, (2, tokens))
    targets_BS[torch.rand(2, tokens) < ignored] = IGNORED
    before, head.ROWS = head.ROWS, rows
    try:
        total, each_B = cross_entropy(x_BSD, weight_VD, targets_BS)
    finally:
        head.ROWS = before
    loss_BS = torch.nn.functional.cross_entropy(
        (x_BSD @ weight_VD.T).flatten(0, 1), targets_BS.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(2, tokens)
    torch.testing.assert_close(total, loss_BS.sum())
    torch.testing.assert_close(each_B, loss_BS.sum(1).detach())
    ours = torch.autograd.grad(total * 0.7, (x_BSD, weight_VD))
    theirs = torch.autograd.grad(loss_BS.sum() * 0.7, (x_BSD, weight_VD))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)
