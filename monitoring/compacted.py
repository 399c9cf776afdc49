"""What an attempt recorded, in Parquet beside its records: read in a fraction of the time, and only while it is true.

``python -m monitoring.compact`` makes these files of an attempt that has ended:

- ``steps.parquet``: ``step``, ``tokens``, ``t`` and a column for each metric of rank 0's ``step`` records
- ``ranks.parquet``: ``rank``, ``step``, ``t`` and a column for each metric of the ``rank`` records of all ranks; a row
  group for each rank
- ``devices.parquet``: ``rank``, ``t`` and a column for each metric of the ``device`` records of all ranks; a row group
  for each rank
- ``experts.parquet``: ``layer``, ``step``, ``t``, ``tokens`` (a list, one number for each expert), ``entropy``,
  ``dropped``; a row group for each layer

Rows are in the order of the records. A missing value is null, NaN is a value. The file's metadata has, under ``hpc``, a
JSON object: the version of this layout, the records that it was made from (``sources``: how much of each, and a digest
of its two ends), and what has no row. A reader takes a file only if the records still begin like that. They are
append-only, so that what came later is read from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

VERSION = 1
META = b"hpc"
_END = 256  # bytes at each end by which records are known again


def source(path: Path, size: int) -> dict[str, Any]:
    """By what the first ``size`` bytes of some records are known again.

    Raises:
        OSError: if they cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(min(size, _END))
        file.seek(max(0, size - _END))
        end = file.read(min(size, _END))
    return {"name": path.name, "size": size, "digest": hashlib.blake2b(begin + end, digest_size=16).hexdigest()}


def _unchanged(folder: Path, known: Sequence[dict[str, Any]]) -> bool:
    try:
        return all(source(folder / each["name"], each["size"]) == each for each in known)
    except OSError:
        return False


@dataclass(frozen=True)
class Compacted:
    """An open Parquet file whose records are still those that it was made from."""

    file: pq.ParquetFile
    meta: dict[str, Any]

    def sizes(self) -> dict[str, int]:
        """How many bytes of which records are in it."""
        return {each["name"]: each["size"] for each in self.meta["sources"]}


def opened(attempt: Path, name: str) -> Compacted | None:
    """One of the files of an attempt; None if it is not there, or damaged, or not true any more."""
    path = attempt / name
    try:
        if not path.is_file():  # before pyarrow is imported, which takes longer than reading a short run
            return None
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path, page_checksum_verification=True)
        meta = json.loads((file.metadata.metadata or {})[META])
        good = meta["version"] == VERSION and _unchanged(attempt, meta["sources"])
    except (ImportError, OSError, ValueError, KeyError, TypeError):  # pyarrow's own errors are among these
        return None
    return Compacted(file, meta) if good else None


def groups(found: Compacted, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Its row groups, one after the other.

    Raises:
        OSError: if one is damaged.
        ValueError: likewise.
    """
    known = found.file.schema_arrow.names
    wanted = None if columns is None else [name for name in columns if name in known]
    for number in range(found.file.num_row_groups):
        yield found.file.read_row_group(number, columns=wanted)


def fill(columns: Columns, table: pa.Table) -> None:
    """Put the rows of a table into empty columns: step, t and tokens are their fields, all others metrics."""
    for name, values in (*columns.integers().items(), ("t", columns.times)):
        if name in table.column_names:
            values.frombytes(present(table.column(name))[0].tobytes())
    for name in table.column_names:
        if name == "t" or name in columns.integers():
            continue
        values, rows = present(table.column(name))
        if len(values):
            metric = columns.metric(name)
            metric.rows.frombytes(rows.tobytes())
            metric.values.frombytes(values.tobytes())


def present(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of numbers that are not null, and their rows.

    From its buffers, for pyarrow's own conversion would import pandas, which takes longer than all the rest.
    """
    values, rows = [np.empty(0, column.type.to_pandas_dtype())], [np.empty(0, np.int64)]
    begin = 0
    for chunk in column.chunks:
        validity, data = chunk.buffers()
        window = slice(chunk.offset, chunk.offset + len(chunk))
        if len(chunk):
            found, places = np.frombuffer(data, values[0].dtype)[window], np.arange(begin, begin + len(chunk))
            if chunk.null_count:
                valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[window].astype(bool)
                found, places = found[valid], places[valid]
            values.append(found)
            rows.append(places)
        begin += len(chunk)
    return np.concatenate(values), np.concatenate(rows)
