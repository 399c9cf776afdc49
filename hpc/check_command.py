"""The program of ``job=command``: its words, and what is wrong with what was asked for. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from hpc.config import CommandJob, Config
from hpc.request import Request
from trainer.problems import Problem

EXAMPLE = 'command="torchrun train.py"'
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}


def words(command: Any) -> list[str]:
    """The words of a command: text is split as a shell would, and nothing else that a shell does is done.

    Raises:
        ValueError: if it is neither text nor a list of words, is empty, or has a quote that does not end.
    """
    if isinstance(command, str):
        found = shlex.split(command)
    elif isinstance(command, list) and all(isinstance(word, str | int | float) for word in command):
        found = [str(word).lower() if isinstance(word, bool) else str(word) for word in command]
    else:
        raise ValueError("it is neither text nor a list of words")
    if not found or not found[0]:
        raise ValueError("it has no words")
    if any("\0" in word for word in found):
        raise ValueError("a word has a character NUL")
    return found


def filled(command: list[str], told: Mapping[str, str]) -> list[str]:
    """With ``$NAME`` replaced where ``told`` has it. Not so for a shell, which does that itself, and safely."""
    if command[0].rpartition("/")[2] in SHELLS:
        return command
    names = "|".join(map(re.escape, sorted(told, key=len, reverse=True)))
    pattern = re.compile(rf"\$({names})(?![A-Za-z0-9_])")
    return [pattern.sub(lambda match: told[match[1]], word) for word in command]


def problems(config: Config, request: Request) -> Iterator[Problem]:
    """What is wrong with the command and the settings of its job."""
    job = config.job
    if not isinstance(job, CommandJob):
        if config.command is not None:
            yield Problem("command", repr(config.command), "only job=command runs one", "job=command")
        return
    if config.command is None:
        yield Problem("command", "null", "job=command needs to know which program", EXAMPLE)
    else:
        try:
            words(config.command)
        except ValueError as error:
            yield Problem("command", repr(config.command), str(error).lower(), EXAMPLE)
    yield from _metrics(job)
    if job.tokens_per_step is not None and job.tokens_per_step < 1:
        yield Problem("job.tokens_per_step", str(job.tokens_per_step), "must be at least 1", "job.tokens_per_step=1")


def _metrics(job: CommandJob) -> Iterator[Problem]:
    from monitoring.patterns import SHIPPED, own

    for name in job.metrics:
        if name in SHIPPED:
            continue
        try:
            if name.isidentifier():
                raise ValueError("there is no pattern of that name")
            own(name)
        except ValueError as error:
            allowed = f"{error}. Names: {', '.join(SHIPPED)}; or a regular expression with named groups"
            yield Problem("job.metrics", repr(name), allowed, f"job.metrics=[{next(iter(SHIPPED))}]")


def warnings(config: Config, found: bool) -> Iterator[str]:
    """What may be right and looks wrong.

    Args:
        found: whether the program was found where this is asked.
    """
    if isinstance(config.job, CommandJob) and not found:
        first = words(config.command)[0]
        yield f"command: {first!r} is not found on this machine; on the nodes it must be in $PATH or job.directory"
