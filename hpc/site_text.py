"""The texts of scontrol, sacctmgr and squeue, and their values. Pure. Read on Slurm 22.05 and 24.11."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# What Slurm prints for "no value" or "no limit", in one place or another.
NOTHING = {"", "(null)", "N/A", "NONE", "UNLIMITED", "INFINITE", "NOT_SET", "n/a"}
AS_OF = "as of"
_MEBI = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}


def version(text: str) -> tuple[int, int]:
    """(22, 5) of 22.05.8; (0, 0) of anything else."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def pairs(line: str) -> dict[str, str]:
    """Key=value pairs of a line that ``scontrol -o`` printed.

    Values may hold spaces and "=". Keys begin with a capital; where one comes twice the first counts, since text that
    people wrote (Reason, Comment) comes last and may look like a pair.
    """
    _, *parts = re.split(r"(?:^|\s+)([A-Z][A-Za-z_]*)=", line)
    found: dict[str, str] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(key, value.strip())
    return found


def config(text: str) -> dict[str, str]:
    """Settings that ``scontrol show config`` printed, and under AS_OF the controller's time."""
    rows = (re.match(r"(\S+)\s*= ?(.*)", line) for line in text.splitlines())
    found = {row[1]: row[2].strip() for row in rows if row}
    told = re.match(r"Configuration data as of (\S+)", text)
    return {**found, AS_OF: told[1]} if told else found


def count(text: str) -> int | None:
    """A whole number; None for no limit. "30 sec" and "4-4" begin with one."""
    match = re.match(r"\d+", text.strip())
    return int(match[0]) if match else None


def duration(text: str) -> float | None:
    """Seconds of a time limit; None where there is none."""
    if text.strip() in NOTHING:
        return None
    from hpc.request import seconds  # which brings OmegaConf, and asking begins before that is imported

    try:
        return seconds(text)
    except ValueError:
        return None


def words(text: str) -> tuple[str, ...]:
    """Of a list with commas; none for what means no list."""
    return () if text.strip() in {*NOTHING, "ALL", "all"} else tuple(filter(None, map(str.strip, text.split(","))))


def amounts(text: str) -> dict[str, float]:
    """cpu=512,mem=1920G,gres/gpu:a100=16 as numbers; mem in MiB."""
    found = {}
    for part in words(text):
        name, _, value = part.rpartition("=")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)i?B?", value)
        if match and name:
            found[name] = float(match[1]) * (_MEBI[match[2] or "M"] if name == "mem" else 1)
    return found


def gpus(gres: str) -> tuple[tuple[str, int], ...]:
    """GPUs by type of gpu:a100:4(S:0,1),gpu:2,mps:400; the type is "" where none is named."""
    found: Counter[str] = Counter()
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *kind, number = part.strip().split(":") if ":" in part else ["", ""]
        if name == "gpu" and number.isdecimal():
            found[":".join(k for k in kind if k != "no_consume")] += int(number)
    return tuple(sorted(found.items()))


def rows(text: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """What ``sacctmgr --parsable2 --noheader`` printed; lines with another number of columns are no rows."""
    names = list(columns)
    split = (line.split("|") for line in text.splitlines())
    return [dict(zip(names, each, strict=True)) for each in split if len(each) == len(names)]
