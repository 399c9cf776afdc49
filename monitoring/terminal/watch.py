"""The live screen: look, paint what changed, wait for a key, until the run ends or the person leaves.

Only rows that changed are sent, in one write, so that nothing flickers over a slow line. Whatever happens,
the terminal is left as it was found.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from monitoring.snapshot import Snapshot
from monitoring.terminal.plain import line, plain, summary
from monitoring.terminal.screen import header, loss, progress, screen

# The other screen, no cursor, and no wrapping: a row that is too wide is cut and does not shift the others.
ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
# The bottom left first, for terminals that have no other screen to come back from.
LEAVE = "\x1b[999;1H\x1b[K\x1b[?7h\x1b[?25h\x1b[?1049l"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"  # shown at once where a terminal can; ignored elsewhere
LINE_EVERY = 10.0  # seconds between two lines where the screen is no terminal

# For terminals without Unicode.
_ASCII = str.maketrans("─━╸│┤└┴·–×▁▂▃▄▅▆▇█", "-=-|+++.-x12345678")


class Left(Exception):
    """The person asked to leave."""


def watch(
    read_snapshot: Callable[[], Snapshot],
    *,
    interval: float = 0.5,
    until_done: bool,
    console: Console | None = None,
) -> Snapshot:
    """Show a run until it ended (``until_done``) or the person leaves with q or Ctrl-C; returns the last
    snapshot.

    Where the console is no terminal, print one plain snapshot, or with ``until_done`` a line now and then and
    the summary at the end.

    Args:
        read_snapshot: takes the next look at the run.
        interval: seconds between two looks.
        until_done: end by itself when the run has ended.
    """
    console = console or Console()
    if not console.is_terminal or console.is_dumb_terminal:
        return _print_lines(read_snapshot, interval, until_done, console)
    snapshot = read_snapshot()
    terminal = _Terminal(console)
    with contextlib.suppress(Left), _signals(terminal), terminal:
        while True:
            snapshot = read_snapshot()
            if until_done and snapshot.done:
                break
            terminal.paint(screen(snapshot, *terminal.size(), unicode=terminal.unicode))
            terminal.wait(interval)
    if snapshot.done:
        terminal.print_rows(_last_frame(snapshot, terminal))
        terminal.print_text("\n" + summary(snapshot, terminal.size()[0]))
    else:
        terminal.print_text(line(snapshot))
    return snapshot


def _last_frame(snapshot: Snapshot, terminal: _Terminal) -> list[Text]:
    """What stays above the summary: state, progress and curve, as tall as leaves both on one screen."""
    width, height = terminal.size()
    rows = [*header(snapshot, width), *progress(snapshot, width)]
    room = min(16, height - len(rows) - len(summary(snapshot, width).splitlines()) - 3)
    return rows + (loss(snapshot, width, room, unicode=terminal.unicode) if room >= 5 else [])


def _print_lines(
    read_snapshot: Callable[[], Snapshot], interval: float, until_done: bool, console: Console
) -> Snapshot:
    terminal = _Terminal(console)
    snapshot = read_snapshot()
    if not until_done:
        terminal.print_text(plain(snapshot))
        return snapshot
    shown, due = None, 0.0
    with contextlib.suppress(KeyboardInterrupt):
        while not snapshot.done:
            now = time.monotonic()
            key = (snapshot.state, len(snapshot.attempts))
            if key != shown or now >= due:
                terminal.print_text(line(snapshot))
                shown, due = key, now + LINE_EVERY
            time.sleep(interval)
            snapshot = read_snapshot()
    terminal.print_text(summary(snapshot) if snapshot.done else line(snapshot))
    return snapshot


class _Terminal:
    """The person's terminal while the screen is ours."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = console.encoding.lower().replace("-", "").startswith("utf")
        self._shown: list[str] = []
        self._shown_size = (0, 0)
        self._keys: int | None = None
        self._settings: list | None = None
        self._waiting = self._leaving = False

    def __enter__(self) -> _Terminal:
        with contextlib.suppress(OSError, ValueError, termios.error):
            if sys.stdin.isatty():
                keys = sys.stdin.fileno()
                self._settings = termios.tcgetattr(keys)
                self._keys = keys
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def size(self) -> tuple[int, int]:
        width, height = self.console.size
        return width, height

    def paint(self, rows: list[Text]) -> None:
        """Bring the screen to ``rows``, sending only those that differ from what is shown."""
        size = self.size()
        new = [self._ansi(row) for row in rows[: size[1]]]
        new += [""] * (size[1] - len(new))
        out = []
        if size != self._shown_size:
            self._shown = []
            out.append("\x1b[2J")
        for number, row in enumerate(new):
            if number >= len(self._shown) or row != self._shown[number]:
                out.append(f"\x1b[{number + 1};1H\x1b[2K{row}")
        if out:
            self._write(BEGIN + "".join(out) + END)
        self._shown, self._shown_size = new, size

    def leave(self) -> None:
        """What Ctrl-C does: leave at the next wait, or now if that is where we are. Raised anywhere else, an exception
        may fall into code that swallows it, and the person would have to ask again."""
        self._leaving = True
        if self._waiting:
            raise Left

    def wait(self, seconds: float) -> None:
        """Wait for a key or the time.

        Raises:
            Left: if the key was q, or Ctrl-C came.
        """
        self._waiting = True
        try:
            if self._leaving:
                raise Left
            ready = select.select([self._keys] if self._keys is not None else [], [], [], seconds)[0]
        finally:
            self._waiting = False
        if not ready or self._keys is None:
            return
        keys = os.read(self._keys, 64)
        if not keys:
            self._keys = None  # nobody types any more
        elif keys[:1] in (b"q", b"Q"):
            raise Left
        elif keys[:1] == b"\x1a":
            self._give_back()
            os.kill(0, signal.SIGTSTP)
            self._take()

    def print_rows(self, rows: list[Text]) -> None:
        self._write("".join(self._ansi(row) + "\n" for row in rows))

    def print_text(self, text: str) -> None:
        self._write(text + "\n")

    def _take(self) -> None:
        if self._keys is not None and self._settings is not None:
            ours = [*self._settings[:6], list(self._settings[6])]
            ours[3] &= ~(termios.ICANON | termios.ECHO)
            ours[6][termios.VSUSP] = b"\0"  # Ctrl-Z reaches us as a key, so that the screen can be given back first
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, ours)
        self._shown, self._shown_size = [], (0, 0)
        self._write(ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._write(LEAVE)
        if self._keys is not None and self._settings is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._settings)

    def _ansi(self, row: Text) -> str:
        with self.console.capture() as captured:
            self.console.print(row, end="", no_wrap=True, overflow="crop", crop=True)
        return captured.get()

    def _write(self, text: str) -> None:
        if not self.unicode:
            text = text.translate(_ASCII).encode("ascii", "replace").decode()
        self.console.file.write(text)
        self.console.file.flush()


@contextlib.contextmanager
def _signals(terminal: _Terminal) -> Iterator[None]:
    """SIGTERM and SIGHUP end this process through its clean-up, so that the terminal is given back; Ctrl-C leaves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: terminal.leave())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
