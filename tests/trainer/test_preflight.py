"""What is found before training: unfit devices, another folder, another clock; by real ranks where ranks matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.ranks import Ranks
from trainer.preflight import SKEW, PreflightError, Report, judge, judge_second

GOOD = [Report(rank, f"n{rank // 2}", free=0.99, matmul_s=0.01) for rank in range(4)]
NODES = [report.node for report in GOOD]


def test_fit_nodes_are_fit() -> None:
    assert judge(GOOD) == []
    assert judge([Report(0, "n0", matmul_s=0.1), Report(1, "n1", matmul_s=9.0)]) == []  # CPUs


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error": "RuntimeError: CUDA error: uncorrectable ECC error"}, "ECC"),
        ({"free": 0.5}, "50% of its GPU's memory is free"),
        ({"matmul_s": 0.05}, "5.0 times as long"),
    ],
)
def test_an_unfit_device_names_its_node(changed: dict[str, object], words: str) -> None:
    ((node, said),) = judge([*GOOD[:3], replace(GOOD[3], **changed)])
    assert node == "n1"
    assert words in said


def test_another_folder_and_another_clock_name_their_nodes() -> None:
    answers = {1: (100.0, "token"), 2: (100.0, ""), 3: (100.0 + SKEW + 2, "token")}
    found = judge_second(answers, NODES, "token", 99.5, 100.5)
    assert [node for node, _ in found] == ["n1", "n1"]
    assert "run's folder" in found[0][1]
    assert "clock differs by +8 s" in found[1][1]
    assert judge_second({1: (100.0, "token")}, NODES, "token", 99.5, 100.5) == []


def report_to_each_other(folder: Path, fault: str) -> list[str]:
    import time

    import torch
    import torch.distributed as dist
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    from trainer import preflight

    rank = dist.get_rank()
    seen = folder / f"seen-by-{rank}" if fault == "folder" and rank == 2 else folder / "seen"
    seen.mkdir(exist_ok=True)
    preflight.REPORTS = 5.0
    if fault == "device" and rank == 2:

        def broken(device: torch.device) -> float:
            raise ArithmeticError("a product of ones gave 3")

        preflight._matmul = broken
    if rank == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (folder / "port.tmp").write_text(str(store.port))
        (folder / "port.tmp").rename(folder / "port")
    while not (folder / "port").exists():
        time.sleep(0.01)
    if rank:
        store = TCPStore("127.0.0.1", int((folder / "port").read_text()), is_master=False)
    nodes = ["n0", "n0", "n1"]
    try:
        preflight.report(store, rank=rank, world_size=3, nodes=nodes, device=torch.device("cpu"), folder=seen)
    except PreflightError as error:
        return error.nodes
    preflight.reduce(torch.device("cpu"))
    return []


@pytest.mark.parametrize("fault", ["", "folder", "device"])
def test_every_rank_learns_which_node_is_unfit(ranks: Ranks, tmp_path: Path, fault: str) -> None:
    """Also those that ask late: rank 0, with which the store ends, leaves last."""
    assert ranks.run(report_to_each_other, tmp_path, fault, world_size=3) == [["n1"] if fault else []] * 3
