"""In what two runs differ: configuration, code, environment, data, and what came of them. Reads their folders alone."""

from __future__ import annotations

import difflib
import filecmp
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.errors import Refused
from hpc.runs import Run, read_json

Pair = tuple[Any, Any]  # a value of the one run and of the other; None where there is none
OUTCOME = ("step", "tokens", "loss_first", "loss", "validation_loss", "tokens_per_s")


@dataclass(frozen=True)
class CodeFile:
    """A file of the code that is not the same in both."""

    path: str
    change: str  # added, removed or changed, on the way from the first run to the second
    added: int = 0  # lines
    removed: int = 0


@dataclass(frozen=True)
class Comparison:
    """What differs; empty where nothing does."""

    config: dict[str, Pair] = field(default_factory=dict)  # by full path
    code: list[CodeFile] = field(default_factory=list)
    environment: dict[str, Pair] = field(default_factory=dict)
    data: dict[str, Pair] = field(default_factory=dict)
    outcome: dict[str, Pair] = field(default_factory=dict)


def compare(first: Run, second: Run) -> Comparison:
    """
    Raises:
        Refused: if a configuration cannot be read.
    """
    return Comparison(
        config=_differing(flat(read_config(first)), flat(read_config(second))),
        code=[_code_file(path, first.code / path, second.code / path) for path in _changed(first.code, second.code)],
        environment=_differing(_environment(first), _environment(second)),
        data=_differing(_data(first), _data(second)),
        outcome=_differing(outcome(first), outcome(second)),
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as values by full path; a list is one value, as in an override."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found.update(flat(each, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Pair]:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def read_config(run: Run) -> Any:
    """The resolved configuration as plain values.

    Raises:
        Refused: if it cannot be read.
    """
    import yaml

    try:
        return yaml.load(run.config_file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused(f"{run.config_file} cannot be read: {error}") from error


# -- code --------------------------------------------------------------------------------------------------------


def _files(code: Path) -> set[str]:
    found = set()
    for folder, folders, names in os.walk(code):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str((Path(folder) / name).relative_to(code)) for name in names if not name.endswith(".pyc")}
    return found


def _changed(first: Path, second: Path) -> list[str]:
    if first.resolve() == second.resolve():  # of one sweep
        return []
    one, other = _files(first), _files(second)
    equal, _, _ = filecmp.cmpfiles(first, second, one & other, shallow=False)
    return sorted((one | other) - set(equal))


def _code_file(path: str, first: Path, second: Path) -> CodeFile:
    change = "added" if not first.exists() else "removed" if not second.exists() else "changed"
    lines = [line for line in _unified(path, first, second) if not line.startswith(("---", "+++"))]
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    return CodeFile(path, change, added, removed)


def code_diff(first: Run, second: Run) -> Iterator[str]:
    """What `diff -u` says of the code of two runs, line by line."""
    for path in _changed(first.code, second.code):
        yield from _unified(path, first.code / path, second.code / path)


def _unified(path: str, first: Path, second: Path) -> list[str]:
    one, other = _lines(first), _lines(second)
    if one is None or other is None:
        return [f"--- {path}", f"+++ {path}", "(no text)"]
    return list(difflib.unified_diff(one, other, path, path, lineterm="", n=3))


def _lines(file: Path) -> list[str] | None:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        return None


# -- environment, data, outcome ----------------------------------------------------------------------------------


def _environment(run: Run) -> dict[str, Any]:
    manifest = read_json(run.manifest_file) or {}
    git = (manifest.get("resumed") or [{}])[-1].get("git") or manifest.get("git") or {}
    python = manifest.get("python") or {}
    changed = git.get("changed") or []
    attempt = _attempt(run)
    found = {
        "python": python.get("version"),
        "interpreter": python.get("executable"),
        "hpc": manifest.get("hpc"),
        "cluster": manifest.get("cluster"),
        "emulated": manifest.get("emulated"),
        "submitted from": manifest.get("host"),
        "git commit": git.get("commit"),
        "git branch": git.get("branch"),
        "git changed files": len(changed) if git else None,
        **{key: attempt[key] for key in ("cuda", "driver", "modules", "conda", "container") if key in attempt},
    }
    # Where it ran counts, not where it was submitted from.
    packages = attempt.get("packages") or manifest.get("packages") or {}
    return found | {f"package {name}": version for name, version in packages.items()}


def _attempt(run: Run) -> dict[str, Any]:
    """What the newest attempt that says so ran with."""
    from hpc.origin import FILE
    from monitoring import layout

    found = (
        read_json(layout.attempt_folder(run.folder, n) / FILE) for n in reversed(layout.attempt_numbers(run.folder))
    )
    return next((each for each in found if each), {})


def _data(run: Run) -> dict[str, Any]:
    """The tokens that the run was trained on: as its newest checkpoint says, or what lies there now."""
    from trainer import checkpoint_folder
    from trainer.data.files import DataError
    from trainer.data.manifest import Manifest

    if found := checkpoint_folder.newest(run.checkpoints):
        identity = found[1].get("identity", {}).get("data", {})
        return {"fingerprint": identity.get("fingerprint"), "order of samples": identity.get("order")}
    if data := _attempt(run).get("data"):
        return {"fingerprint": data.get("fingerprint")}
    config = read_config(run)
    path = config.get("data", {}).get("path") if isinstance(config, Mapping) else None
    try:
        return {"fingerprint": Manifest.read(Path(path)).fingerprint} if isinstance(path, str) else {}
    except DataError:  # nothing was prepared, or it was removed
        return {}


def outcome(run: Run) -> dict[str, Any]:
    """Where a run stands, or how it ended: the newest values of what is known of it."""
    from monitoring import layout
    from monitoring.tail import last_record, last_value

    done = read_json(run.finished_file) or {}
    last: dict[str, Any] = {}
    for number in reversed(layout.attempt_numbers(run.folder)):
        if found := last_record(layout.attempt_folder(run.folder, number)):
            last = found
            break
    state = "finished" if run.finished else run.state().get("state")
    known: dict[str, Any] = {**last, **done, "loss": done.get("loss_last", last.get("loss"))}
    if known.get("validation_loss") is None:
        known["validation_loss"] = last_value(run.folder, "validation_loss")
    return {"state": state, **{key: known[key] for key in OUTCOME if known.get(key) is not None}}
