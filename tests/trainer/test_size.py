"""The sizes of the published models, by formula and as the decoder is built, and the arithmetic of a token."""

from __future__ import annotations

import pytest
import torch

from hpc.compose import compose
from trainer.config import ModelConfig
from trainer.model import Decoder
from trainer.size import flops_per_token, parameter_count

PUBLISHED = {  # total, active
    "lola": (7_459_827_712, 1_418_186_752),
    "lola_dropless": (7_459_827_712, 1_418_186_752),
    "llammlein_120m": (124_766_976, 124_766_976),
    "llammlein_1b": (1_100_310_528, 1_100_310_528),
    "olmoe_1b_7b": (6_919_161_856, 1_282_017_280),
    "llama_7b": (6_738_415_616, 6_738_415_616),
    "llama_13b": (13_015_864_320, 13_015_864_320),
    "llama_33b": (32_528_943_616, 32_528_943_616),
    "llama_65b": (65_285_660_672, 65_285_660_672),
}


def built(model: ModelConfig) -> tuple[int, int]:
    """Total and active parameters of the decoder itself, without memory."""
    with torch.device("meta"):
        decoder = Decoder(model)
    total = sum(p.numel() for p in decoder.parameters())
    experts = sum(p.numel() for name, p in decoder.named_parameters() if ".experts." in name)
    if model.moe is None:
        return total, total
    return total, total - experts + experts * model.moe.top_k // model.moe.experts


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_their_published_parameters(model: str) -> None:
    config = compose([f"model={model}"]).model
    assert parameter_count(config) == built(config) == PUBLISHED[model]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=tiny_moe"],
        ["model=tiny_dense", "model.qk_norm=true"],
        ["model=tiny_moe", "model.moe.shared_experts=2", "model.moe.every=1"],
        ["model=tiny_moe", "model.activation=gelu", "model.norm=layer", "model.positions=learned"],
    ],
)
def test_the_formula_counts_what_is_built(overrides: list[str], bias: bool) -> None:
    config = compose([*overrides, f"model.bias={str(bias).lower()}"]).model
    assert parameter_count(config) == built(config)


def test_throughput_of_tinyllama_is_56_percent_of_an_a100() -> None:
    """24,000 tokens/s at a length of 2048 on a GPU of 312 TFLOP/s: the published figure of the same shape."""
    config = compose(["model=llammlein_1b"]).model
    assert 24_000 * flops_per_token(config, 2048) / 312e12 == pytest.approx(0.563, abs=0.001)


def test_throughput_of_lola_is_9_percent_of_an_a100() -> None:
    config = compose(["model=lola"]).model
    assert 2_954 * flops_per_token(config, 2048) / 312e12 == pytest.approx(0.092, abs=0.001)
