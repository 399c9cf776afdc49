"""Compacts what attempts that have ended recorded to Parquet, beside the records, which stay.

    python -m monitoring.compact RUN [ATTEMPT ...] [--again] [--seconds 600]

``monitoring/compacted.py`` describes the files. Each is written to a temporary name, synced, read back and compared
with the records value by value, and only then gets its name. So it may be ended at any moment, and begun again; two at
once do the same work twice. An attempt counts as ended once its supervisor has decided what follows it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring import compacted, layout
from monitoring.columns import Columns, Metric
from monitoring.compacted import META, VERSION
from monitoring.disk import sync_folder
from monitoring.experts import METRICS, Loads, take
from monitoring.experts import from_table as loads_from
from monitoring.history import Attempt, read_json, stretches_from
from monitoring.ranks import DeviceFile, RankFile
from monitoring.ranks import from_table as rank_from
from monitoring.tail import RecordTail

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_NONE = Metric()
_STALE = 3600.0  # seconds after which a temporary file has no writer any more


class Unequal(Exception):
    """What was read back is not what the records say."""


class Incomplete(Exception):
    """Some records could not be read, and are not in a file; those of the others are."""


def ended(run: Path) -> list[int]:
    """The attempts that have ended and whose records will therefore not grow."""
    numbers = layout.attempt_numbers(run)
    return [n for n in numbers if (read_json(_info(run, n)) or {}).get("action") is not None]


def _info(run: Path, number: int) -> Path:
    return layout.attempt_info(layout.attempt_folder(run, number))


def compact(run: Path, number: int, *, again: bool = False) -> list[str]:
    """Compact one attempt that has ended. Returns the names of the files that were written.

    ``steps.parquet`` is written last: where it is, nothing is left to do, and where it is not, somebody was killed.

    Args:
        again: also where that was done before.

    Raises:
        ImportError: where pyarrow is not installed.
        OSError: if the records cannot be read, or the files not be written.
        Unequal: if what was written does not read back as the records say. Nothing is left of it.
        Incomplete: if records of some ranks cannot be read. All else was compacted.
    """
    folder, written, failed = layout.attempt_folder(run, number), [], None
    _sweep(folder)
    for name, make in (
        (layout.RANKS_COMPACTED, _summaries),
        (layout.DEVICES_COMPACTED, _devices),
        (layout.EXPERTS_COMPACTED, _experts),
        (layout.STEPS_COMPACTED, _steps),
    ):
        try:
            if (again or compacted.opened(folder, name) is None) and make(run, number):
                written.append(name)
        except (Unequal, Incomplete) as error:  # so it would be the next time: no reason to be without the other files
            failed = failed or error
    if failed is not None:
        raise failed
    return written


def _steps(run: Path, number: int) -> bool:
    import pyarrow as pa

    records = Attempt(run, number, records_only=True)
    records.refresh()
    if records.tail.newer or records.tail.error or not records.tail.offset:
        return False
    found = records.stretches
    meta = {
        "sources": [compacted.source(records.tail.path, records.tail.offset)],
        "header": records.header,
        "events": records.events,
        "dropped": records.dropped,
        "unread": records.unread,
        "bad": records.tail.bad,
        "stretches": [[len(stretch.steps), stretch.resumed_from] for stretch in found],
    }
    names = list(dict.fromkeys(name for stretch in found for name in stretch.metrics))
    tables = iter([pa.concat_tables([_table(stretch, names) for stretch in found])])

    def read_back(file: pq.ParquetFile) -> list[Columns]:
        return [*stretches_from(file.read(), meta["stretches"], number)]

    return _write(records.folder / layout.STEPS_COMPACTED, tables, meta, [_digest(each) for each in found], read_back)


def _summaries(run: Path, number: int) -> bool:
    return _ranks(layout.attempt_folder(run, number), RankFile)


def _devices(run: Path, number: int) -> bool:
    return _ranks(layout.attempt_folder(run, number), DeviceFile)


def _ranks(folder: Path, kind: type[RankFile]) -> bool:
    names: list[str] = []
    while True:
        meta: dict[str, Any] = {"sources": [], "dropped": {}, "bad": {}, "left_out": []}
        digests: list[str] = []
        tables = _rank_tables(folder, kind, names, meta, digests)
        with contextlib.suppress(_Wider):
            written = _write(
                folder / kind.parquet,
                tables,
                meta,
                digests,
                lambda file: (rank_from(file.read_row_group(n), kind.make())[1] for n in range(file.num_row_groups)),
            )
            if left_out := meta["left_out"]:
                raise Incomplete(f"{kind.parquet} is without {'; '.join(left_out)}")
            return written


class _Wider(Exception):
    """A metric came up for which there was no column."""


def _rank_tables(
    folder: Path, kind: type[RankFile], names: list[str], meta: dict[str, Any], digests: list[str]
) -> Iterator[pa.Table]:
    """The table of each rank, one at a time, for all together are large; fills the others, ``names`` for the next try.

    Raises:
        _Wider: if a rank has a metric that is not among ``names``.
    """
    first = not names
    for rank in layout.recorded_ranks(folder):
        file = kind(layout.rank_records(folder, rank))
        file.refresh()
        if file.tail.newer or file.tail.error:  # readers take this one's records themselves
            meta["left_out"].append(f"{file.tail.path.name}, {file.tail.error or 'of a newer protocol'}")
            continue
        meta["sources"].append(compacted.source(file.tail.path, file.tail.offset))
        for name, count in (("dropped", file.dropped), ("bad", file.bad)):
            if count:
                meta[name][str(rank)] = count
        new = [name for name in file.columns.metrics if name not in names]
        names.extend(new)
        if new and not first:
            raise _Wider
        if file.columns.size:
            first = False
            digests.append(_digest(file.columns))
            yield _table(file.columns, names, rank=rank)


def _experts(run: Path, number: int) -> bool:
    folder = layout.attempt_folder(run, number)
    tail, layers = RecordTail(layout.experts_records(folder)), dict[int, Loads]()
    for found in tail.read():
        take(found.items, layers)
    if tail.newer or tail.error or not tail.offset:
        return False
    loads = dict(sorted(layers.items()))
    return _write(
        folder / layout.EXPERTS_COMPACTED,
        (_loads_table(layer, found) for layer, found in loads.items()),
        {"sources": [compacted.source(tail.path, tail.offset)], "layers": list(loads)},
        [_digest(found) for found in loads.values()],
        lambda file: (loads_from(file.read_row_group(group)) for group in range(file.num_row_groups)),
    )


def _table(columns: Columns, names: Sequence[str], **same: int) -> pa.Table:
    """Columns as a table with all of ``names``; ``same`` has one value for all rows."""
    import pyarrow as pa

    size = columns.size
    found: dict[str, Any] = {name: pa.array(np.full(size, value, np.int32)) for name, value in same.items()}
    for name, values in columns.integers().items():
        found[name] = pa.array(np.array(values, np.int64))
    found["t"] = pa.array(np.array(columns.times, np.float64))
    for name in names:
        values, missing = columns.metrics.get(name, _NONE).dense(0, size)
        found[name] = pa.array(values, mask=missing)
    if len(found) != len(same) + len(columns.integers()) + 1 + len(names):
        raise Unequal(f"a metric is called like one of {', '.join(same)}")
    return pa.table(found)


def _loads_table(layer: int, loads: Loads) -> pa.Table:
    import pyarrow as pa

    table = _table(loads, METRICS, layer=layer)
    ends = np.concatenate([[0], np.array(loads.ends, np.int64)])
    tokens = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.array(loads.tokens, np.int64)))
    return table.append_column("tokens", tokens)


def _digest(columns: Columns) -> str:
    """Of every value of columns, and of what is missing."""
    found = hashlib.blake2b(digest_size=16)
    for values in (*columns.integers().values(), columns.times):
        found.update(values)
    if isinstance(columns, Loads):
        found.update(columns.tokens)
        found.update(columns.ends)
    for name in sorted(name for name, column in columns.metrics.items() if column.rows):
        found.update(f"{name}\n".encode())
        found.update(columns.metrics[name].rows)
        found.update(columns.metrics[name].values)
    return found.hexdigest()


def _write(
    path: Path,
    tables: Iterator[pa.Table],
    meta: dict[str, Any],
    digests: Sequence[str],
    read_back: Callable[[pq.ParquetFile], Iterable[Columns]],
) -> bool:
    """Write tables, a row group each, and let the file have its name once it reads back as ``digests`` say.

    Returns whether there was anything to write. ``meta`` and ``digests`` need not be filled before the tables are.
    """
    import pyarrow.parquet as pq

    if (first := next(tables, None)) is None:
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    integers = [field.name for field in first.schema if str(field.type) in ("int64", "int32")]
    doubles = [field.name for field in first.schema if str(field.type) == "double"]
    encoding = {**dict.fromkeys(integers, "DELTA_BINARY_PACKED"), **dict.fromkeys(doubles, "BYTE_STREAM_SPLIT")}
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "column_encoding": encoding}
    try:
        with temporary.open("wb") as file:
            with pq.ParquetWriter(file, first.schema, write_page_checksum=True, **options) as writer:
                for table in chain([first], tables):
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
                writer.add_key_value_metadata({META: json.dumps({"version": VERSION, **meta}).encode()})
            file.flush()
            os.fsync(file.fileno())
        with pq.ParquetFile(temporary, page_checksum_verification=True) as file:
            back = [_digest(columns) for columns in read_back(file)]
        if back != list(digests):
            raise Unequal(f"{path} does not read back as its records say")
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _sweep(folder: Path) -> None:
    """Remove what was being written when its writer died."""
    for path in folder.glob(".*.parquet.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.compact", description="Records of ended attempts to Parquet."
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("attempts", type=int, nargs="*", metavar="ATTEMPT", help="all that have ended, by default")
    parser.add_argument("--again", action="store_true", help="also those that were compacted before")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no attempt after so long (600)")
    given = parser.parse_args(argv)
    if not given.run.is_dir():
        print(f"{given.run} is no run folder", file=sys.stderr)
        return 2
    known = ended(given.run)
    if wrong := [number for number in given.attempts if number not in known]:
        print(f"attempt {wrong[0]} has not ended; those that have: {known or 'none'}", file=sys.stderr)
        return 2
    end, status = time.monotonic() + given.seconds, 0
    for number in given.attempts or known:
        if time.monotonic() > end:
            break
        try:
            for name in compact(given.run, number, again=given.again):
                print(f"attempt {number}: {name}")
        except Incomplete as error:
            print(f"attempt {number}: {error}", file=sys.stderr)
            status = 1
        except (OSError, ValueError, Unequal, ImportError) as error:
            print(f"attempt {number}: not compacted: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
