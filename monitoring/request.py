"""What was asked for, and what a run was made with: by its manifest, and by what its newest attempt said of itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monitoring import fields, layout
from monitoring.history import read_json

SECRET = ("webhook",)  # settings of which people are told only that they are set: whoever has the value can use it


def told(run: Path) -> list[tuple[str, str]]:
    """Labels and texts, in the order in which people ask for them; what nobody wrote down is left out."""
    manifest = read_json(run / layout.MANIFEST) or {}
    known = manifest.get("resumed")
    resumed = [each for each in known if isinstance(each, dict)] if isinstance(known, list) else []
    found = [("typed", _words(manifest.get("command")))]
    found += [
        ("then", shlex.join(["hpc", "resume", run.absolute().name, *_list(each.get("typed"))])) for each in resumed
    ]
    gits = [fields.part(each, "git") for each in (*reversed(resumed), manifest)]
    git = next(filter(None, gits), {})
    found += [("code", _code(git)), ("versions", ", ".join(_versions(manifest, _provenance(run))))]
    by = [fields.text(manifest.get(name)) for name in ("user", "host")]
    found.append(("submitted by", " on ".join(each for each in by if each)))
    found.append(("working folder", fields.text(manifest.get("working_folder")) or ""))
    return [(label, text) for label, text in found if text]


def shown(path: str, value: Any) -> Any:
    """A setting as it may be shown to whoever sees the run."""
    return "(set)" if value is not None and path.rpartition(".")[2] in SECRET else value


def _list(words: Any) -> list[str]:
    return [_public(str(each)) for each in words] if isinstance(words, list) else []


def _public(word: str) -> str:
    """A word that was typed, as it may be shown."""
    path, equals, value = word.partition("=")
    return f"{path}={shown(path, value)}" if equals else word


def _words(command: Any) -> str:
    """A command as it can be typed again."""
    return shlex.join(_list(command)) if isinstance(command, list) else fields.text(command) or ""


def _code(git: Mapping[str, Any]) -> str:
    commit, branch, changed = fields.text(git.get("commit")), fields.text(git.get("branch")), git.get("changed")
    if not commit:
        return ""
    count = len(changed) if isinstance(changed, list) else 0
    differs = f", and {count} file{'s differ' if count > 1 else ' differs'} from it" if count else ""
    return f"{commit}{f' of {branch}' if branch else ''}{differs}"


def _versions(manifest: Mapping[str, Any], attempt: Mapping[str, Any]) -> Iterator[str]:
    packages = fields.part(attempt, "packages") or fields.part(manifest, "packages")
    python = fields.part(attempt, "python") or fields.part(manifest, "python")
    for name, version in (
        ("hpc", attempt.get("hpc") or manifest.get("hpc")),
        ("Python", python.get("version")),
        ("torch", attempt.get("torch") or packages.get("torch")),
        ("CUDA", attempt.get("cuda")),
        ("driver", attempt.get("driver")),
    ):
        if text := fields.text(version):
            yield f"{name} {text}"


def _provenance(run: Path) -> Mapping[str, Any]:
    """What the newest attempt that says so ran with."""
    numbers = reversed(layout.attempt_numbers(run))
    found = (read_json(layout.attempt_folder(run, number) / layout.PROVENANCE) for number in numbers)
    return next((each for each in found if each), {})
