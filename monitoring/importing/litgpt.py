"""lit-gpt, litgpt and TinyLlama: the ``metrics.csv`` of Lightning's CSVLogger with the ``hparams.yaml`` beside it, or
the lines that they print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from monitoring.importing import Item, Tally, csv, files_of, logs


def read(paths: list[Path], tally: Tally, to: str) -> Iterator[Item]:
    """The attempts in CSV files, one of Lightning's version folders each; of other files in their lines."""
    files = files_of(paths, ["metrics.csv"])
    if files and all(file.suffix == ".csv" for file in files):
        for file in files:
            tally.args |= _hparams(file.with_name("hparams.yaml"))
        yield from csv.read(files, tally, to)
    else:
        yield from logs.read(paths, tally, to)


def _hparams(file: Path) -> dict[str, object]:
    import yaml

    try:
        found = yaml.safe_load(file.read_bytes())  # never objects: the file may be anybody's
    except (OSError, yaml.YAMLError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
