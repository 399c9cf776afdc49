"""The parts of the watch screen: rows that were drawn elsewhere, the tabs above, the keys at the foot."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.text import Text
from textual import events
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from monitoring.terminal.last import ascii_only
from monitoring.terminal.view import Key


class Ascii(LineFilter):
    """Leaves nothing that a terminal without Unicode would show as something else."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(ascii_only(text), style, control) for text, style, control in segments]


class Rows(Widget):
    """Rows of text as they were drawn; only those that changed are painted anew."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._strips: list[Strip] = []

    def show(self, rows: Sequence[Text]) -> None:
        console = self.app.console
        strips = [Strip(row.render(console)) for row in rows]
        for y in range(max(len(strips), len(self._strips))):
            if y >= len(strips) or y >= len(self._strips) or strips[y] != self._strips[y]:
                self.refresh(Region(0, y, self.size.width, 1))
        self._strips = strips

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._strips):
            return Strip.blank(width)
        return self._strips[y].adjust_cell_length(width)


class Tabs(Rows):
    """The views of a run, by number."""

    def __init__(self) -> None:
        super().__init__("tabs")
        self._ends: list[int] = []

    def draw(self, titles: Sequence[str], current: int) -> None:
        row, self._ends = Text(), []
        for number, title in enumerate(titles):
            row.append(" " if number else "")
            row.append(f"{number + 1} {title}", "bold reverse" if number == current else "dim")
            self._ends.append(row.cell_len)
        self.show([row])

    def on_click(self, event: events.Click) -> None:
        event.stop()
        place = next((n for n, end in enumerate(self._ends) if event.x < end), None)
        if place is not None:
            self.app.post_message(Pressed(str(place + 1)))


class Foot(Rows):
    """The keys of what is seen; each can be clicked."""

    def __init__(self) -> None:
        super().__init__("foot")
        self._ends: list[tuple[int, str]] = []

    def draw(self, keys: Sequence[Key], said: str) -> None:
        row, self._ends = Text(), []
        if said:
            row.append(f" {said} ", "bold yellow")
            self._ends.append((row.cell_len, ""))
        for key in keys:
            part = Text.assemble((f" {key.label} ", "reverse"), f" {key.does} ")
            if row.cell_len + part.cell_len > self.size.width:
                break
            row += part
            self._ends.append((row.cell_len, key.key))
        self.show([row])

    def on_click(self, event: events.Click) -> None:
        event.stop()
        key = next((key for end, key in self._ends if event.x < end), "")
        if key:
            self.app.post_message(Pressed(key))


class Pane(Rows, can_focus=True):
    """Where the view is."""

    def on_key(self, event: events.Key) -> None:
        event.stop()
        char = event.character
        name = char if char is not None and char.isprintable() and char != " " else event.key
        self.app.post_message(Pressed(name))

    def on_click(self, event: events.Click) -> None:
        self.app.post_message(Moused("double" if event.chain > 1 else "click", event.x, event.y))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self.app.post_message(Moused("hover", event.x, event.y))

    def on_leave(self) -> None:
        self.app.post_message(Moused("hover", -1, -1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.app.post_message(Moused("up", event.x, event.y))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.app.post_message(Moused("down", event.x, event.y))

    def on_resize(self) -> None:
        self.app.post_message(Resized())


class Pressed(Message):
    """A key, or what stands for one."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class Moused(Message):
    """The mouse did something over the view."""

    def __init__(self, what: str, x: int, y: int) -> None:
        super().__init__()
        self.what, self.x, self.y = what, x, y


class Resized(Message):
    """There is another amount of room for the view."""
