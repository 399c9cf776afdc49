"""How each rank of an attempt ended: its exit status, and the last that it printed."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitoring.layout import rank_log

SRUN_LOG = "srun.log"  # in an attempt's folder: what srun itself printed
TAIL = 16 * 1024  # bytes of a log that are looked at

_TASKS = re.compile(r"(?m)^srun: error: ([^\s:]+): tasks? ([\d,-]+): (.+?)\s*$")
_CODE = re.compile(r"Exited with exit code (\d+)")
_NODE = re.compile(r"(?m)^srun: error: (?:Node failure on|.*\bnode failure\b.*on) (\S+)")


@dataclass(frozen=True)
class Exit:
    """The end of one rank that did not end well."""

    rank: int
    code: int  # exit status; 128 + n for signal n
    node: str = ""
    first: bool = False  # among the first that ended: what came after may have been ended for it


def shell_status(code: int) -> int:
    """A process's exit status as a shell gives it: 128 + n for signal n."""
    return 128 - code if code < 0 else code


def of_srun(text: str) -> list[Exit]:
    """What srun says of its tasks, in the order in which it learnt of it."""
    found: dict[int, Exit] = {}
    for node, tasks, how in _TASKS.findall(text):
        code = _status(how)
        if code == 0:
            continue
        first = not found
        for rank in _numbers(tasks):
            found.setdefault(rank, Exit(rank, code, node, first))
    return list(found.values())


def failed_nodes(text: str) -> list[str]:
    """Nodes that srun lost."""
    return list(dict.fromkeys(_NODE.findall(text)))


def _status(how: str) -> int:
    if match := _CODE.match(how):
        return int(match[1])
    if how.startswith("Out Of Memory"):
        return 128 + signal.SIGKILL
    words = how.removesuffix(" (core dumped)")
    return next((128 + number for number in signal.valid_signals() if signal.strsignal(number) == words), 1)


def _numbers(tasks: str) -> Iterator[int]:
    """0,2-4 -> 0, 2, 3, 4."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last or first) + 1)


def name(code: int) -> str:
    """An exit status in words."""
    if code <= 128:
        return f"exit status {code}"
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"exit status {code}"


def tail(path: Path, size: int = TAIL) -> str:
    """The end of a log; "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def words(folder: Path, ranks: int | Sequence[int]) -> Mapping[int, str]:
    """The end of each rank's log in an attempt's folder."""
    numbers = range(ranks) if isinstance(ranks, int) else ranks
    return {rank: text for rank in numbers if (text := tail(rank_log(folder, rank)))}
