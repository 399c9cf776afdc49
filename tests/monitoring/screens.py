"""The watch application without a terminal, and its screens as text, kept in ``golden/``.

After a change that is meant, write them anew and look at the difference:

    HPC_GOLDEN=write pytest tests/monitoring/test_app.py
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from monitoring.terminal.app import Options, Watch
from monitoring.terminal.source import Source
from tests.monitoring.generate import START

GOLDEN = Path(__file__).parent / "golden"
NOW = START + 350.0
STILL = Options(interval=600.0, now=lambda: NOW)  # nothing is read again by itself
LIVE = Options(interval=0.05)


class Seen:
    """A person who types, points and reads."""

    def __init__(self, app: Watch, pilot: Pilot) -> None:
        self.app = app
        self.pilot = pilot

    async def settle(self) -> str:
        """The screen once all that was asked for is on it."""
        ends = time.monotonic() + 20
        while not self.app.settled and self.app.is_running:
            assert time.monotonic() < ends, f"it did not settle:\n{self.text}"
            await asyncio.sleep(0.002)
        return self.text

    async def press(self, *keys: str) -> str:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()
        return self.text

    async def click(self, x: int, y: int, times: int = 1) -> str:
        """Click on a cell of the screen."""
        await self.pilot.click(offset=(x, y), times=times)
        return await self.settle()

    async def hover(self, x: int, y: int) -> str:
        await self.pilot.hover(offset=(x, y))
        return await self.settle()

    async def resize(self, width: int, height: int) -> str:
        await self.pilot.resize_terminal(width, height)
        return await self.settle()

    async def sees(self, *texts: str) -> str:
        """Wait until all of this is on the screen."""
        ends = time.monotonic() + 20
        while not all(text in self.text for text in texts):
            assert time.monotonic() < ends, f"{texts} did not come:\n{self.text}"
            await asyncio.sleep(0.01)
            await self.pilot.pause()
        return self.text

    @property
    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    @property
    def rows(self) -> list[str]:
        return self.text.split("\n")

    def row(self, text: str) -> int:
        """The first row in which this is."""
        return next(number for number, row in enumerate(self.rows) if text in row)


def watched(
    act: Callable[[Seen], Awaitable[None]],
    source: Source,
    opened: Path | None = None,
    size: tuple[int, int] = (80, 24),
    options: Options = STILL,
) -> None:
    """Let a person do something in the application."""

    async def main() -> None:
        app = Watch(source, opened, options)
        async with app.run_test(size=size) as pilot:
            seen = Seen(app, pilot)
            await seen.settle()
            await act(seen)

    asyncio.run(main())


def golden(name: str, text: str) -> None:
    """Compare a screen with what is kept of it.

    Raises:
        AssertionError: if they differ.
    """
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("HPC_GOLDEN") == "write":
        file.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == file.read_text(encoding="utf-8"), f"{file} differs; see tests/monitoring/screens.py"
