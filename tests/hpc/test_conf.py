"""Every choice in conf/ is a valid one, and the published models have their published sizes."""

from __future__ import annotations

import pytest

from hpc.compose import CONF, compose
from trainer.size import parameter_count

CHOICES = [
    f"{group}={file.stem}"
    for group in ("data", "model", "optim", "parallel", "experiment")
    for file in sorted((CONF / group).glob("*.yaml"))
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    compose([choice])


@pytest.mark.parametrize(("model", "parameters"), [("llammlein_120m", 124_766_976), ("llammlein_1b", 1_100_310_528)])
def test_published_models_have_their_published_parameters(model: str, parameters: int) -> None:
    assert parameter_count(compose([f"model={model}"]).model) == (parameters, parameters)


def test_a_model_of_ones_own_data_takes_its_vocabulary() -> None:
    assert compose(["data=django_po", "data.corpus.vocab_size=4096"]).model.vocab_size == 4096
