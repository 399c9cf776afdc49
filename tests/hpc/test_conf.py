"""Every choice in conf/ is a valid one."""

from __future__ import annotations

import pytest

from hpc.compose import CONF, compose

CHOICES = [
    f"{group}={file.stem}"
    for group in ("data", "model", "optim", "parallel", "experiment")
    for file in sorted((CONF / group).glob("*.yaml"))
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    compose([choice])


def test_a_model_of_ones_own_data_takes_its_vocabulary() -> None:
    assert compose(["data=django_po", "data.corpus.vocab_size=4096"]).model.vocab_size == 4096
