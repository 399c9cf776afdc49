"""Mistakes in overrides: full path, what is allowed, what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hpc.compose import CONF, compose
from hpc.errors import Refused

MISTAKES = [
    (["optim.lrr=1"], "optim.lrr", "Nearest: optim.lr"),
    (["optim.lr=abc"], "optim.lr", "a number"),
    (["train.precision=fp8"], "train.precision", "fp32, bf16"),
    (["cluster=noctua"], "cluster=noctua", "Try: cluster=noctua2"),
    (["clustr=noctua2"], "clustr", "Nearest: cluster"),
    (["nodes=3"], "nodes", "Nearest: job.nodes"),
    (["+train.seeds=3"], "train.seeds", "Nearest: train.seed"),
    (["model.moe.top_k=null"], "model.moe.top_k", "a whole number"),
    (["cluster=noctua2", "cluster.partitions.gpu.max_tim=1"], "cluster.partitions.gpu.max_tim", "max_time"),
    (["optim.lr"], "optim.lr", "path.to.value=1"),
    (["model=["], "model=[", "quote"),
]


@pytest.mark.parametrize(("overrides", "given_part", "helpful_part"), MISTAKES)
def test_a_mistake_is_named_with_what_to_type(overrides: list[str], given_part: str, helpful_part: str) -> None:
    with pytest.raises(Refused) as refused:
        compose(overrides)
    assert given_part in str(refused.value)
    assert helpful_part in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_yaml_file_composes(file: Path) -> None:
    typed = ["job.sweep=there"] if file.stem == "search" else []  # which nobody types: its sweep asks for it
    config = compose([f"{file.parent.name}={file.stem}", *typed])
    assert config.cluster.name


@pytest.mark.parametrize("file", sorted((CONF / "cluster").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_cluster_is_named_as_its_file(file: Path) -> None:
    assert compose([f"cluster={file.stem}"]).cluster.name == file.stem


def test_a_yaml_file_with_an_unknown_key_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("lr: 0.1\nlearning_rat: 0.2\n")
    with pytest.raises(Refused, match=r"optim\.learning_rat"):
        compose(["optim=mine", f"hydra.searchpath=[file://{tmp_path}]"])


def test_what_is_resolved_can_be_read_back(tmp_path: Path) -> None:
    from hpc.runs import load_config

    config = compose(["cluster=noctua2", "job=hello", "job.seconds=3"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert load_config(tmp_path) == config


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_no_text_makes_a_traceback(text: str) -> None:
    try:
        compose([text])
    except Refused as refused:
        assert str(refused)


def test_keys_of_ones_own_may_be_typed_where_a_mapping_takes_them() -> None:
    config = compose(["data.mixture.weights={de: 2, en: 1}", "cluster.environment.NCCL_DEBUG=INFO"])
    assert config.data.mixture.weights == {"de": 2.0, "en": 1.0}
    assert config.cluster.environment["NCCL_DEBUG"] == "INFO"
