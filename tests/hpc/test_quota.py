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


@pytest.mark.parametrize(
    "text", ["", "Disk quotas for user alice (uid 1000): none\n", "quota: error 5 while reading\n"]
)
def test_nothing_is_made_of_nothing(text: str) -> None:
    assert not list(uses(text))


@given(st.text(alphabet="0123456789* ab/\n-\t\u0663"))
def test_whatever_is_printed_is_survived(text: str) -> None:
    assert all(use.limit > 0 and use.share >= 0 for use in uses(text))
