"""A run as TensorBoard's event files: its curve, what tells it from others as hparams, lost stretches if wanted.

``FOLDER/<name>/<id>/`` is a run of TensorBoard's, ``FOLDER/<name>/<id>/lost-attempt-<k>/`` what attempt k did in vain.
Values are float32, as TensorBoard keeps them; NaN and infinities stay.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

import numpy as np

from monitoring import tfevents
from monitoring.export import About, replacing
from monitoring.export.increments import Chunk, Increment, chunks
from monitoring.history import History

_SKIPPED = ("tokens",)  # made a scalar of its own


def make(folder: Path, about: About, lost: bool) -> TensorBoard:
    return TensorBoard(folder / about.name / about.id, about, lost)


class TensorBoard:
    """One run's event file, which grows."""

    appends_only = False

    def __init__(self, folder: Path, about: About, lost: bool) -> None:
        self.folder, self.about, self.lost = folder, about, lost
        self.file: IO[bytes] | None = None

    def take(self, found: Increment, history: History) -> None:
        if self.file is None:
            with replacing(_path(self.folder, self.about.id)) as file:
                file.write(self._beginning(found))
                _write(file, found)
            self.file = file
        else:
            _write(self.file, found)
            self.file.flush()

    def restart(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None

    def close(self, history: History, state: str) -> None:
        if self.file is not None:
            if self.about.changed and state in ("finished", "failed", "cancelled"):
                t = history.updated or time.time()
                self.file.write(tfevents.framed([tfevents.hparams_end(t, state == "finished")]))
            self.file.close()
        if self.lost:
            self._lost(history)

    def _beginning(self, found: Increment) -> bytes:
        t = float(found.chunks[0].times[0]) if found.chunks else time.time()
        payloads = [tfevents.first(t)]
        if self.about.changed:
            payloads.append(tfevents.hparams_start(t, self.about.id, self.about.changed))
        return tfevents.framed(payloads)

    def _lost(self, history: History) -> None:
        seen: dict[int, int] = {}
        for stretch in history.stretches():
            if not stretch.lost:
                continue
            number = seen[stretch.attempt] = seen.get(stretch.attempt, 0) + 1
            name = f"lost-attempt-{stretch.attempt}" + (f".{number}" if number > 1 else "")
            found = Increment(chunks=list(chunks(stretch, stretch.kept, len(stretch.steps))))
            with replacing(_path(self.folder / name, self.about.id)) as file:
                file.write(tfevents.framed([tfevents.first(float(found.chunks[0].times[0]))]))
                _write(file, found)
            file.close()


def _path(folder: Path, run: str) -> Path:
    return folder / f"events.out.tfevents.{run}"  # always the same, so that a new export takes the place of the old


def _write(file: IO[bytes], found: Increment) -> None:
    if found.back_to is not None:
        t = float(found.chunks[0].times[0]) if found.chunks else time.time()
        file.write(tfevents.framed([tfevents.forget(t, found.back_to + 1)]))
    for chunk in found.chunks:
        file.write(tfevents.framed(_payloads(chunk)))


def _payloads(chunk: Chunk) -> list[bytes]:
    """One payload a step."""
    values: list[list[bytes]] = [[] for _ in chunk.steps]
    columns = {name: each for name, each in chunk.metrics.items() if name not in _SKIPPED}
    if chunk.tokens.any():
        columns["tokens"] = np.arange(len(chunk.tokens)), chunk.tokens
    for name, (rows, column) in columns.items():
        head = tfevents.value_head(name)
        with np.errstate(over="ignore"):
            packed = column.astype("<f4").tobytes()
        for place, row in enumerate(rows.tolist()):
            values[row].append(head + packed[4 * place : 4 * place + 4])
    rows = zip(chunk.times.tolist(), chunk.steps.tolist(), values, strict=True)
    return [tfevents.scalars(t, step, found) for t, step, found in rows if found]
