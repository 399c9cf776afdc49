"""``hpc watch`` as an application: what takes keys and the mouse, and puts on the terminal what the desk has drawn.

Nothing is read here, and nothing drawn: a view is asked by the desk's thread, and of what it drew only those rows are
sent to the terminal that differ from what stands there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.message import Message
from textual.widgets import Input

from monitoring.snapshot import Snapshot
from monitoring.terminal.desk import Desk, Frame
from monitoring.terminal.last import print_last
from monitoring.terminal.source import Source
from monitoring.terminal.view import Key, Opens, View
from monitoring.terminal.views.attempts import Attempts
from monitoring.terminal.views.curves import Curves
from monitoring.terminal.views.devices import Devices
from monitoring.terminal.views.experts import Experts
from monitoring.terminal.views.findings import Findings
from monitoring.terminal.views.help import Help
from monitoring.terminal.views.logs import Logs
from monitoring.terminal.views.overview import Overview
from monitoring.terminal.views.ranks import Ranks
from monitoring.terminal.views.runs import Runs
from monitoring.terminal.watched import Watched
from monitoring.terminal.widgets import Ascii, Foot, Moused, Pane, Pressed, Tabs

VIEWS = (Overview, None, Ranks, Experts, Devices, Attempts, Logs, Findings)  # None: curves, which may be of several
KEPT = 12  # runs whose records stay in memory once they were opened
PATIENCE = 0.2  # seconds for which a view stays seen while the next one is read
SLOW = 2.0  # seconds of reading after which the screen says so


class Drawn(Message):
    """The desk has drawn something."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame


@dataclass
class Place:
    """Views beside each other, one of which is seen."""

    views: Sequence[View]
    current: int = 0
    watched: Watched | None = None  # the run, where it is one

    @property
    def view(self) -> View:
        return self.views[self.current]


@dataclass(frozen=True)
class Options:
    """How to watch."""

    interval: float = 0.5  # seconds between two looks at the files
    until_done: bool = False  # end by itself when the run has ended
    unicode: bool = True
    now: Callable[[], float] = field(default=time.time)


