"""Processes of this machine."""

from __future__ import annotations

import ctypes
import signal


def end_with_parent(number: signal.Signals) -> None:
    """For a child process: should its parent be killed, it is sent this signal (Linux)."""
    ctypes.CDLL(None).prctl(1, number)


def process_lives(pid: int, began: float) -> bool:
    """Whether a process that existed at unix time ``began`` still runs, and is not another one with its number."""
    import psutil

    try:
        process = psutil.Process(pid)
        # A child that ended and was not waited for still has its number.
        return process.create_time() <= began + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
