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

    A line has the file system's name, then twice (for room and for files) what is used, the quota, the limit and a
    time of grace, which quota leaves out where nothing is over. 0 and - are no limit. Brackets are around what a part
    of Lustre did not answer for. A long name may stand on a line of its own.
    """
    name = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 and _number(words[0]) is None:
            name = words[0]
            continue
        if words and _number(words[0]) is None:
            name, words = words[0], words[1:]
        for what in ("room", "files"):
            used, soft, hard = (_number(word) for word in [*words, "", "", ""][:3])
            if used is None or soft is None or hard is None:
                break
            if soft or hard:
                yield Use(name, what, used, hard or soft, over="*" in words[0])
            grace = words[3:4] == ["-"] or (len(words) > 3 and _number(words[3]) is None)
            words = words[4:] if grace else words[3:]


def _number(word: str) -> int | None:
    """A figure; None for what is none, such as a name or a time of grace."""
    plain = "0" if word == "-" else word.strip("[]*")
    return int(plain) if plain.isascii() and plain.isdecimal() and len(plain) <= 20 else None
