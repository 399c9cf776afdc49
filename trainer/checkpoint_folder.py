"""Checkpoints on disk: names, markers, checksums, what is kept. Free of torch and of other ranks.

```
checkpoints/
  step-120/                 .metadata, __<rank>_0.distcp (torch.distributed.checkpoint), rng.pt
    COMPLETE                written last: where training stands, size and checksum of each file, its own checksum
    CORRUPT                 COMPLETE, renamed, of a checkpoint that was found damaged and passed over
    AMENDED                 what counts instead of COMPLETE's progress since training went back to this checkpoint
  .step-160.tmp-<token>/    being written, or left over by a writer that died
```

A writer fills the temporary folder, renames it, syncs its parent and writes COMPLETE. Whatever moment it dies at,
the checkpoint before stays. One attempt at a time writes to a folder: whoever starts attempts sees to that.

Checksums are XXH3 of 128 bits: as fast as memory, where those meant for signatures would take longer than the disk,
and what they are to find is damage, not forgery.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.disk import sync_folder

CHECKPOINTS = "checkpoints"  # the folder in a run's
COMPLETE = "COMPLETE"
CORRUPT = "CORRUPT"
AMENDED = "AMENDED"
UNREADABLE = f"{COMPLETE} cannot be read"
FORMAT = 3  # of COMPLETE; raised when an old reader would misread it

BLOCK = 4096  # bytes; what is written past the page cache begins and ends at multiples of it
CHUNK = 16 << 20  # bytes written at a time

_STEP = re.compile(r"step-(\d+)")
_TEMPORARY = re.compile(r"\.step-\d+\.tmp-[0-9a-f]+")


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def make_temporary(folder: Path, step: int) -> Path:
    """A fresh folder for the files of a checkpoint that is being written."""
    path = folder / f".step-{step}.tmp-{secrets.token_hex(4)}"
    path.mkdir(parents=True)
    return path


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return [step for step in _steps(folder) if (step_folder(folder, step) / COMPLETE).exists()]


def commit(folder: Path, temporary: Path, step: int, marker: Mapping[str, Any]) -> None:
    """Make the synced files in ``temporary`` the complete checkpoint of ``step``; ``marker`` is JSON values."""
    final = step_folder(folder, step)
    if final.exists():  # renamed but never marked, or passed over as corrupt before
        remove(final)
    temporary.rename(final)
    sync_folder(folder)
    _write_checked(final / COMPLETE, marker)


def read_marker(folder: Path, step: int) -> dict[str, Any] | None:
    """The marker that ``commit`` was given, or None where it is damaged or of a format that is not known.

    What ``amend`` wrote later stands in its "progress".
    """
    path = step_folder(folder, step)
    marker = _read_checked(path / COMPLETE)
    if marker is not None and (amended := _read_checked(path / AMENDED)) is not None:
        marker["progress"] = marker["progress"] | amended
    return marker


def newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and marker of the newest complete checkpoint whose marker can be read; None where there is none to see."""
    try:
        steps = complete_steps(folder)
    except OSError:  # nothing is saved yet, or it is another user's
        return None
    markers = ((step, read_marker(folder, step)) for step in reversed(steps))
    return next(((step, marker) for step, marker in markers if marker is not None), None)


def amend(folder: Path, step: int, progress: Mapping[str, Any]) -> None:
    """Have a complete checkpoint say other values in its "progress"; JSON values."""
    _write_checked(step_folder(folder, step) / AMENDED, progress)


def amended(folder: Path, step: int) -> bool:
    return (step_folder(folder, step) / AMENDED).exists()


