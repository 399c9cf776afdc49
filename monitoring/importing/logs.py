"""Text logs of Megatron and DeepSpeed: one file an attempt, more where one file goes back to an earlier step.

The lines themselves are read by ``monitoring/patterns.py``. Times are those that the log's lines carry; between them
the clock goes on by each iteration's own time. A log without any is counted back from the file's last change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitoring.importing import Begin, End, Item, Step, Tally, Unreadable, files_of, stamp
from monitoring.patterns import Found, Reader, deepspeed, deepspeed_times, last_of, litgpt, megatron, number
from monitoring.tail import LineTail

NAMES = ("*.out", "*.log", "*.txt", "*.err")
SAID = {
    "megatron": "lines such as ' iteration 10/ 100 | consumed samples: 640 | lm loss: 1.06E+01 |'",
    "deepspeed": "lines such as '[Rank 0] step=10, skipped=0, lr=[0.0001], mom=[(0.9, 0.95)]'",
    "lit-gpt": "a metrics.csv, or lines such as 'iter 8 step 2: loss 10.1, iter time: 9.1ms'",
}
READERS: dict[str, tuple[Callable[[], Reader], ...]] = {
    "megatron": (megatron, deepspeed_times),
    "deepspeed": (deepspeed, deepspeed_times),
    "lit-gpt": (litgpt,),
}
# What a line has that tells of a step: a log of a gigabyte is mostly other lines.
_MARKS = {"megatron": (" iteration", "time (ms)"), "deepspeed": ("step=", "time (ms)"), "lit-gpt": ("loss",)}
# How a job ended, the stronger word first: what Slurm says explains what the ranks then complain of.
_ENDINGS = tuple(
    (cause, re.compile(expression))
    for cause, expression in (
        ("time_limit", r"DUE TO TIME LIMIT|exiting program at iteration"),
        ("preemption", r"DUE TO PREEMPTION"),
        ("node_failure", r"DUE TO NODE FAILURE|NODE_FAIL"),
        ("gpu_memory", r"CUDA out of memory|\bOutOfMemoryError\b"),
        ("host_memory", r"\boom[-_]kill|Out Of Memory"),
        ("finished", r"\[after training is done\]"),
        ("cancelled", r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED"),
        ("network", r"Watchdog caught collective|ncclSystemError|ncclInternalError|ncclRemoteError"),
        ("crash", r"Exited with exit code [1-9]|ChildFailedError|^(?:\[\w+\]:\s*)?Traceback \(most recent"),
    )
)
_HINT = re.compile(
    r"CANCEL|FAIL|[oO]om[-_ ]|[oO]ut *[oO]f|OutOf|exit|Exit|Watchdog|nccl|Traceback|oom|after training|Failed"
)
_JOB = re.compile(r"\*\*\* (?:JOB|STEP) (\d+)|SLURM_JOB_ID\s*[=:]\s*(\d+)")
_JOB_IN_NAME = re.compile(r"(\d{3,})(?:_\d+)?\.\w+$")
_LOADED = re.compile(r"loaded checkpoint .*?at iteration\s+(\d+)")
_ARGUMENT = re.compile(r"^(?:\[\w+\]:)?\s+(\w+) \.{3,} (.*)$")
_WORLD = re.compile(r"using world size: (\d+)")
_MOST_TOKENS = 1 << 62  # more are damage
_DIGITS = 80  # characters at a line's beginning in which its time is looked for


def read(paths: list[Path], tally: Tally, to: str) -> Iterator[Item]:
    """The attempts in log files, or in the logs of folders, by name."""
    files = files_of(paths, NAMES)
    if not files:
        raise Unreadable(
            f"no log in {', '.join(map(str, paths))}: none of {', '.join(NAMES)}. Name the files themselves"
        )
    found = False
    at = 0.0  # the end of the attempt before
    for file in files:
        log = Log(file, tally, to, at)
        begun = False
        for item in log.read():
            begun = True
            yield item
        if not begun:
            tally.without_steps.append(file.name)
        found, at = found or begun, max(at, log.clock or 0.0)
    if not found:
        raise Unreadable(f"no training step in {', '.join(file.name for file in files[:5])}; expected {SAID[to]}")


@dataclass
class _Waiting:
    """What was said since the last attempt's end, before the next one's first step."""

    began: float | None = None
    resumed_from: int | None = None


@dataclass
class Log:
    """One file, from its beginning to its end.

    Args:
        at: unix seconds at which the attempt before ended; a log without times goes on from there.
    """

    path: Path
    tally: Tally
    to: str
    at: float
    clock: float | None = None
    step: int | None = None
    tokens: int | None = None
    waiting: _Waiting = field(default_factory=_Waiting)
    said: dict[str, float] = field(default_factory=dict)  # of the newest step
    job_id: str = ""
    ending: tuple[int, str] | None = None  # (place in _ENDINGS, the line)
    counted: bool = False  # no line tells the time
    stepped: float = 0.0  # unix seconds of the newest step

    def read(self) -> Iterator[Item]:
        self.readers = [make() for make in READERS[self.to]]
        if (match := _JOB_IN_NAME.search(self.path.name)) is not None:
            self.job_id = match[1]
        if not _has_stamp(self.path):
            self.clock = max(self.at, self.path.stat().st_mtime - _spent(self.path, self.to))
            self.counted = True
        tail = LineTail(self.path)
        for line in tail.read(rest=True):
            yield from self._take(line)
        if tail.error:
            raise OSError(None, tail.error, str(self.path))
        if self.step is not None:
            yield self._end()

    def _take(self, line: str) -> Iterator[Item]:
        if (t := stamp(line[:_DIGITS]) if "20" in line[:_DIGITS] else None) is not None:
            self.clock = t if self.clock is None else max(self.clock, t)
        found = self._found(line)
        if found is None:
            yield from self._other(line)
            return
        step = self.step if found.step is None else found.step
        if step is None:
            return
        if self.step is not None and step < self.step:
            yield self._end()
        if self.step is None:
            if self.counted:
                self.tally.clock = "counted back from the files' last changes"
            yield Begin(self._began(found), self.path.name, self.waiting.resumed_from)
        new = {
            name: value for name, value in found.metrics.items() if step != self.step or self.said.get(name) != value
        }
        if step != self.step:
            self._tell_time(found, step)
            self.said = {}
        self.tokens = self._count(found, step)
        self.step = step
        self.said |= new
        if new:
            yield Step(step, self.clock or 0.0, new, self.tokens)

    def _found(self, line: str) -> Found | None:
        if not any(mark in line for mark in _MARKS[self.to]):
            return None
        whole = line
        if self.to == "megatron" and " iteration" in line and "|" in line:
            whole = last_of(line)
            if not whole.rstrip().endswith("|"):
                whole = whole[: whole.rfind("|") + 1]  # torn: the number at its end may lack digits
        for reader in self.readers:
            if (found := reader(whole)) is None:
                continue
            if whole is not line or "\ufffd" in line:
                self.tally.bad(f"{self.path.name}: {line[:80]}")
            if found.steps is not None:
                self.tally.steps = found.steps
                if found.step is not None and found.step > found.steps:
                    self.tally.bad(f"{self.path.name}: {line[:80]}")
                    return None
            return found if found.metrics else None
        if "\ufffd" in line and ("iteration" in line or "step=" in line):
            self.tally.bad(f"{self.path.name}: {line[:80]}")
        return None

    def _other(self, line: str) -> Iterator[Item]:
        """A line that tells of no step."""
        if "loaded checkpoint" in line and (match := _LOADED.search(line)) is not None:
            if self.step is not None:
                yield self._end()
            self.waiting.resumed_from = int(match[1])
        elif self.step is None and self.waiting.began is None and self.clock is not None:
            self.waiting.began = self.clock
        if "..." in line and (match := _ARGUMENT.match(line)) is not None:
            self.tally.args[match[1]] = _plain(match[2])
        if "world size" in line and (match := _WORLD.search(line)) is not None:
            self.tally.world_size = int(match[1])
        if ("***" in line or "SLURM_JOB_ID" in line) and (match := _JOB.search(line)) is not None:
            self.job_id = match[1] or match[2]
        if _HINT.search(line):
            if (t := stamp(line)) is not None:
                self.clock = max(self.clock or t, t)
            for place, (_, expression) in enumerate(_ENDINGS):
                if (self.ending is None or place < self.ending[0]) and expression.search(line):
                    self.ending = place, line.strip()[:200]
                    break

    def _end(self) -> End:
        cause, evidence = ("unknown", "")
        if self.ending is not None:
            cause, evidence = _ENDINGS[self.ending[0]][0], self.ending[1]
        self.step, self.said, self.ending, self.waiting = None, {}, None, _Waiting()
        return End(self.clock or 0.0, cause, evidence, self.job_id)

    def _began(self, found: Found) -> float:
        if self.waiting.began is not None:
            return self.waiting.began
        return self.clock if self.clock is not None else 0.0

    def _tell_time(self, found: Found, step: int) -> None:
        """Move the clock by the iterations since the last line, where no line told the time meanwhile."""
        seconds = found.metrics.get("step_s")
        if seconds is None or self.clock is None or not 0 <= seconds < 1e6:
            return
        before = self.step if self.step is not None else self.waiting.resumed_from
        due = (self.stepped if self.step is not None else self.clock) + seconds * max(1, step - (before or step - 1))
        self.clock = max(self.clock, due)
        self.stepped = self.clock

    def _count(self, found: Found, step: int) -> int | None:
        """Tokens consumed by now: as said, or by the samples and their length."""
        if found.tokens is not None:
            return found.tokens
        length = found.metrics.get("actual_seqlen") or number(str(self.tally.args.get("seq_length", "")))
        samples = found.metrics.get("consumed_samples")
        if length and samples and 0 < samples * length < _MOST_TOKENS:
            return int(samples * length)
        return self.tokens


def _has_stamp(path: Path, first: int = 1 << 20) -> bool:
    """Whether the beginning of a log tells the time anywhere."""
    with path.open("rb") as file:
        return any(
            stamp(line[:_DIGITS].decode("utf-8", "replace")) is not None for line in file.read(first).split(b"\n")
        )


def _spent(path: Path, to: str) -> float:
    """Seconds that all iterations of a log took together."""
    readers = [make() for make in READERS[to]]
    seconds, before = 0.0, None
    for line in LineTail(path).read(rest=True):
        for reader in readers:
            if (found := reader(line)) is not None and found.step is not None and "step_s" in found.metrics:
                count = found.step - before if before is not None and found.step > before else 1
                seconds += max(0.0, found.metrics["step_s"]) * count
                before = found.step
    return seconds if seconds < 1e10 else 0.0


def _plain(text: str) -> Any:
    """An argument as it was printed, as a value."""
    known = {"True": True, "False": False, "None": None}
    if (text := text.strip()) in known:
        return known[text]
    for make in (int, float):
        try:
            return make(text)
        except ValueError:
            continue
    return text[:500]
