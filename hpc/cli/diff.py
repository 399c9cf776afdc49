"""``hpc diff RUN RUN``: in what two runs differ."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from hpc import runs
from hpc.compare import Comparison, code_diff, compare, outcome
from hpc.runs import Run

HELP = "in what two runs differ: configuration, code, environment, data, and what came of them"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hpc diff", description=HELP)
    parser.add_argument("first", help="id or its beginning, name, folder, or last")
    parser.add_argument("second", help="likewise")
    parser.add_argument("--code", action="store_true", help="also how the code differs, as diff -u has it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    root = runs.root()
    first, second = runs.find(root, args.first), runs.find(root, args.second)
    found = compare(first, second)
    lines = list(code_diff(first, second)) if args.code and found.code else []
    if args.json:
        said: dict[str, Any] = {"first": _named(first), "second": _named(second), **asdict(found)}
        print(json.dumps(said | ({"code_diff": lines} if args.code else {})))
        return 0
    print(f"- {_stem(first)}\n+ {_stem(second)}")
    _tell(found)
    for line in lines:
        print(line)
    return 0


def _named(run: Run) -> dict[str, Any]:
    return {"run": run.id, "name": run.name, "folder": str(run.folder), "outcome": outcome(run)}


def _stem(run: Run) -> str:
    known = ", ".join(f"{key} {_word(value)}" for key, value in outcome(run).items())
    return f"{run.name}/{run.id}  {known}"


def _tell(found: Comparison) -> None:
    from monitoring.text import clean

    parts = {"configuration": found.config, "environment": found.environment, "data": found.data}
    for title, pairs in parts.items():
        print(f"\n{title}: {'the same' if not pairs else ''}".rstrip())
        for key, (one, other) in pairs.items():
            print(clean(f"  {key}: {_word(one)} -> {_word(other)}"))
    print(f"\ncode: {'the same' if not found.code else ''}".rstrip())
    for file in found.code:
        print(clean(f"  {file.path}: {file.change}, +{file.added} -{file.removed} lines"))
    if found.outcome:
        print("\noutcome:")
        for key, (one, other) in found.outcome.items():
            print(clean(f"  {key}: {_word(one)} -> {_word(other)}"))


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
