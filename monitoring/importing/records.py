"""Imported attempts as records of this project's own protocol, in the folders in which a run has them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from monitoring import layout
from monitoring.importing import Begin, End, Item, Step, Tally, Unreadable
from monitoring.recorder import PROTOCOL, encode

BUFFER = 1 << 20  # bytes
_MOST_TOKENS = (1 << 63) - 1


@dataclass
class Written:
    """What was written."""

    attempts: int = 0
    steps: int = 0
    began: float = 0.0  # unix seconds
    ended: float = 0.0
    last_step: int = 0
    tokens: int = 0
    cause: str = "unknown"  # of the last attempt's end
    evidence: str = ""


class Writer:
    """Writes the attempts of a run, one after the other.

    Args:
        run: the run's folder, which is there.
        name: the run's name, for the headers.
        tokens_per_step: where the source does not say tokens.
    """

    def __init__(self, run: Path, name: str, tally: Tally, tokens_per_step: int | None = None) -> None:
        self.run, self.name, self.tally, self.tokens_per_step = run, name, tally, tokens_per_step
        self.written = Written()
        self._begin: Begin | None = None
        self._file: IO[bytes] | None = None
        self._seq = 0
        self._steps: int | None = None  # the target that was noted
        self._last: int | None = None

    def write(self, items: Iterable[Item]) -> Written:
        """Everything, synced.

        Raises:
            Unreadable: if a step's tokens are no number that a record can hold.
            OSError: if it cannot be written.
        """
        try:
            for item in items:
                if isinstance(item, Step):
                    self._step(item)
                elif isinstance(item, Begin):
                    self._finish(None)
                    self._start(item)
                else:
                    self._finish(item)
            self._finish(None)
        finally:
            if self._file is not None:
                self._file.close()
        if self.written.attempts:
            self._info(self.written.attempts - 1, {"action": "end"})
        return self.written

    def _start(self, begin: Begin) -> None:
        number = self.written.attempts
        if number == 0:
            self.written.began = begin.t
        self._begin, self._seq, self._last = begin, 0, None
        folder = layout.attempt_folder(self.run, number)
        folder.mkdir(parents=True)
        self._file = layout.rank_records(folder, 0).open("wb", BUFFER)
        header = {
            **{"protocol": PROTOCOL, "run": self.name, "attempt": number, "rank": 0},
            **{"world_size": self.tally.world_size or 1, "host": socket.gethostname(), "pid": os.getpid()},
            "start": begin.t,
        }
        self._put(begin.t, "header", header)
        if begin.resumed_from is not None:
            self._put(begin.t, "event", {"event": "resumed", "fields": {"step": begin.resumed_from}})
        self.written.attempts += 1

    def _step(self, item: Step) -> None:
        tokens = item.tokens
        if tokens is None:
            tokens = item.step * self.tokens_per_step if self.tokens_per_step else 0
        if tokens > _MOST_TOKENS:
            by = f"; tokens_per_step={self.tokens_per_step} is too many" if item.tokens is None else ""
            raise Unreadable(f"step {item.step} has {tokens} tokens, more than 64 bits hold{by}")
        self._put(item.t, "step", {**item.metrics, "step": item.step, "tokens": tokens})
        if self.tally.steps is not None and self.tally.steps != self._steps:
            self._steps = self.tally.steps
            self._put(item.t, "event", {"event": "target", "fields": {"step": item.step, "steps": self._steps}})
        self.written.steps += item.step != self._last
        self._last = item.step
        self.written.last_step, self.written.tokens, self.written.ended = item.step, tokens, item.t

    def _put(self, t: float, kind: str, fields: Mapping[str, Any]) -> None:
        assert self._file is not None
        found = encode(self._seq, t, kind, fields)
        self._seq += len(found)
        self._file.writelines(found)

    def _finish(self, end: End | None) -> None:
        if self._file is None or self._begin is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        number, begin = self.written.attempts - 1, self._begin
        end = end or End(self.written.ended)
        self.written.cause, self.written.evidence = end.cause, end.evidence
        self.written.ended = max(self.written.ended, end.t)
        known = {"resumed_from": begin.resumed_from, "world_size": self.tally.world_size}
        self._info(
            number,
            {
                **{
                    "number": number,
                    "job_id": end.job_id,
                    "nodes": [],
                    "began": begin.t,
                    "ended": self.written.ended,
                    "cause": end.cause,
                },
                **{"evidence": end.evidence, "source": begin.source, "action": "requeue"},
                **{key: value for key, value in known.items() if value is not None},
            },
        )
        self._file = None

    def _info(self, number: int, fields: Mapping[str, Any]) -> None:
        file = layout.attempt_info(layout.attempt_folder(self.run, number))
        old = json.loads(file.read_bytes()) if file.exists() else {}
        file.write_text(json.dumps({**old, **fields}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
