"""Times as Slurm writes them, and what a request asks for when it leaves things to the cluster."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.compose import compose
from hpc.errors import Refused
from hpc.request import clock, resolve, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("02:00:00", 7200),
        ("1-00", 86400),
        ("1-12:30", 131400),
        ("7-00:00:00", 604800),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
    ],
)
def test_slurm_times_are_read_as_slurm_reads_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "2h", "1:2:3:4", "-5", "1-", "a", "1.5"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text)


@given(st.integers(0, 400 * 86400))
def test_clock_is_read_back(duration: int) -> None:
    assert seconds(clock(duration)) == duration


def test_a_request_takes_the_whole_cluster_unless_it_says_less() -> None:
    request = resolve(compose(["cluster=noctua2", "job=hello"]))
    assert (request.nodes, request.ranks_per_node, request.world_size) == (24, 4, 96)
    assert request.cpus_per_rank == 32
    assert request.time == 2 * 86400


def test_local_is_two_ranks_without_a_limit() -> None:
    request = resolve(compose(["job=hello"]))
    assert (request.nodes, request.ranks_per_node, request.time) == (1, 2, math.inf)


def test_an_unknown_partition_names_the_known_ones() -> None:
    with pytest.raises(Refused, match=r"job\.partition=cpu.*Allowed: gpu"):
        resolve(compose(["cluster=noctua2", "job.partition=cpu"]))
