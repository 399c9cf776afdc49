"""Files that are there whole or not at all, and locks that a dead process does not keep."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainer.disk import sync_folder

# What a file system without file locks answers; work goes on there, without the lock.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

AGAIN = "Make the data again: remove its folder, then job=prepare"


class DataError(ValueError):
    """Data that cannot be used or made: says what is wrong with which file, and what to do."""


def temporary(path: Path) -> Path:
    """A name beside ``path`` that no reader takes for data; ``sweep`` clears what a killed writer left."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def publish(file: IO[bytes], tmp: Path, path: Path) -> None:
    """Close ``file``, written at ``tmp``, and give it its name ``path``: durable, and whole or not at all."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    tmp.replace(path)
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    tmp = temporary(path)
    try:
        with tmp.open("wb") as file:
            file.write(content)
            publish(file, tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left under ``folder``. Only under the folder's lock."""
    for leftover in folder.rglob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel drops it with the process.

    Raises:
        DataError: if another process holds it and ``wait`` is False.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path.parent} is being written by another process; wait until it is done") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
