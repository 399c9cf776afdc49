"""Profiles asked for through files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks

from trainer import parallel, profile
from trainer.profile_request import Request, answer, answered, ask, take, withdraw
from trainer.train import train


def test_a_request_is_taken_once_and_answered(tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    assert take(folder) is None
    request = ask(folder, steps=3, rank=1)
    with pytest.raises(FileExistsError):
        ask(folder, steps=1, rank=0)
    assert take(folder) == request
    assert take(folder) is None
    assert not withdraw(folder, request)
    assert answered(folder, request) is None
    answer(folder, request, {"trace": "x"})
    assert answered(folder, request) == {"trace": "x"}
    again = ask(folder, steps=1, rank=0)
    assert again.number > request.number
    assert withdraw(folder, again) and take(folder) is None


@given(st.binary(max_size=60), st.sampled_from(["7.request", "x.request", "-1.request", ".request", "7.requested"]))
def test_what_is_no_request_is_no_request(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    folder = tmp_path_factory.mktemp("profile")
    (folder / name).write_bytes(content)
    found = take(folder)
    assert found is None or (name == "7.request" and 0 < found.steps <= 100)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_next_steps_of_the_rank_are_profiled(ranks: Ranks, tmp_path: Path, rank: int) -> None:
    results = ranks.run(profiled, tmp_path, rank, world_size=2)
    request = results[0][0]
    found = answered(tmp_path / "profile", request)
    assert found is not None
    assert (found["last_step"] - found["first_step"], found["rank"], found["device"]) == (1, rank, "cpu")
    assert found["top"][0]["ms_per_step"] > 0 and sum(row["share"] for row in found["top"]) <= 1.0
    trace = json.loads(gzip.decompress((tmp_path / "profile" / found["trace"]).read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::mm" in names
    left = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert left == sorted([f"{request.number}.json", found["trace"]])
    events = [[e for e in memory.events if e["kind"] == "profile"] for _, memory in results]
    assert [len(each) for each in events] == [1 - rank, rank]
    assert events[rank][0]["file"] == found["trace"]


def profiled(folder: Path, rank: int) -> tuple[Request | None, tiny.Memory]:
    profile.LOOK = 0.0
    config, memory = tiny.config(), tiny.Memory()
    engine = parallel.build(config, tiny.CPU)
    request: Request | None = None

    class Asking(tiny.Tokens):
        def batch(self, indices: Any) -> Any:
            nonlocal request
            if engine.rank == 0 and request is None and min(indices) >= 3 * 8:
                request = ask(folder / "profile", steps=2, rank=rank)
            return super().batch(indices)

    data = Asking()
    train(config, engine, dataset=data, checkpoints=folder / "c", stop=lambda: None, record=memory, folder=folder)
    return request, memory


def test_a_rank_that_is_not_there_is_an_answer(ranks: Ranks, tmp_path: Path) -> None:
    results = ranks.run(profiled, tmp_path, 2, world_size=2)
    found = answered(tmp_path / "profile", results[0][0])
    assert found == {"error": "there is no rank 2, only 0 to 1"}
