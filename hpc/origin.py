"""What an attempt really ran with: provenance.json in its folder, one for each, as code and environment may change
between them. Written beside the running ranks; that it cannot be written is no reason to end a run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc import __version__, ledger, provenance
from hpc.config import Config, TrainJob
from hpc.runs import Run, read_json, write_json
from monitoring import layout

FILE = layout.PROVENANCE
DRIVER = Path("/proc/driver/nvidia/version")


def note(run: Run, config: Config, number: int, nodes: Sequence[str], say: Callable[[str], None]) -> threading.Thread:
    """Begin to write down what attempt ``number`` runs with: reading the code takes a moment on a shared disk."""

    def write() -> None:
        try:
            write_json(ledger.folder(run, number) / FILE, collect(run, config, nodes))
        except Exception as error:
            say(f"{FILE} of attempt {number} was not written: {type(error).__name__}: {error}")

    thread = threading.Thread(target=write, name="provenance", daemon=True)
    thread.start()
    return thread


def collect(run: Run, config: Config, nodes: Sequence[str]) -> dict[str, Any]:
    """Code, configuration, environment and data of an attempt that starts now."""
    packages = provenance.packages()
    return {
        "time": time.time(),
        "hpc": __version__,
        "code": code(run),
        "config": {"digest": _digest(run.config_file)},
        "python": {"version": platform.python_version(), "executable": sys.executable, "prefix": sys.prefix},
        "torch": packages.get("torch"),
        "cuda": _cuda(packages),
        "driver": _driver(),
        "packages": packages,
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "conda": os.environ.get("CONDA_PREFIX"),
        "container": {"runtime": config.cluster.container.runtime.name, "image": config.cluster.container.image},
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "nodes": list(nodes),
        "data": _data(config),
    }


def code(run: Run) -> dict[str, Any]:
    """The snapshot that the attempt imports from, and what it was made from: commit, and patch where files differed."""
    manifest = read_json(run.manifest_file) or {}
    resumed = manifest.get("resumed") or []
    git = (resumed[-1] if resumed else manifest).get("git") or {}
    patch = Path(f"{run.patch_file}.{len(resumed)}") if resumed else run.patch_file
    found = {"digest": code_digest(run.code), "commit": git.get("commit"), "dirty": git.get("dirty")}
    return found | ({"patch": patch.name, "patch_digest": _digest(patch)} if patch.exists() else {})


def code_digest(folder: Path) -> str:
    """Equal for two snapshots only if all of their files are."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(path for path in folder.resolve().rglob("*") if path.is_file() and path.suffix != ".pyc"):
        content = file.read_bytes()
        found.update(f"{file.relative_to(folder.resolve())}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _cuda(packages: dict[str, str]) -> str | None:
    """CUDA's version as torch brings it along; None for a build without."""
    found = [version for name, version in packages.items() if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", name)]
    if found:
        return found[0]
    local = re.search(r"\+cu(\d+)(\d)$", packages.get("torch", ""))
    return f"{local[1]}.{local[2]}" if local else None


def _driver() -> str | None:
    with suppress(OSError):
        if found := re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]+)", DRIVER.read_text()):
            return found[1]
    return None


def _data(config: Config) -> dict[str, Any] | None:
    if not isinstance(config.job, TrainJob):
        return None
    from trainer.data.files import DataError
    from trainer.data.manifest import Manifest

    try:
        fingerprint = Manifest.read(Path(config.data.path)).fingerprint
    except DataError:  # the ranks will say so
        fingerprint = None
    return {"path": config.data.path, "fingerprint": fingerprint}