class Watch(App[None]):
    """Runs in a list, and each of them from near.

    Args:
        opened: a run to begin with; None: with the list.
    """

    CSS = """
    Screen { layout: vertical; }
    Tabs, Foot { height: 1; }
    Tabs.alone { display: none; }
    Pane { height: 1fr; }
    Input { display: none; height: 1; border: none; padding: 0 1; }
    Input:focus { border: none; }
    Input.asked { display: block; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "quit", priority=True, show=False),
        Binding("ctrl+z", "suspend_process", priority=True, show=False),
        Binding("tab", "turn(1)", priority=True, show=False),
        Binding("shift+tab", "turn(-1)", priority=True, show=False),
        Binding("escape", "back", priority=True, show=False),
    ]

    def __init__(self, source: Source, opened: Path | None = None, options: Options = Options()) -> None:
        super().__init__(ansi_color=True)
        # Held, not queried for: a timer or a frame may come when the screen's widgets are already being removed.
        self._tabs, self._pane, self._prompt, self._foot = Tabs(), Pane("pane"), Input(id="prompt"), Foot()
        self.options = options
        self.source = source
        self.watched: Watched | None = None  # the run that is, or was last, seen
        self._opened = opened
        self._runs: dict[Path, Watched] = {}
        self._places: list[Place] = []
        self._desk = Desk(self._take, every=options.interval, unicode=options.unicode)
        self._asking: Key | None = None
        self._pointed = (-1, -1)
        self._shown = 0  # requests to the desk that what is seen answers
        self._ascii = Ascii(enabled=not options.unicode)

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), *([self._ascii] if self._ascii.enabled else [])]

    def compose(self) -> ComposeResult:
        yield self._tabs
        yield self._pane
        yield self._prompt
        yield self._foot

    def on_mount(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
                asyncio.get_running_loop().add_signal_handler(number, self._end, number)
        self._pane.focus()
        self._desk.start()
        self._go(Place([Runs(self.source)]) if self._opened is None else self._place_of(self._opened))
        self.set_interval(1.0, self._keys)

    def on_unmount(self) -> None:
        self._desk.stop()

    def _end(self, number: int) -> None:
        self.exit(return_code=0 if number == signal.SIGINT else 128 + number)

    # -- what is seen ----------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """All that was asked for is on the screen."""
        return bool(self._desk.asked) and self._shown >= self._desk.asked

    @property
    def place(self) -> Place:
        return self._places[-1]

    def _run(self, folder: Path) -> Watched:
        found = self._runs.pop(folder, None)
        if found is None:
            source = self.source
            found = Watched(
                folder, lambda: source.job(folder), lambda *said: source.quieten(folder, *said), self.options.now
            )
        self._runs[folder] = found
        for old in list(self._runs)[:-KEPT]:
            del self._runs[old]
        return found

    def _place_of(self, folder: Path) -> Place:
        watched = self._run(folder)
        views = [Curves([watched]) if tab is None else tab(watched) for tab in VIEWS]
        return Place(views, watched=watched)

    def _go(self, place: Place) -> None:
        self._places.append(place)
        self._see()

    def _see(self) -> None:
        place = self.place
        self.watched = place.watched or self.watched
        self._pointed = (-1, -1)
        self._tabs.set_class(len(place.views) == 1, "alone")
        self._ask(None)
        self._resized()
        asked = self._desk.asked
        self.set_timer(PATIENCE, lambda: self._reading(asked))

    def _reading(self, asked: int) -> None:
        """Say that what is seen is not yet what was asked for."""
        if self._shown < asked and self.is_running:
            self._pane.show([Text(" reading", "dim")])

    def _resized(self) -> None:
        size = self._pane.size
        if size.width and size.height and self._places:
            self._desk.see(self.place.view, size.width, size.height)
        self._bars()

    def on_resized(self) -> None:
        self._resized()

    def _bars(self) -> None:
        if not self._places:
            return
        place = self.place
        snapshot = place.watched.snapshot if place.watched is not None else None
        loud = [f for f in snapshot.findings if not f.silenced] if snapshot else []
        count = f" {len(loud)}" if loud else ""
        titles = [view.title + (count if isinstance(view, Findings) else "") for view in place.views]
        self._tabs.draw(titles, place.current)
        self._keys()

    def _keys(self) -> None:
        if not self._places:
            return
        since, said = self._desk.busy_since, ""
        if since is not None and time.monotonic() - since > SLOW:
            said = f"reading for {time.monotonic() - since:.0f} s"
        if self._asking is not None:
            keys = [Key("enter", f"{self._asking.asks} for what is typed"), Key("escape", "leave it")]
        else:
            back = [Key("escape", "back")] if len(self._places) > 1 else []
            tabs = [Key("tab", "next")] if len(self.place.views) > 1 else []
            keys = [Key("q", "quit"), Key("?", "help"), *back, *tabs, *(k for k in self.place.view.keys if k.shown)]
        self._foot.draw(keys, said)

    def _take(self, frame: Frame) -> None:
        with contextlib.suppress(RuntimeError):  # the application has just ended
            self.post_message(Drawn(frame))

    def on_drawn(self, message: Drawn) -> None:
        frame = message.frame
        if frame.view is self.place.view:
            self._pane.show(frame.rows)
            self._shown = frame.asked
            self._bars()
        if frame.opens is not None and frame.opens.folders:
            self._open(frame.opens)
        snapshot = self.watched.snapshot if self.watched is not None else None
        if self.options.until_done and snapshot is not None and snapshot.done:
            self.exit()

    def _open(self, opens: Opens) -> None:
        if len(opens.folders) == 1:
            self._go(self._place_of(opens.folders[0]))
        else:
            self._go(Place([Curves([self._run(folder) for folder in opens.folders])]))

    # -- keys and mouse --------------------------------------------------------------------------------------------

    def on_pressed(self, message: Pressed) -> None:
        key, place = message.key, self.place
        found = next((each for each in place.view.keys if each.key == key), None)
        if isinstance(place.view, Help) and key not in ("up", "down", "pageup", "pagedown", "home", "end"):
            self.action_back()
        elif key in ("q", "Q"):
            self.exit()
        elif key == "?":
            self._go(Place([Help(place.view, len(place.views) > 1)]))
        elif key == "escape":
            self.action_back()
        elif key == "tab":
            self.action_turn(1)
        elif found is not None and found.asks:
            self._ask(found)
        elif key.isdecimal() and 1 <= int(key) <= len(place.views) > 1:
            self._turn_to(int(key) - 1)
        else:
            self._desk.do(lambda: place.view.press(key))

    def action_turn(self, by: int) -> None:
        if self._asking is None:
            self._turn_to((self.place.current + by) % len(self.place.views))

    def _turn_to(self, number: int) -> None:
        if number != self.place.current:
            self.place.current = number
            self._see()

    def action_back(self) -> None:
        if self._asking is not None:
            key, view = self._asking, self.place.view
            self._ask(None)
            self._desk.do(lambda: view.typed(key.key, "", done=True))
        elif len(self._places) > 1:
            self._places.pop()
            self._see()

    def _ask(self, key: Key | None) -> None:
        """Let a line be typed, or let it be."""
        self._asking = key
        prompt = self._prompt
        prompt.set_class(key is not None, "asked")
        if key is not None:
            prompt.value = ""
            prompt.placeholder = key.asks
            prompt.focus()
        else:
            self._pane.focus()
        self._keys()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._typed(event.value, done=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._typed(event.value, done=True)
        self._ask(None)

    def _typed(self, text: str, *, done: bool) -> None:
        if (key := self._asking) is not None:
            view = self.place.view
            self._desk.do(lambda: view.typed(key.key, text, done=done))

    def on_moused(self, message: Moused) -> None:
        view, what, x, y = self.place.view, message.what, message.x, message.y
        if what == "hover":
            if type(view).hover is View.hover or (x, y) == self._pointed:
                return
            self._pointed = (x, y)
            self._desk.do(lambda: view.hover(x, y))
        elif what in ("up", "down"):
            self._desk.do(lambda: view.scroll(x, y, -1 if what == "up" else 1))
        else:
            self._desk.do(lambda: view.click(x, y, double=what == "double"))


def watch(source: Source, opened: Path | None = None, options: Options = Options()) -> Snapshot | None:
    """Watch until the person leaves, or ``until_done`` the run has ended; then say in a line, or in a summary, where it
    stands. Returns the last snapshot of the run that was seen last.

    Raises:
        SystemExit: if a signal ended it.
    """
    _own_terminal()
    app = Watch(source, opened, options)
    app.run()
    if app.return_code:
        raise SystemExit(app.return_code)
    snapshot = app.watched.snapshot if app.watched is not None else None
    if snapshot is not None and opened is not None:
        print_last(snapshot, unicode=options.unicode)
    return snapshot


def _own_terminal() -> None:
    """Keys come from the terminal, and the screen goes there, also where standard input or errors go elsewhere."""
    if not os.isatty(0):
        handle = os.open("/dev/tty", os.O_RDWR)
        os.dup2(handle, 0)
        os.close(handle)
        sys.__stdin__ = sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.__stderr__ is None or not sys.__stderr__.isatty():
        sys.__stderr__ = sys.__stdout__  # where textual writes
