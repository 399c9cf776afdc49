"""Findings that a person has seen: ``acknowledged.json`` in the run's folder, by key, with when and by whom."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from monitoring.history import read_json

FILE = "acknowledged.json"


def read(run: Path) -> dict[str, dict[str, Any]]:
    """What is acknowledged, by the key of the finding; nothing where nothing can be read."""
    return {key: said for key, said in (read_json(run / FILE) or {}).items() if isinstance(said, dict)}


def write(run: Path, key: str, *, acknowledged: bool) -> None:
    """Acknowledge a finding, or take that back.

    Raises:
        OSError: if it cannot be written, as in somebody else's run.
    """
    known = read(run)
    known.pop(key, None)
    if acknowledged:
        known[key] = {"t": time.time(), "by": _user()}
    tmp = run / f".{FILE}.{secrets.token_hex(4)}.tmp"
    try:
        with tmp.open("w", encoding="utf-8") as file:
            json.dump(known, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(run / FILE)
    finally:
        tmp.unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for this user
        return str(os.getuid())
