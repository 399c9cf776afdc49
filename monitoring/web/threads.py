"""Blocking work beside the event loop.

A read may hang for as long as a file system is away. Threads of the loop's own pool would then keep the program from
ending; these do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
PACE = 4.0  # an answer is good for so many times as long as it took: what is slow to read is read seldom


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What ``work(*args)`` returns or raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.cancelled():  # nobody waits any more
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = work(*args)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="read", daemon=True).start()
    return await done


class Shared(Generic[T]):
    """One answer for all that ask within a time, made once.

    Args:
        make: makes it.
        seconds: for which an answer is good; one that took long is good for longer.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._until = 0.0
        self._value: T | None = None
        self._lock = asyncio.Lock()
        self.asked = 0.0  # loop time at which somebody last did

    async def get(self) -> T:
        loop = asyncio.get_running_loop()
        async with self._lock:
            self.asked = begun = loop.time()
            if self._value is None or begun >= self._until:
                self._value = await self._make()
                ended = loop.time()
                self._until = ended + max(self._seconds, PACE * (ended - begun))
            return self._value
