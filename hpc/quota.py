"""How much of a quota is used, by what ``quota -w`` and ``lfs quota`` print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

NEARLY = 0.9  # of a quota, from which on people are told


@dataclass(frozen=True)
class Use:
    """What a user, or a group, has on a file system, beside what is allowed."""

    filesystem: str
    what: str  # room or files
    used: int  # KiB, or files
    limit: int
    over: bool = False  # the program says so: a softer limit may be passed before this one

    @property
    def share(self) -> float:
        return self.used / self.limit

    def __str__(self) -> str:
        if self.what == "files":
            return f"{self.used:,} of {self.limit:,} files on {self.filesystem}"
        return f"{self.used / 2**20:,.1f} of {self.limit / 2**20:,.1f} GiB on {self.filesystem}"


def uses(text: str) -> Iterator[Use]:
    """All that have a limit.

    A line has the file system's name, then twice (for room and for files) what is used, the quota, the limit and, only
    where it is over, a time of grace. 0 is no limit. A long name may stand on a line of its own.
    """
    name = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 and not _is_number(words[0]):
            name = words[0]
            continue
        if words and not _is_number(words[0]):
            name, words = words[0], words[1:]
        numbers = [word for word in words if _is_number(word)]
        for what, begin in (("room", 0), ("files", 3)):
            if len(numbers) < begin + 3:
                break
            used, soft, hard = (int(word.rstrip("*")) for word in numbers[begin : begin + 3])
            if soft or hard:
                yield Use(name, what, used, hard or soft, over=numbers[begin].endswith("*"))


def _is_number(word: str) -> bool:
    return word.isascii() and word.rstrip("*").isdecimal()
