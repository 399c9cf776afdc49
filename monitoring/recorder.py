"""Records of a rank: the file protocol, version 1, and its only writer.

``docs/records.md`` says the same to whoever reads or writes such files in another language.

**Files.** Each rank of each attempt appends to a file of its own, ``rank-<r>.jsonl``; rank 0 also appends to
``experts.jsonl`` (``monitoring/layout.py`` spells the names). No file ever has two writers: appending from
two nodes is not safe on network file systems. Nobody but the writer changes a file, and nobody deletes it.

**Lines.** A file is a sequence of lines, each a JSON object in UTF-8 that ends with ``\\n`` and is shorter
than 4096 bytes. It is compact, without spaces outside of strings: readers look for bytes such as
``"kind":"device"`` and parse only the lines that have them. A line is written whole or is the file's torn last
line, which a reader leaves alone until the newline is there. A batch of lines is one write(2). A line that cannot
be parsed is skipped and counted; bytes up to the last NUL in a line are damage of the file system, what follows
them is a line again. Empty lines mean nothing. A write that failed is written again as a whole, whatever of it had
landed: a record whose ``seq`` is not above the last one's is a copy, and is skipped.

**Fields.** Every line has ``seq`` (counts up by 1 from 0 in its file, across all kinds), ``t`` (wall time
when the record was made, unix seconds; a clock may jump, so order is by ``seq`` alone) and ``kind``:

- ``header``: the first line. ``protocol``, ``run``, ``attempt``, ``rank``, ``world_size``, ``host``, ``pid``,
  ``start`` (unix seconds). A second header begins the work of a writer that started anew.
- ``step``: one optimizer step, rank 0 only. ``step``, ``tokens`` (consumed since the first attempt; 0 where a program
  does not say), metrics.
- ``rank``: a summary of one rank. ``step``, ``step_s`` (seconds of a step), metrics.
- ``device``: what the rank's GPU, process and node did up to ``t``: metrics (``monitoring/devices.py`` says which).
- ``experts``: ``step``, ``layer``, ``first``, ``load``: tokens routed to the layer's experts ``first``,
  ``first + 1`` ... as integers. A layer of more than 256 experts takes several lines. The line with ``first`` 0
  may also have ``entropy``, a metric: the mean entropy of the layer's router, natural logarithm; and
  ``dropped``, an integer: rows sent to the layer's experts beyond their capacity.
- ``event``: something happened. ``event`` names it, the other fields say what. Known to readers: ``resumed``
  with ``step``, the checkpoint's step from which this attempt goes on; ``rewound`` with ``to_step``, the step
  from which it goes on once more, having gone back by itself; ``target`` with ``steps``, of a program that says how
  many it will do in all. One with more fields than a line holds takes
  several lines of the same ``event`` and ``step``.
- ``dropped``: records were lost because they could not be written. ``count``, ``error``.

Metrics are floats and stand beside the other fields; those names win over a metric of the same name. A metric
that is not finite is the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``; one that is missing is not
there. ``null`` is never written. Two lines of one kind and step in one file are one record: their metrics are
joined.

**Versions.** A reader takes any file whose ``protocol`` is at most its own, ignores fields and kinds that it
does not know, and leaves a newer file alone, saying so. A change that an old reader would misread raises the
version.

**Losses.** What was written survives the death of the process; ``sync`` makes it survive that of the machine.
At most a second of records waits in memory. While nothing can be written (disk full, read-only, stale
handle), up to ``WAITING`` records are kept and written later; those beyond are counted and noted by a
``dropped`` record.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monitoring import layout
from monitoring.disk import sync_folder

try:
    from orjson import dumps
except ImportError:  # a program of one's own may run in an environment without it
    import json

    def dumps(value: Any, /) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


PROTOCOL = 1
LINE = 4096  # bytes; every line is shorter, its newline included
FLUSH = 0.5  # seconds between two writes
WAITING = 20_000  # records kept in memory while nothing can be written
BATCH = 1 << 20  # most bytes of one write(2)
EXPERTS_PER_LINE = 256

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(value: Any) -> float | str:
    """A metric as the protocol writes it: a float, or the name of what is not finite."""
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def metric(value: Any) -> float | None:
    """The reverse of ``number``; None for anything that is no metric."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def lines(seq: int, t: float, kind: str, fixed: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[bytes]:
    """One record as whole lines: one, or as many as keep each shorter than ``LINE``.

    Args:
        fixed: fields that every one of the lines repeats.
        fields: the others; those that the protocol or ``fixed`` names are left out.
    """
    rest = {key: value for key, value in fields.items() if key not in fixed and key not in ("seq", "t", "kind")}
    line = dumps({"seq": seq, "t": t, "kind": kind, **fixed, **rest}) + b"\n"
    if len(line) < LINE:
        yield line
    elif len(rest) > 1:
        items = list(rest.items())
        half = list(lines(seq, t, kind, fixed, dict(items[: len(items) // 2])))
        yield from half
        yield from lines(seq + len(half), t, kind, fixed, dict(items[len(items) // 2 :]))
    elif rest:
        ((key, value),) = rest.items()
        short = str(value).encode("utf-8", "replace")[: LINE // 16].decode("utf-8", "ignore") + " ..."
        yield dumps({"seq": seq, "t": t, "kind": kind, **fixed, key[: LINE // 32]: short}) + b"\n"


def encode(seq: int, t: float, kind: str, fields: Mapping[str, Any]) -> list[bytes]:
    """The lines of one record of the given kind; ``fields`` as the methods of ``Recorder`` name them."""
    if kind in ("step", "rank", "device"):
        fixed = {} if kind == "device" else {"step": int(fields["step"])}
        if kind == "step":
            fixed["tokens"] = int(fields["tokens"])
        metrics = {}
        for name, value in fields.items():
            if name not in fixed:
                with contextlib.suppress(TypeError, ValueError, OverflowError):
                    metrics[name] = number(value)
        return list(lines(seq, t, kind, fixed, metrics))
    if kind == "experts":
        found: list[bytes] = []
        for layer, load in fields["layers"].items():
            more = {}
            if layer in (entropy := fields.get("entropy") or {}):
                more["entropy"] = number(entropy[layer])
            if layer in (dropped := fields.get("dropped") or {}):
                more["dropped"] = int(dropped[layer])
            for first in range(0, len(load), EXPERTS_PER_LINE):
                part = [int(count) for count in load[first : first + EXPERTS_PER_LINE]]
                fixed = {"step": int(fields["step"]), "layer": int(layer), "first": first, "load": part}
                found += lines(seq + len(found), t, kind, fixed if first else fixed | more, {})
        return found
    if kind == "event":
        given, fixed = _plain(fields["fields"]), {"event": str(fields["event"])[: LINE // 32]}
        if type(given.get("step")) is int:
            fixed["step"] = given["step"]
        return list(lines(seq, t, kind, fixed, given))
    return list(lines(seq, t, kind, {}, _plain(fields)))


def _plain(value: Any) -> Any:
    """A field of an event as JSON has it; what JSON lacks becomes text."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


class _File:
    """One growing file: records come in from one thread, another turns them into lines and writes them."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.header = header
        self.handle: int | None = None
        self.made: deque[tuple[str, float, Mapping[str, Any]]] = deque()  # filled by the caller's thread
        self.waiting: deque[bytes] = deque()  # whole lines, owned by the writer's thread, as is all below
        self.named = False  # the file's entry in its folder is on the disk too
        self.seq = 0
        self.whole = 0  # bytes of the file up to the last newline we wrote
        self.refused = 0  # records turned away since the file was made; counts up in the caller's thread
        self.noted = 0  # how many of those, and of the broken, were already put into a dropped record
        self.broken = 0  # records that could not be turned into lines
        self.error = ""
        self._take("header", time.time(), header)

    def write(self) -> bool:
        """Write what is waiting. False if some of it could not be written; it stays."""
        self._encode()
        if not self.waiting:
            return True
        try:
            if self.handle is None:
                self._open()
            while self.waiting:
                self._write_batch()
                self._encode()  # of more records than WAITING, the rest
            self._note_dropped()
        except Exception as error:  # nothing may end the writer's thread: all that is recorded later would be lost
            self.error = _words(error)
            self._abandon()
            return False
        return True

    def sync(self) -> bool:
        """Put what was written on the disk itself, the file's name too. False if the disk refuses."""
        if self.handle is None:
            return True
        try:
            os.fsync(self.handle)
            if not self.named:
                sync_folder(self.path.parent)
                self.named = True
        except Exception as error:  # as in ``write``
            self.error = _words(error)
            return False
        return True

    def close(self) -> None:
        if self.handle is not None:
            with contextlib.suppress(OSError):
                os.close(self.handle)
            self.handle = None

    def _encode(self) -> None:
        # Not beyond WAITING lines: what cannot be written yet stays small, and the caller sees `made` grow.
        while self.made and len(self.waiting) < WAITING:
            self._take(*self.made.popleft())

    def _take(self, kind: str, t: float, fields: Mapping[str, Any]) -> None:
        try:
            found = encode(self.seq, t, kind, fields)
        except Exception as error:  # whatever a caller hands over must not end the writer
            self.broken += 1
            self.error = f"{type(error).__name__} in a record of kind {kind}"
            return
        self.waiting.extend(found)
        self.seq += len(found)

    def _note_dropped(self) -> None:
        lost = self.refused + self.broken - self.noted
        if lost:
            self._take("dropped", time.time(), {"count": lost, "error": self.error})
            self.noted += lost
            self._write_batch()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self.handle).st_size
        self.whole = size
        if size and os.pread(self.handle, 1, size - 1) != b"\n":
            self.waiting.appendleft(b"\n")  # ends a line that we, or a writer before us, left torn

    def _write_batch(self) -> None:
        assert self.handle is not None
        batch: list[bytes] = []
        size = 0
        for line in self.waiting:
            if batch and size + len(line) > BATCH:
                break
            batch.append(line)
            size += len(line)
        written = os.write(self.handle, b"".join(batch))
        whole = 0
        for line in batch:
            if whole + len(line) > written:
                break
            whole += len(line)
            self.waiting.popleft()
        self.whole += whole
        if written > whole:  # the disk took part of a line: take it back, so that no reader ever meets it
            os.ftruncate(self.handle, self.whole)
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _abandon(self) -> None:
        """Give the handle up after an error; the next write opens the file anew, as a stale handle needs."""
        if self.handle is None:
            return
        with contextlib.suppress(OSError):
            if os.fstat(self.handle).st_size > self.whole:
                os.ftruncate(self.handle, self.whole)
        self.close()


def _words(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return said or str(error)


class Recorder:
    """Appends the records of one rank of one attempt. No method raises, whatever the disk does.

    A hand-over costs the calling thread some microseconds: values are only queued. They must be host numbers,
    and must not be changed afterwards. A background thread writes them.

    Args:
        folder: the attempt's folder.
        run: name of the run, for the header.
        attempt: number of the attempt.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, run: str, attempt: int) -> None:
        self._folder = Path(folder)
        self._header = {
            "protocol": PROTOCOL,
            "run": run,
            "attempt": attempt,
            "rank": rank,
            "world_size": world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": time.time(),
        }
        self._records = _File(layout.rank_records(self._folder, rank), self._header)
        self._experts: _File | None = None
        self._wake = threading.Condition()
        self._asked = 0  # syncs asked for
        self._done = 0  # the last of them that was answered
        self._complete = True  # whether the last answered sync left nothing unwritten
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"recorder-{rank}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def step(self, /, *, step: int, tokens: int, **metrics: float) -> None:
        """One optimizer step; rank 0 only.

        Args:
            step: counts from 1 at the run's first step, across attempts.
            tokens: consumed since the first attempt, this step's included.
        """
        self._hand_over(self._records, "step", {"step": step, "tokens": tokens, **metrics})

    def rank(self, /, *, step: int, step_s: float, **metrics: float) -> None:
        """A summary of this rank at ``step``; ``step_s`` is in seconds."""
        self._hand_over(self._records, "rank", {"step": step, "step_s": step_s, **metrics})

    def device(self, /, **metrics: float) -> None:
        """What this rank's GPU, process and node do; ``monitoring/devices.py`` names the metrics."""
        self._hand_over(self._records, "device", metrics)

    def experts(
        self,
        *,
        step: int,
        layers: Mapping[int, Sequence[int]],
        entropy: Mapping[int, float] | None = None,
        dropped: Mapping[int, int] | None = None,
    ) -> None:
        """Tokens routed to each expert, by layer; rank 0 only.

        Args:
            entropy: of the router, by layer, mean over tokens, natural logarithm.
            dropped: rows beyond the capacity of their expert, by layer.
        """
        if self._experts is None:
            self._experts = _File(layout.experts_records(self._folder), self._header)
        fields = {"step": step, "layers": layers, "entropy": entropy, "dropped": dropped}
        self._hand_over(self._experts, "experts", fields)

    def event(self, kind: str, **fields: Any) -> None:
        """Something that happened, such as a checkpoint; ``fields`` are strings, numbers, or lists of
        them."""
        self._hand_over(self._records, "event", {"event": kind, "fields": fields})

    def sync(self, timeout: float = 10.0) -> bool:
        """Wait until all records so far are on the disk itself, at most ``timeout`` seconds.

        Returns:
            Whether they are. False where the disk takes nothing or does not answer in time.
        """
        with self._wake:
            self._asked += 1
            mine = self._asked
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._done >= mine or not self._thread.is_alive(), timeout)
            return self._done >= mine and self._complete

    def close(self, timeout: float = 10.0) -> bool:
        """``sync`` and end; records made later are not written."""
        atexit.unregister(self.close)
        complete = self.sync(timeout)
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(1.0)
        return complete

    def _hand_over(self, file: _File, kind: str, fields: Mapping[str, Any]) -> None:
        if len(file.made) >= WAITING:
            file.refused += 1
        else:
            file.made.append((kind, time.time(), fields))

    def _work(self) -> None:
        while not self._closing:
            with self._wake:
                if self._asked == self._done:
                    self._wake.wait(FLUSH)
                asked = self._asked
            files = [file for file in (self._records, self._experts) if file is not None]
            complete = sum(file.write() for file in files) == len(files)  # each is tried
            if asked != self._done:
                complete = sum(file.sync() for file in files) == len(files) and complete
                with self._wake:
                    self._done, self._complete = asked, complete
                    self._wake.notify_all()
        for file in (self._records, self._experts):
            if file is not None:
                file.close()