def _write_checked(path: Path, content: Mapping[str, Any]) -> None:
    written = path.with_name(f".{path.name}.tmp")
    with written.open("w") as file:
        json.dump({"format": FORMAT, "checksum": _checksum(content), **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    written.rename(path)
    sync_folder(path.parent)


def _read_checked(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
        known = content.pop("format") == FORMAT and content.pop("checksum") == _checksum(content)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return content if known else None


def mark_corrupt(folder: Path, step: int) -> None:
    """Pass over a complete checkpoint from now on; it stays until a newer one is complete."""
    path = step_folder(folder, step)
    (path / COMPLETE).rename(path / CORRUPT)
    sync_folder(path)


def kept(complete: Iterable[int], keep_latest: int, keep_every: int) -> set[int]:
    """Which of the complete checkpoints stay: the newest ``keep_latest``, at least one, and each
    ``keep_every``-th step."""
    steps = sorted(complete)
    newest = set(steps[-max(1, keep_latest) :])
    return newest | {step for step in steps if keep_every and step % keep_every == 0}


def purge(folder: Path, keep_latest: int, keep_every: int) -> None:
    """Remove the checkpoints that are not kept, and corrupt ones older than the newest complete one."""
    complete = complete_steps(folder)
    stay = kept(complete, keep_latest, keep_every)
    for step in _steps(folder):
        path = step_folder(folder, step)
        corrupt = (path / CORRUPT).exists() and bool(complete) and step < complete[-1]
        if corrupt or (step in complete and step not in stay):
            remove(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that died left behind: unfinished checkpoints, never a complete or a corrupt one."""
    for path in leftovers(folder):
        remove(path)


def leftovers(folder: Path) -> list[Path]:
    """Unfinished checkpoints: being written, or left behind by a writer that died."""
    found = []
    for path in folder.iterdir():
        unmarked = _STEP.fullmatch(path.name) and not any((path / m).exists() for m in (COMPLETE, CORRUPT))
        if unmarked or _TEMPORARY.fullmatch(path.name):
            found.append(path)
    return found


def remove(path: Path) -> None:
    """Remove a checkpoint, its marker first: one that is partly removed must not look complete."""
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


def write(path: Path, content: memoryview) -> list[int | str]:
    """Write and sync a file of which every byte lies in memory; what ``describe`` would say of it.

    Written past the page cache where the file system can: a copy of each byte would take time from whoever computes
    beside it, and memory from what is read again.

    Args:
        content: begins at a multiple of BLOCK in memory, and has a multiple of BLOCK bytes.
    """
    from xxhash import xxh3_128

    checksum = xxh3_128()
    handle = _open(path)
    try:
        for begin in range(0, len(content), CHUNK):
            part = content[begin : begin + CHUNK]
            checksum.update(part)
            _write_all(handle, part, begin)
        os.fsync(handle)
    finally:
        os.close(handle)
    return [len(content), checksum.hexdigest()]


def _open(path: Path) -> int:
    """A new file, past the page cache where the file system knows that."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _write_all(handle: int, content: memoryview, begin: int) -> None:
    while content:
        try:
            count = os.pwrite(handle, content, begin)
        except OSError as error:
            flags = fcntl.fcntl(handle, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            # A file system that wants larger blocks, or one that took part of a block and is full.
            fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        else:
            content, begin = content[count:], begin + count


def write_small(path: Path, content: bytes) -> list[int | str]:
    """As ``write``, for a few bytes from anywhere in memory."""
    from xxhash import xxh3_128

    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return [len(content), xxh3_128(content).hexdigest()]


def describe(path: Path) -> list[int | str]:
    """Size in bytes and checksum of a file, as COMPLETE records them."""
    from xxhash import xxh3_128

    checksum = xxh3_128()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
        return [file.tell(), checksum.hexdigest()]


def damage(path: Path, recorded: list[int | str]) -> str | None:
    """What is wrong with a file of which COMPLETE recorded size and checksum, or None."""
    try:
        size = path.stat().st_size
        if size != recorded[0]:
            return f"{path.name} has {size} bytes instead of {recorded[0]}"
        return None if describe(path) == recorded else f"{path.name} does not have its checksum"
    except OSError as error:
        return f"{path.name}: {error.strerror}"


def _checksum(marker: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(marker, sort_keys=True).encode(), digest_size=16).hexdigest()


def candidates(path: Path) -> tuple[Path, list[int]]:
    """Where a person's path to weights leads: the folder of checkpoints and the complete steps in it, newest first.

    Args:
        path: one checkpoint, a folder of checkpoints, or a run's folder, which has one of that name.

    Raises:
        FileNotFoundError: if there is no complete checkpoint; the message says what is there instead.
    """
    if not path.is_dir():
        raise FileNotFoundError("there is no such folder")
    if match := _STEP.fullmatch(path.name):
        if not (path / COMPLETE).exists():
            raise FileNotFoundError(f"this checkpoint is not complete: it has no {COMPLETE}")
        return path.parent, [int(match[1])]
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    if steps := complete_steps(folder):
        return folder, steps[::-1]
    raise FileNotFoundError(f"there is no complete checkpoint in {folder}")


def _steps(folder: Path) -> list[int]:
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)))
