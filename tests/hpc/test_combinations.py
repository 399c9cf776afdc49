"""Every combination of a sweep is what Hydra composes for it by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc import combinations
from hpc.compose import CONF, CONFIG_NAME, opened, refused, register, typed
from hpc.config import Config
from hpc.errors import Refused


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def composed(words: list[str]) -> object:
    from hydra import compose

    return compose(CONFIG_NAME, words)


class Counting:
    """Hydra's composing, counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, words: list[str]) -> object:
        self.calls += 1
        return composed(words)


def is_group(key: str) -> bool:
    return bool(GlobalHydra.instance().config_loader().get_group_options(key))


def swept(*words: str) -> tuple[list[list[str]], list[Config], int]:
    """The combinations, their configurations, and how often Hydra was asked."""
    found = combinations.expand(OverridesParser.create().parse_overrides(opened(list(words))))
    compose = Counting()
    return found, list(combinations.compose(found, compose, is_group)), compose.calls


def test_a_thousand_values_are_composed_once() -> None:
    found, configs, calls = swept("cluster=noctua2", "optim.lr=1e-4,3e-4", "train.seed=range(500)")
    assert (len(found), len(configs), calls) == (1000, 1000, 1)
    assert {(c.optim.lr, c.train.seed) for c in configs} == {(lr, s) for lr in (1e-4, 3e-4) for s in range(500)}
    assert all(config.cluster is configs[0].cluster for config in configs)


def test_no_two_are_the_same_object() -> None:
    _, configs, _ = swept("train.seed=1,1,2")
    assert len({id(config) for config in configs}) == 3
    configs[0].cluster = None  # type: ignore[assignment]
    assert all(config.cluster is not None for config in configs[1:])


def test_what_refers_to_a_value_follows_it() -> None:
    _, configs, calls = swept("cluster.data=/a,/b", "data.corpus.vocab_size=4096,8192")
    assert calls == 1
    assert [c.data.path for c in configs] == ["/a/debian_guide"] * 2 + ["/b/debian_guide"] * 2
    assert [c.model.vocab_size for c in configs] == [4096, 8192] * 2


def test_each_choice_of_groups_is_composed_once() -> None:
    _, configs, calls = swept("experiment=tiny_moe,olmoe_1b_7b_tiny", "parallel=fsdp,deepspeed", "train.seed=1,2,3")
    assert (len(configs), calls) == (12, 4)


WORDS = [
    "cluster=local,noctua2",
    "experiment=tiny_moe,lola_v1_tiny",
    "parallel=fsdp,single",
    "cluster.data=/a,/b",
    "cluster.name=x,y",
    "data.corpus.vocab_size=4096,8192",
    "data.mixture.weights={de: 1},{fr: 2}",
    "optim.lr=1,2e-3",
    "optim.min_lr='${optim.lr}',1e-5",
    "optim.schedule=cosine,linear",
    "model.moe=null",
    "model.moe.top_k=1,2",
    "job.time=null,1:00:00",
    "job.nodes=1,2",
    "train.checkpoint.every_steps=10,auto",
    "train.sample_prompt='a b',c",
    "name=a,b",
    "+job.nodes=1",
    "~job.grace",
]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
def test_all_are_what_hydra_makes_of_them(words: list[str]) -> None:
    parsed = combinations.expand(OverridesParser.create().parse_overrides(opened(words)))[:5]
    try:
        expected = [typed(composed(list(one))) for one in parsed]
    except Exception as error:
        with pytest.raises(type(error)) as found:
            list(combinations.compose(parsed, composed, is_group))
        assert str(refused(found.value)) == str(refused(error))
    else:
        assert list(combinations.compose(parsed, composed, is_group)) == expected


@pytest.mark.parametrize("words", [("optim.lr=1,x",), ("optim.lrr=1,2",), ("train.seed=1,???",), ("job.nodes=1,1.5",)])
def test_a_mistake_in_one_combination_is_told_as_if_it_stood_alone(words: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as alone:
        for one in combinations.expand(OverridesParser.create().parse_overrides(list(words))):
            try:
                typed(composed(list(one)))
            except Exception as error:
                raise refused(error) from error
    with pytest.raises(Exception) as together:
        swept(*words)
    assert str(refused(together.value)) == str(alone.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${train.tokens}", {"train.tokens"}),
        ("${cluster.data}/x-${name}", {"cluster.data", "name"}),
        ("${oc.env:HPC_RUNS,runs}", set()),
        ("${oc.env:HPC_RUNS,${cluster.runs}}", {"cluster.runs"}),
        ("${oc.select:train.tokens,1}", None),
        ("${.tokens}", None),
        ("${a[0]}", None),
        ("plain", set()),
    ],
)
def test_what_a_value_is_computed_from(text: str, names: set[str] | None) -> None:
    assert combinations._names(text) == names
