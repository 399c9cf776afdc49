"""The newest word of each rank of a run's newest attempt."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from monitoring import layout
from monitoring.tail import RecordTail, newest

_BEGIN = 1 << 16  # bytes of a file that is already there from which on it is followed; before them it is looked up


class Latest:
    """The newest record of each rank, of some kinds; ``read`` takes in what was written since it was last called.

    Args:
        run: the run's folder.
        kinds: such as ``device``.
    """

    def __init__(self, run: Path, kinds: Collection[str]) -> None:
        self.run = run
        self._kinds = kinds
        self._attempt: Path | None = None
        self._tails: dict[int, RecordTail] = {}
        self._found: dict[int, dict[str, dict[str, Any]]] = {}

    def read(self) -> dict[int, dict[str, dict[str, Any]]]:
        """By rank, then by kind; of what nobody recorded there is nothing. Of a short file also its header."""
        numbers = layout.attempt_numbers(self.run)
        attempt = layout.attempt_folder(self.run, numbers[-1]) if numbers else None
        if attempt != self._attempt:
            self._attempt, self._tails, self._found = attempt, {}, {}
        if attempt is not None:
            for rank in layout.recorded_ranks(attempt):
                self._read(rank, layout.rank_records(attempt, rank))
        return self._found

    def _read(self, rank: int, path: Path) -> None:
        if rank not in self._tails:
            # Behind it may be minutes of steps: more than is worth being parsed. Steps are told of by rank 0 alone.
            looked_up = ((kind, next(newest(path, kind), None)) for kind in self._kinds if not rank or kind != "step")
            self._found[rank] = {kind: record for kind, record in looked_up if record is not None}
            self._tails[rank] = RecordTail(path, begin=_BEGIN, kinds=self._kinds)
        for found in self._tails[rank].read():
            if found.again:
                self._found[rank] = {}
            self._found[rank].update((record["kind"], record) for record in found.items)
