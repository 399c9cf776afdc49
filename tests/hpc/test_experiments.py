"""The published runs: each is legal on its own cluster and gives its script; tiny variants differ in size alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.check import problems
from hpc.cli import main
from hpc.compose import CONF, compose
from hpc.request import resolve
from tests.hpc.test_script import same_as_golden
from trainer.config import TrainConfig, accumulation

PUBLISHED = {  # cluster, ranks, tokens of a step, passes of a step, steps
    "lola_v1": ("noctua2", 96, 1_572_864, 1, 635_783),
    "llammlein_120m": ("l40_16x2", 32, 2_097_152, 4, 455_135),
    "llammlein_1b": ("a100_8x8", 64, 2_097_152, 2, 1_430_512),
    "olmoe_1b_7b": ("h100_32x8", 256, 4_194_304, 1, 1_223_803),
    "linly_7b": ("a100_4x8", 32, 393_216, 1, 300_000),
    "linly_13b": ("a100_4x8", 32, 393_216, 1, 300_000),
    "linly_33b": ("a100_4x8", 32, 393_216, 1, 300_000),
}

# What a tiny variant may say otherwise than the run that it stands for: sizes, counts, and what follows from them.
SIZES = {
    *("model.vocab_size", "model.d_model", "model.layers", "model.heads", "model.kv_heads", "model.d_ff"),
    *(
        "model.max_seq_len",
        "model.init_std",
        "model.init_attention_output_std",
        "model.init_down_std",
        "model.moe.d_ff",
    ),
    "model.moe.balance_loss",  # a mean over layers, where they are summed here
    *("data.path", "data.seq_len", "data.mixture.phases"),
    *("optim.lr", "optim.min_lr", "optim.warmup_tokens", "optim.warmup_steps", "optim.decay_tokens"),
    *("parallel.micro_batch", "parallel.expert_parallel"),
    *("train.tokens", "train.batch_tokens", "train.sample_prompt", "train.loss_scale.window"),
    *("train.checkpoint.every_steps", "train.checkpoint.keep_every"),
    *("train.evaluate.every_steps", "train.evaluate.samples"),
}


def test_there_is_an_experiment_and_a_tiny_one_for_each_published_run() -> None:
    names = {file.stem for file in (CONF / "experiment").glob("*.yaml")}
    assert names == {*PUBLISHED, *(f"{name}_tiny" for name in PUBLISHED), "tiny_moe"}


def steps_of(train: TrainConfig) -> int:
    return -(-train.tokens // train.batch_tokens)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_is_legal_on_its_own_cluster(name: str) -> None:
    config = compose([f"experiment={name}"])
    request = resolve(config)
    assert problems(config, request) == []
    passes = accumulation(config.train, config.data, config.parallel, request.world_size)
    steps = steps_of(config.train)
    assert (config.cluster.name, request.world_size, config.train.batch_tokens, passes, steps) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_dry_run_of_a_published_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_HOME", str(tmp_path))  # where nothing is emulated
    places = ["cluster.python=/shared/venv/bin/python", "cluster.runs=/shared/runs", "cluster.data=/shared/data"]
    assert main(["submit", "--dry-run", f"experiment={name}", *places]) == 0
    told = capsys.readouterr()
    assert "data.path=/shared/data/" in told.err  # the only thing that it could not run without
    same_as_golden(f"{name}.sh", told.out)


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
@pytest.mark.parametrize("name", [name for name in PUBLISHED if "lola" in name or "1b" in name])
def test_the_engine_changes_by_one_override(name: str, engine: str) -> None:
    config = compose([f"experiment={name}", f"parallel={engine}"])
    assert config.parallel.engine.name == engine
    assert problems(config, resolve(config)) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tiny_variant_is_the_same_but_in_size(name: str) -> None:
    full, tiny = (_values(compose([f"experiment={n}"])) for n in (name, f"{name}_tiny"))
    differing = {path for path in full.keys() | tiny.keys() if full.get(path) != tiny.get(path)}
    assert {path for path in differing if path.startswith("model.")} >= {"model.d_model", "model.layers"}
    trained = {p for p in differing if not p.startswith(("cluster.", "data.corpus.", "name"))}
    assert trained <= SIZES


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tiny_variant_is_legal_on_this_machine(name: str) -> None:
    config = compose([f"experiment={name}_tiny"])
    assert problems(config, resolve(config)) == []
    assert steps_of(config.train) <= 128
    warmup = config.optim.warmup_tokens or (config.optim.warmup_steps or 0) * config.train.batch_tokens
    assert 0 < warmup <= 0.1 * config.train.tokens


def _values(config: Any) -> dict[str, Any]:
    return dict(_leaves(dataclasses.asdict(config), ""))


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
