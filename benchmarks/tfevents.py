"""TensorBoard's event files of the steps that benchmarks/monitoring_runs.py makes, and TensorBoard's two readers."""

from __future__ import annotations

import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.monitoring_runs import BEGIN, METRICS, STEP_S, values

SERVER_PATIENCE = 300.0  # seconds for the data server to have loaded


def write(folder: Path, steps: int, *, joined: bool = False) -> None:
    """An event for each value, as ``SummaryWriter.add_scalar`` writes them; ``joined``: one for all of a step."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    Event, Summary = getattr(event_pb2, "Event"), getattr(summary_pb2, "Summary")  # noqa: B009
    events = [Event(wall_time=BEGIN, file_version="brain.Event:2").SerializeToString()]
    for step, row in enumerate(values(steps, 0).tolist(), 1):
        found = [Summary.Value(tag=name, simple_value=value) for name, value in zip(METRICS, row, strict=True)]
        for value in [found] if joined else [[each] for each in found]:
            event = Event(wall_time=BEGIN + step * STEP_S, step=step, summary=Summary(value=value))
            events.append(event.SerializeToString())
    folder.mkdir(parents=True)
    lengths = [struct.pack("<Q", len(event)) for event in events]
    parts = zip(lengths, _masked(lengths), events, _masked(events), strict=True)
    (folder / "events.out.tfevents.1763800000.host").write_bytes(b"".join(piece for part in parts for piece in part))


def _masked(pieces: Sequence[bytes]) -> list[bytes]:
    """The CRC-32C of each piece as TFRecord has it; all pieces of one length at once, byte by byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    found: list[bytes] = [b""] * len(pieces)
    lengths = np.array([len(piece) for piece in pieces])
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length).tolist()
        rows = np.frombuffer(b"".join(pieces[place] for place in places), np.uint8).reshape(-1, length)
        crc = np.full(len(places), 0xFFFFFFFF, np.uint32)
        for column in np.ascontiguousarray(rows.T):
            crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
        crc = ~crc
        masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
        for place, value in zip(places, masked.tolist(), strict=True):
            found[place] = struct.pack("<I", value)
    return found


def python_s(folder: Path) -> float:
    """Seconds until TensorBoard's Python loader has every value; its import is not counted."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begin = time.perf_counter()
    loader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    loader.Reload()
    seconds = time.perf_counter() - begin
    tags = loader.Tags()
    if not {*METRICS} <= {*tags["scalars"], *tags["tensors"]}:
        raise RuntimeError("TensorBoard has not read all metrics")
    return seconds


def server_s(folder: Path) -> float:
    """Seconds from the start of TensorBoard's data server until it says that it has loaded; it keeps every value."""
    import tensorboard_data_server

    binary = tensorboard_data_server.server_binary()
    assert binary is not None
    with tempfile.TemporaryDirectory() as port:
        argv = [binary, "--logdir", str(folder), "--port", "0", "--port-file", f"{port}/port", "--reload", "once"]
        argv += ["--samples-per-plugin", "scalars=all", "--verbose"]
        begin = time.perf_counter()
        server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if "load cycle" in line.lower() and "finished" in line.lower():
                    return time.perf_counter() - begin
                if time.perf_counter() - begin > SERVER_PATIENCE:
                    break
        finally:
            server.kill()
            server.wait()
    raise RuntimeError("the data server did not say that it had loaded")
