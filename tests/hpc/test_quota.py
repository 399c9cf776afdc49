"""What quota programs print, and what of it people are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.quota import uses

QUOTA = """Disk quotas for user alice (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
     /dev/sda1  1050000*  1000000  1100000   6days    1234       0       0
nfs:/home    10  0  0    1234  1000  2000
"""
LUSTRE = """Disk quotas for usr alice (uid 1000):
      Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
/scratch/a/very/long/name/of/a/project
                 1073741824  0 2147483648       -  900000  900000 1000000       -
uid 1000 is using default block quota setting
"""


def test_each_limit_is_read_and_none_where_there_is_none() -> None:
    room, files = uses(QUOTA)
    assert (room.filesystem, room.what, room.used, room.limit, room.over) == (
        "/dev/sda1",
        "room",
        1050000,
        1100000,
        True,
    )
    assert (files.filesystem, files.what, files.share) == ("nfs:/home", "files", 1234 / 2000)
    assert str(files) == "1,234 of 2,000 files on nfs:/home"
    room, files = uses(LUSTRE)
    assert room.filesystem == "/scratch/a/very/long/name/of/a/project" and room.share == 0.5
    assert str(room).startswith("1,024.0 of 2,048.0 GiB") and files.share == 0.9 and not files.over


def figures(text: str) -> list[tuple[str, int, int, bool]]:
    return [(use.what, use.used, use.limit, use.over) for use in uses(text)]


@pytest.mark.parametrize(
    ("line", "room", "files"),
    [
        ("[1048576]  100  2097152  -  12345  1000000 1100000  -", (1048576, 2097152, False), (12345, 1100000, False)),
        ("[1048576]*  100  200  6d23h59m30s  [7]  8  9  -", (1048576, 200, True), (7, 9, False)),
        ("[1048576*]  100  [200]  expired  7*  8  9  none", (1048576, 200, True), (7, 9, True)),
        ("5  -  10  -  6  -  20  -", (5, 10, False), (6, 20, False)),
        ("5*  10  20  6days  6*  10  20  02:30", (5, 20, True), (6, 20, True)),
        ("5  10  20  6*  10  20  02:30", (5, 20, False), (6, 20, True)),
    ],
)
def test_figures_are_read_by_their_columns(line: str, room: tuple[int, ...], files: tuple[int, ...]) -> None:
    assert figures(f"/scratch {line}\n") == [("room", *room), ("files", *files)]


def test_a_figure_that_cannot_be_read_is_not_taken_for_another() -> None:
    assert figures("/scratch 1.5G 10G 11G - 5 6 7 -\nSome errors happened when getting quota info.\n") == []
    assert figures("/scratch 5 10 20 - ? 6 7 -\n") == [("room", 5, 20, False)]


@pytest.mark.parametrize(
    "text", ["", "Disk quotas for user alice (uid 1000): none\n", "quota: error 5 while reading\n"]
)
def test_nothing_is_made_of_nothing(text: str) -> None:
    assert not list(uses(text))


@given(st.text(alphabet="0123456789*[] ab/\n-\t\u0663"))
def test_whatever_is_printed_is_survived(text: str) -> None:
    assert all(use.limit > 0 and use.share >= 0 for use in uses(text))
