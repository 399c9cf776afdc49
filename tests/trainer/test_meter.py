"""Times, memory and MFU."""

from __future__ import annotations

import time

import pytest
import torch

from trainer.config import ModelConfig
from trainer.meter import Meter, Speed

TINYLLAMA = ModelConfig(
    vocab_size=32000, d_model=2048, layers=22, heads=32, kv_heads=4, d_ff=5632, max_seq_len=2048
)  # fmt: skip


def test_tinyllama_at_24000_tokens_a_second_reaches_56_percent_of_an_a100() -> None:
    # Its authors' own figures: https://github.com/jzhang38/TinyLlama
    found = Speed(TINYLLAMA, 2048, 312e12).of(24_000)
    assert round(found["mfu"], 2) == 0.56
    assert found["flops_per_s"] == pytest.approx(0.56 * 312e12, rel=0.01)


def test_without_a_known_peak_there_is_no_mfu() -> None:
    assert Speed(TINYLLAMA, 2048, None).of(10).keys() == {"tokens_per_s", "flops_per_s"}


def test_parts_add_up_and_are_told_once() -> None:
    meter = Meter(torch.device("cpu"))
    for _ in range(2):
        with meter.part("forward"):
            time.sleep(0.01)
    with meter.part("data", host=True):
        pass
    found = meter.read()
    assert found.keys() == {"forward_s", "data_s"}
    assert found["forward_s"] >= 0.02 and found["data_s"] < 0.01
    assert meter.read() == {}


def test_peak_memory_never_falls() -> None:
    meter = Meter(torch.device("cpu"))
    before = meter.peak_memory_gib()
    held = torch.ones(2**25)  # 128 MiB
    during = meter.peak_memory_gib()
    del held
    assert 0 < before <= during == pytest.approx(meter.peak_memory_gib(), abs=0.01)
