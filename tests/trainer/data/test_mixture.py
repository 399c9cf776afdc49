"""What a mixture means for the sources of a folder, and what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig, MixtureConfig, Packing, Phase
from trainer.data.mixture import Part, drawn_sources, first_samples, kept_phases, parts, problems

TOKENS = {"de": 4000, "de_news": 900, "en": 9000, "zh": 16}


def data(**fields: object) -> DataConfig:
    packing = fields.pop("packing", Packing.stream)
    return DataConfig(path="folder", seq_len=16, packing=packing, mixture=MixtureConfig(**fields))  # type: ignore


def planned(config: DataConfig, run: int = 1000) -> list[Part]:
    samples = {name: TOKENS[name] // 16 for name in drawn_sources(config, TOKENS)}
    return parts(config, samples=samples, tokens=TOKENS, run=run)


def said(config: DataConfig) -> list[str]:
    return [str(problem) for problem in problems(TOKENS, config)]


def test_without_weights_sources_are_drawn_by_their_size() -> None:
    [part] = planned(data())
    assert part == Part(0, {"de": 250, "de_news": 56, "en": 562, "zh": 1}, epoch=869)


def test_weights_are_taken_as_written_and_what_is_not_named_is_left_out() -> None:
    config = data(weights={"en": 0.3, "de": 0.1, "de_news": 0})
    assert drawn_sources(config, TOKENS) == ["de", "en"]
    assert planned(config) == [Part(0, {"de": 1, "en": 3})]


def test_a_pattern_gives_its_weight_to_each_source_that_is_not_named() -> None:
    [part] = planned(data(weights={"*": 1, "de*": 7, "en": 2.5, "zh": 0}))
    assert part.weights == {"de": 2, "de_news": 2, "en": 5}


def test_temperature_flattens_what_size_alone_would_give() -> None:
    [part] = planned(data(temperature=2))
    assert part.weights["en"] / part.weights["de"] == pytest.approx((9000 / 4000) ** 0.5)
    [flat] = planned(data(temperature=1e9))
    assert flat.weights["zh"] / flat.weights["en"] == pytest.approx(1)
    [sharp] = planned(data(temperature=0.01))
    assert min(sharp.weights.values()) > 0


@given(
    tokens=st.integers(1, 10**13),
    ends=st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True).map(sorted),
)
def test_phases_begin_at_the_nearest_sample_to_their_share_of_the_run(tokens: int, ends: list[int]) -> None:
    phases = [Phase(until=end / 100, weights={"de": 1}) for end in ends] + [Phase(until=1, weights={"en": 1})]
    firsts = [part.first for part in planned(data(phases=phases), run=tokens)]
    assert firsts[0] == 0
    for first, end in zip(firsts[1:], ends, strict=True):
        assert abs(100 * first - end * tokens) <= 50


def test_a_legal_mixture_has_no_problem() -> None:
    assert said(data()) == []
    assert said(data(weights={"de": 1, "z*": 0})) == []
    assert said(data(phases=[Phase(0.5, {"de": 1}), Phase(1, {"*": 1})])) == []


def test_an_unknown_source_is_named_with_the_nearest() -> None:
    assert said(data(weights={"de_new": 2.0, "en": 1})) == [
        "data.mixture.weights=de_new: no such source; the data has de, de_news, en, zh. Try: de_news in place of de_new"
    ]
    [problem] = said(data(phases=[Phase(0.5, {"en": 1}), Phase(1, {"fr*": 1, "en": 1})]))
    assert problem.startswith("data.mixture.phases[1].weights=fr*: no such source")


def test_a_source_that_is_too_small_for_a_sequence_is_told() -> None:
    [problem] = said(data(weights={"zh": 1, "en": 1}))
    assert problem.startswith("data.mixture.weights.zh=1: this source has 16 tokens, too few for one sequence of")
    assert said(data(weights={"zh": 1, "en": 1}, packing=Packing.padded)) == []
    [problem] = said(data(weights={"z*": 1}))
    assert "no source that it draws has more than data.seq_len=16 tokens" in problem


def test_a_sequence_longer_than_all_text_is_told_with_what_fits() -> None:
    [problem] = problems({"de": 10, "en": 12}, data())
    assert str(problem) == (
        "data.seq_len=16: the largest source of folder has 12 tokens, and must have more than data.seq_len. "
        "Try: data.seq_len=11"
    )


@given(
    starts=st.lists(st.integers(1, 10**12), min_size=1, max_size=5, unique=True).map(sorted),
    more=st.integers(1, 10**12),
)
def test_phases_can_be_kept_where_they_begin_in_a_run_of_any_length(starts: list[int], more: int) -> None:
    phases = [Phase(until=1, weights={"de": 1})] * (len(starts) + 1)
    run = starts[-1] + more
    kept = kept_phases(phases, [0, *starts], run)
    assert first_samples(kept, run) == [0, *starts]
    assert kept[-1].until == 1 and all(0 < phase.until <= 1 for phase in kept)
