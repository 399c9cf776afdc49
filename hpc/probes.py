"""Looking at this machine for ``hpc doctor``: mounts, room, speed of writing, an interpreter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc.doctor import REQUIRED
from hpc.runs import write_bytes

WRITES = 10
_PACKAGES = (*REQUIRED, "torch")
_VERSIONS = (
    "import json, platform, sys; from importlib import metadata\n"
    "def version(name):\n"
    "    try:\n"
    "        return metadata.version(name)\n"
    "    except metadata.PackageNotFoundError:\n"
    "        return None\n"
    "print(json.dumps({'python': platform.python_version(), **{n: version(n) for n in sys.argv[1:]}}))\n"
)


def mount(path: Path, mounts: str) -> tuple[str, str]:
    """The mount point and kind of the file system that holds an absolute path. Pure.

    Args:
        mounts: what /proc/mounts holds.
    """
    best = ("/", "unknown")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        # Of two mounts on one place the later hides the earlier.
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best[0]):
            best = (point, fields[2])
    return best


def file_system(path: Path) -> str:
    """The kind of file system that holds a path, such as nfs4; "unknown" where the system does not say."""
    try:
        return mount(existing(path).resolve(), Path("/proc/mounts").read_text())[1]
    except OSError:
        return "unknown"


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def room(path: Path) -> tuple[int, int | None]:
    """Free bytes, and free inodes where they are counted."""
    found = os.statvfs(existing(path))
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None


@dataclass(frozen=True)
class Writing:
    """How files come to be on a file system."""

    taken: list[float]  # seconds to write, sync and rename a file, each time
    skew: float  # seconds that its clock is ahead of this machine's


def write(path: Path) -> Writing:
    """Write a few files near ``path``, and remove them.

    Raises:
        OSError: if that is not possible.
    """
    folder = Path(tempfile.mkdtemp(prefix=".hpc-doctor-", dir=existing(path)))
    try:
        taken = []
        for number in range(WRITES):
            start = time.monotonic()
            write_bytes(folder / f"{number}", b"\0" * 4096)
            taken.append(time.monotonic() - start)
        now = time.time()
        (folder / "now").write_bytes(b"\0")
        return Writing(taken, (folder / "now").stat().st_mtime - now)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def quota(path: Path, kind: str) -> str:
    """What the quota program of a file system says of whoever asks; "" where there is none."""
    argv = ["lfs", "quota", "-u", str(os.getuid()), str(existing(path))] if kind == "lustre" else ["quota", "-w"]
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")  # quota's status is 1 where something is over its limit


def packages(interpreter: str, environment: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Versions of an interpreter and of the packages that matter, without importing any.

    Raises:
        OSError: if it is not there or does not say.
    """
    argv = [interpreter, "-P", "-c", _VERSIONS, *_PACKAGES]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise OSError("does not answer within 60 s") from None
    except ValueError:
        said = done.stderr.strip().splitlines()
        raise OSError(said[-1] if said else f"exit status {done.returncode}") from None
