"""The one exception type for mistakes and failures that a person is told about."""

from __future__ import annotations


class Refused(Exception):
    """A person's mistake: says what was given, what is allowed and what to type instead. Exit status 2."""

    status = 2


class Failed(Exception):
    """Something outside went wrong, such as a full disk or a Slurm that does not answer. Exit status 1."""

    status = 1


class Diverged(Failed):
    """Training says that it cannot go on: another attempt would see the same. A person must look."""
