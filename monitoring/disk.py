"""What a file system is asked for beside reading and writing."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk itself: a file's own fsync leaves its name, and a rename, out.

    Raises:
        OSError: if the disk refuses.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
